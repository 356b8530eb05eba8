"""Interpolation between measured neighbours (a Gaussian process): for tables too small for a network.

Shapes: B rows, N rows kept, F features.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from thermoe.errors import DataError
from thermoe.types import FloatArray, IntArray

# Reach of a neighbour in standard deviations of all features together, and noise as a share of the variance.
_REACHES = (0.5, 1.0, 2.0, 4.0)
_NOISES = (0.003, 0.03, 0.2)
MOST_ROWS = 1500


@dataclass(frozen=True, slots=True)
class Kriging:
    """Sum over kept rows of weight x exp(-distance^2 / 2), around zero.

    Attributes:
        mean, spread: Of each feature; a spread holds the reach already (F,).
        points: Kept rows, scaled (N, F).
        weights: (N,).
    """

    mean: FloatArray
    spread: FloatArray
    points: FloatArray
    weights: FloatArray

    def __call__(self, features: FloatArray) -> FloatArray:
        """Value of each row (B,); far from all kept rows it is zero."""
        x = (features - self.mean) / self.spread
        return np.asarray(_kernel(x, self.points) @ self.weights, dtype=np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists."""
        return {name: getattr(self, name).tolist() for name in self.__slots__}

    @classmethod
    def from_dict(cls, values: Any, num_features: int, where: str) -> Self:
        """Inverse of `as_dict`; sizes that do not fit and numbers that are not finite are a `DataError`."""
        try:
            arrays = [np.array(values[name], np.float64) for name in ("mean", "spread", "points", "weights")]
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(f"{where}: neighbours lack {' '.join(str(err).split())[:100]}") from err
        mean, spread, points, weights = arrays
        fits = mean.shape == spread.shape == (num_features,) and points.shape == (*weights.shape, num_features)
        if not fits or weights.ndim != 1 or not all(np.isfinite(a).all() for a in arrays) or (spread <= 0).any():
            raise DataError(f"{where}: neighbours of {num_features} features hold sizes or numbers that do not fit")
        return cls(*arrays)


def krige(features: FloatArray, target: FloatArray, folds: IntArray, seed: int = 0) -> tuple[Kriging, FloatArray]:
    """Fit reach and noise by the error on rows left out, then keep all rows.

    Args:
        features: (B, F).
        target: (B,), finite.
        folds: Fold of each row (B,): rows of one shape share one.
        seed: Of the rows that are kept if there are more than `MOST_ROWS`.

    Returns:
        The fit, and what it says of each row when its fold is left out (B,).
    """
    if len(target) > MOST_ROWS:
        kept = np.random.default_rng(seed).permutation(len(target))[:MOST_ROWS]
        fit, left_out = krige(features[kept], target[kept], folds[kept])
        said = fit(features)
        said[kept] = left_out
        return fit, said
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    scaled = (features - mean) / spread
    best: tuple[float, float, float, FloatArray] | None = None
    variance = max(float(np.mean(target**2)), 1e-12)
    for reach in _REACHES:
        width = reach * np.sqrt(features.shape[1])
        kernel = _kernel(scaled / width, scaled / width)
        for noise in _NOISES:
            left_out = _left_out(kernel, noise, target, folds)
            error = float(np.mean(np.abs(left_out - target))) / np.sqrt(variance)
            if best is None or error < best[0]:
                best = error, width, noise, left_out
    assert best is not None
    _, width, noise, left_out = best
    points = scaled / width
    weights = np.linalg.solve(_kernel(points, points) + noise * np.eye(len(target)), target)
    return Kriging(mean, spread * width, points, weights.astype(np.float64)), left_out


def _left_out(kernel: FloatArray, noise: float, target: FloatArray, folds: IntArray) -> FloatArray:
    """Prediction of each row from the rows of other folds (B,), from one inverse of the whole."""
    inverse = np.linalg.inv(kernel + noise * np.eye(len(target)))
    weights = inverse @ target
    said = np.empty_like(target)
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        said[rows] = target[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], weights[rows])
    return said


def _kernel(a: FloatArray, b: FloatArray) -> FloatArray:
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * (a @ b.T)
    return np.asarray(np.exp(-0.5 * np.maximum(squares, 0.0)), dtype=np.float64)
