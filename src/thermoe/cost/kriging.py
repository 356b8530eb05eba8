"""Interpolation between measured neighbours (a Gaussian process): for tables too small for a network.

Shapes: B rows, N rows kept, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from thermoe.errors import DataError
from thermoe.types import BoolArray, FloatArray, IntArray

# Reaches of a neighbour, over that of the most likely one, and noises as shares of the variance, to choose from.
_REACHES = (0.7, 1.0, 1.5, 2.5)
_NOISES = (0.003, 0.03, 0.2)
MOST_ROWS = 1500
# Rows that tell how much each feature matters, and how far from equal that may go (a factor of e to this power).
_ROWS_FOR_RELEVANCE = 400
_RELEVANCE_SPREAD = 2.0
_START_NOISE = 0.05
_IN_FILES = ("mean", "spread", "points", "weights")
_ROWS_AT_A_TIME = 128
_DIGITS = 4  # of a kept row, whose reach is about 1: what a file holds
_MOST_NUMBER = 1e9  # larger ones are no fit, and would overflow
_MOST_LOG_CHANGE = 7.0


@dataclass(frozen=True, slots=True)
class _Kept:
    """Rows that others are compared with, as a product takes them: -2 of each, columns first (F, B), squares (B,)."""

    twice: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, rows: FloatArray) -> Self:
        return cls(np.ascontiguousarray(-2.0 * rows.T), (rows * rows).sum(axis=1))


@dataclass(frozen=True, slots=True)
class Kriging:
    """Sum over kept rows of weight x Matern covariance (smoothness 5/2) of the distance, around zero.

    Attributes:
        mean, spread: Of each feature; a spread holds the reach already (F,).
        points: Kept rows, scaled (N, F).
        weights: (N,).
    """

    mean: FloatArray
    spread: FloatArray
    points: FloatArray
    weights: FloatArray
    _kept: _Kept = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kept", _Kept.of(self.points))

    def __call__(self, features: FloatArray) -> FloatArray:
        """Value of each row (B,); far from all kept rows it is zero."""
        return self.value_and_distance(features)[0]

    def distance(self, features: FloatArray) -> FloatArray:
        """How far each row is from its nearest kept row (B,): 0 on it, 1 beyond all reach."""
        return self.value_and_distance(features)[1]

    def value_and_distance(self, features: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Both of each row (B,), so many rows at a time that what lies in between stays in the cache."""
        x = (features - self.mean) / self.spread
        parts = (_kernel_to(x[i : i + _ROWS_AT_A_TIME], self._kept) for i in range(0, len(x), _ROWS_AT_A_TIME))
        said = [(near @ self.weights, 1.0 - near.max(axis=1)) for near in parts]
        value, distance = (np.concatenate(column) for column in zip(*said, strict=True)) if said else (x[:, 0], x[:, 0])
        return value, distance

    def as_dict(self) -> dict[str, Any]:
        """Plain lists."""
        return {name: getattr(self, name).tolist() for name in _IN_FILES}

    @classmethod
    def from_dict(cls, values: Any, num_features: int, where: str) -> Self:
        """Inverse of `as_dict`; sizes that do not fit and numbers that are not finite are a `DataError`."""
        try:
            arrays = [np.array(values[name], np.float64) for name in _IN_FILES]
        except (KeyError, TypeError, ValueError, OverflowError) as err:
            raise DataError(f"{where}: neighbours lack {' '.join(str(err).split())[:100]}") from err
        mean, spread, points, weights = arrays
        fits = mean.shape == spread.shape == (num_features,) and points.shape == (*weights.shape, num_features)
        if (
            not fits
            or weights.ndim != 1
            or not all((np.abs(a) < _MOST_NUMBER).all() for a in arrays)
            or (spread <= 0).any()
        ):
            raise DataError(f"{where}: neighbours of {num_features} features hold sizes or numbers that do not fit")
        return cls(*arrays)


def silent(num_features: int) -> Kriging:
    """One that says zero everywhere."""
    none = np.zeros(num_features)
    return Kriging(none, none + 1.0, none[None], np.zeros(1))


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows to be guessed from the others.

    Attributes:
        unseen: Which rows (B,).
        features, target: Of all rows, as they are told by what never saw the unseen ones (B, F), (B,); a target that
            is not finite is not used.
    """

    unseen: BoolArray
    features: FloatArray
    target: FloatArray

    def take(self, rows: IntArray) -> "Fold":
        """Some rows."""
        return Fold(self.unseen[rows], self.features[rows], self.target[rows])


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a fit misses of rows when their fold is left out, what is missed without it, and how far these rows then
    are from all kept rows, all (B,); NaN for rows in no fold."""

    missed: FloatArray
    without: FloatArray
    distance: FloatArray


def krige(features: FloatArray, target: FloatArray, folds: Sequence[Fold], seed: int = 0) -> tuple[Kriging, LeftOut]:
    """Fit to all rows, with the reach and the noise that guess left-out folds best.

    What matters is learned anew without each fold, so that the guesses owe nothing to the rows they are of.

    Args:
        features: (B, F).
        target: (B,), finite.
        folds: Rows of one shape are in the same.
        seed: Of the rows that are kept if there are more than `MOST_ROWS`.
    """
    if len(target) > MOST_ROWS:
        kept = np.sort(np.random.default_rng(seed).permutation(len(target))[:MOST_ROWS])
        fit, few = krige(features[kept], target[kept], [fold.take(kept) for fold in folds], seed)
        wide = np.full((3, len(target)), np.nan)
        wide[:, kept] = few.missed, few.without, few.distance
        return fit, LeftOut(*wide)
    rng = np.random.default_rng(seed)
    parts = [_part(fold, rng) for fold in folds]
    guesses = {(r, n): _left_out(len(target), parts, r, n) for r in _REACHES for n in _NOISES}
    reach, noise = min(guesses, key=lambda choice: float(np.nanmean(np.abs(guesses[choice].missed))))
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    scaled = (features - mean) / spread
    width = reach / _relevance(scaled, target, rng)
    points = np.round(scaled / width, _DIGITS)
    weights = np.linalg.solve(_kernel(points, points) + noise * np.eye(len(target)), target)
    return Kriging(mean, spread * width, points, weights.astype(np.float64)), guesses[reach, noise]


@dataclass(frozen=True, slots=True)
class _Part:
    """A fold in units of how much each feature tells: seen and asked rows, their targets, places of the asked."""

    seen: FloatArray
    target: FloatArray
    asked: FloatArray
    truth: FloatArray
    places: IntArray


def _part(fold: Fold, rng: np.random.Generator) -> _Part:
    known = np.isfinite(fold.target)
    seen, places = known & ~fold.unseen, np.flatnonzero(known & fold.unseen)
    mean, spread = fold.features[seen].mean(axis=0), np.maximum(fold.features[seen].std(axis=0), 1e-6)
    scaled = (fold.features - mean) / spread
    scaled *= _relevance(scaled[seen], fold.target[seen], rng)
    return _Part(scaled[seen], fold.target[seen], scaled[places], fold.target[places], places)


def _relevance(scaled: FloatArray, target: FloatArray, rng: np.random.Generator) -> FloatArray:
    """How much each feature tells rows apart (F,): the most likely, starting from all alike."""
    from scipy.optimize import minimize  # only here: predicting needs no scipy

    rows = rng.permutation(len(target))[:_ROWS_FOR_RELEVANCE]
    x, y = scaled[rows], target[rows] / max(float(np.sqrt(np.mean(target[rows] ** 2))), 1e-6)
    count = scaled.shape[1]
    start = np.log(np.append(np.full(count, 1.0 / count), _START_NOISE))

    bounds = [(s - _MOST_LOG_CHANGE, s + _MOST_LOG_CHANGE) for s in start]
    found = minimize(
        unlikeliness, start, (x, y, start), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}
    )
    return np.asarray(np.exp(0.5 * found.x[:-1]), dtype=np.float64)


def unlikeliness(logs: FloatArray, x: FloatArray, y: FloatArray, start: FloatArray) -> tuple[float, FloatArray]:
    """Negative logarithm of how likely targets are, but for a constant, and its slope.

    Args:
        logs: Logarithms of what each feature's squared distance counts, and of the noise (F + 1,).
        x, y: Features and targets of the rows (N, F), (N,).
        start: Where logarithms are pulled to (F + 1,).
    """
    weights, noise = np.exp(logs[:-1]), float(np.exp(logs[-1]))
    kernel, near = _kernel_and_slope(x * np.sqrt(weights), x * np.sqrt(weights))
    inverse = np.linalg.inv(kernel + noise * np.eye(len(y)))
    solved = inverse @ y
    fit = float(y @ solved) / len(y)  # variance of the process, at its most likely value
    _, log_det = np.linalg.slogdet(kernel + noise * np.eye(len(y)))
    away = (logs - start) / _RELEVANCE_SPREAD
    value = 0.5 * (len(y) * np.log(fit) + log_det + away @ away)
    pull = inverse - np.outer(solved, solved) / fit
    mixed = pull * near
    squares = 2.0 * ((x * x).T @ mixed.sum(axis=1) - np.einsum("if,ij,jf->f", x, mixed, x, optimize=True))
    slope = np.append(-0.25 * weights * squares, 0.5 * noise * np.trace(pull)) + away / _RELEVANCE_SPREAD
    return value, slope


def _left_out(count: int, parts: list[_Part], reach: float, noise: float) -> LeftOut:
    missed, without, distance = np.full((3, count), np.nan)
    for part in parts:
        points, asked = part.seen / reach, part.asked / reach
        weights = np.linalg.solve(_kernel(points, points) + noise * np.eye(len(points)), part.target)
        near = _kernel(asked, points)
        missed[part.places] = part.truth - near @ weights
        without[part.places] = part.truth
        distance[part.places] = 1.0 - near.max(axis=1)
    return LeftOut(missed, without, distance)


def _kernel(a: FloatArray, b: FloatArray) -> FloatArray:
    """Matern covariance of smoothness 5/2 of rows (A, F) and (B, F)."""
    return _kernel_to(a, _Kept.of(b))


def _kernel_to(a: FloatArray, kept: _Kept) -> FloatArray:
    away = _away(a, kept)
    fall = np.exp(-away)
    covariance = away / 3.0
    covariance += 1.0
    covariance *= away
    covariance += 1.0
    covariance *= fall
    return covariance


def _away(a: FloatArray, kept: _Kept) -> FloatArray:
    """Distances times the root of 5."""
    squares = a @ kept.twice
    squares += (a * a).sum(axis=1)[:, None]
    squares += kept.squares
    np.maximum(squares, 0.0, out=squares)
    squares *= 5.0
    return np.sqrt(squares, out=squares)


def _kernel_and_slope(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Matern covariance of smoothness 5/2, and -2 times its derivative by the squared distance."""
    away = _away(a, _Kept.of(b))
    fall = np.exp(-away)
    return (1.0 + away + away * away / 3.0) * fall, (5.0 / 3.0) * (1.0 + away) * fall
