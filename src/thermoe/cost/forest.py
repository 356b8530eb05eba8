"""Boosted regression trees as plain arrays: fitted with scikit-learn, evaluated with numpy alone.

Shapes: B rows, F features, N trees, M nodes.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from thermoe.errors import CostError, DataError
from thermoe.types import FloatArray

# Rows walked through all trees at once: their nodes stay in the cache.
_CHUNK = 256
_MOST = 1e4  # no logarithm of a ratio is larger


@dataclass(frozen=True, kw_only=True, slots=True)
class Boosting:
    """Settings of a fit.

    Attributes:
        trees, leaves, depth: Trees; most leaves and levels of each.
        learning_rate: Share of a tree's correction that is taken.
        least_rows: Rows that a leaf needs.
    """

    trees: int = 40
    leaves: int = 255
    depth: int = 10
    learning_rate: float = 0.18
    least_rows: int = 10


@dataclass(frozen=True, slots=True)
class Forest:
    """Sum of trees; a leaf's children are itself, so that every row takes the same number of steps.

    Attributes:
        feature, threshold: What a node asks: is feature above threshold? (M,)
        children: Next node for no and for yes, flat (2 M,).
        value: Of a leaf (M,).
        roots: First node of each tree (N,).
        depth: Steps from a root to any leaf.
        offset: Added to the sum.
    """

    feature: NDArray[np.intp]
    threshold: NDArray[np.float32]
    children: NDArray[np.intp]
    value: NDArray[np.float32]
    roots: NDArray[np.intp]
    depth: int
    offset: float

    def __call__(self, features: FloatArray) -> FloatArray:
        """Sum over the trees for each row (B,)."""
        x = np.ascontiguousarray(features, dtype=np.float32)
        result = np.empty(len(x))
        for start in range(0, len(x), _CHUNK):
            rows = x[start : start + _CHUNK]
            result[start : start + _CHUNK] = self._walk(rows)
        return result + self.offset

    def _walk(self, x: NDArray[np.float32]) -> FloatArray:
        flat = x.ravel()
        first = (np.arange(len(x)) * x.shape[1])[:, None]
        node = self.roots + np.zeros_like(first)
        for _ in range(self.depth):
            asked = self.feature.take(node)
            asked += first
            is_above = flat.take(asked) > self.threshold.take(node)
            node = node + node
            node += is_above
            node = self.children.take(node)
        return np.asarray(self.value.take(node).sum(axis=1), dtype=np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists; thresholds and values with nine digits, by which a float32 is known exactly."""
        return {
            "feature": self.feature.tolist(),
            "threshold": [float(f"{t:.9g}") if np.isfinite(t) else None for t in self.threshold],
            "children": self.children.tolist(),
            "value": [float(f"{v:.9g}") for v in self.value],
            "roots": self.roots.tolist(),
            "depth": self.depth,
            "offset": self.offset,
        }

    @classmethod
    def from_dict(cls, values: Any, num_features: int, where: str) -> Self:
        """Inverse of `as_dict`; nodes that point nowhere and numbers that are not finite are a `DataError`."""
        try:
            threshold = [np.inf if t is None else float(t) for t in values["threshold"]]
            with np.errstate(over="ignore"):  # what overflows is refused below, or is above all features
                limits, value = np.array(threshold, np.float32), np.array(values["value"], np.float32)
            forest = cls(
                np.array(values["feature"], np.intp),
                limits,
                np.array(values["children"], np.intp),
                value,
                np.array(values["roots"], np.intp),
                int(values["depth"]),
                float(values["offset"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as err:
            raise DataError(f"{where}: trees lack {' '.join(str(err).split())[:100]}") from err
        count = len(forest.feature)
        pointers = [(forest.feature, num_features), (forest.children, count), (forest.roots, count)]
        fits = (
            forest.threshold.shape == forest.value.shape == (count,)
            and forest.children.shape == (2 * count,)
            and forest.roots.ndim == 1
            and all(not a.size or (a.min() >= 0 and a.max() < end) for a, end in pointers)
            and 0 <= forest.depth <= count
            and bool((np.abs(forest.value) < _MOST).all() and abs(forest.offset) < _MOST)
            and not np.isnan(forest.threshold).any()
        )
        if not fits:
            raise DataError(f"{where}: trees over {num_features} features hold nodes or numbers that do not fit")
        return forest


def boost(features: FloatArray, target: FloatArray, settings: Boosting, seed: int = 0) -> Forest:
    """Fit trees to the squared error of a target (B,).

    Raises:
        CostError: scikit-learn, which fits them, is not installed.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError:
        raise CostError("tables of this size are fitted with scikit-learn: pip install 'thermoe[fit]'") from None
    model = HistGradientBoostingRegressor(
        max_iter=settings.trees,
        max_leaf_nodes=settings.leaves,
        max_depth=settings.depth,
        learning_rate=settings.learning_rate,
        min_samples_leaf=settings.least_rows,
        early_stopping=False,
        random_state=seed,
    )
    # Thresholds are compared in float32 later, so they are found in float32.
    model.fit(features.astype(np.float32), target)
    trees = [stage[0].nodes for stage in model._predictors]
    return _joined(trees, float(np.ravel(model._baseline_prediction)[0]))


def _joined(trees: list[Any], offset: float) -> Forest:
    """One set of arrays from the node tables of all trees."""
    sizes = [len(nodes) for nodes in trees]
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.intp)
    parts: list[tuple[Any, Any, Any, Any]] = []
    for root, nodes in zip(roots, trees, strict=True):
        is_leaf = nodes["is_leaf"].astype(bool)
        own = np.arange(len(nodes)) + root
        left = np.where(is_leaf, own, nodes["left"].astype(np.int64) + root)
        right = np.where(is_leaf, own, nodes["right"].astype(np.int64) + root)
        feature = np.where(is_leaf, 0, nodes["feature_idx"])
        threshold = np.where(is_leaf, np.inf, nodes["num_threshold"])
        parts.append(
            (feature, threshold, np.stack([left, right], axis=1).ravel(), np.where(is_leaf, nodes["value"], 0))
        )
    feature, threshold, children, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Forest(
        feature.astype(np.intp),
        threshold.astype(np.float32),
        children.astype(np.intp),
        value.astype(np.float32),
        roots,
        max(int(nodes["depth"].max()) for nodes in trees),
        offset,
    )
