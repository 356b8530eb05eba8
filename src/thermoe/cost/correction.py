"""What measurements say beyond the physical law of an operation: a learned factor on latency and on power.

Inside the measured range the factor comes from neighbours (few rows) or from small networks and trees (many); outside
it fades to 1, so that physics alone speaks. How far it misses is learned on shapes left out of the fit. Shapes: B
rows, F features.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from thermoe.cost.encoding import Inputs, codes_of, described, grid_of, with_names
from thermoe.cost.forest import Boosting, Forest, boost
from thermoe.cost.kriging import Kriging, krige, silent
from thermoe.cost.network import Network, Training, train_network
from thermoe.errors import DataError
from thermoe.types import BoolArray, FloatArray, IntArray

# From so many rows with power on, networks and trees; below, neighbours.
NETWORK_ROWS = 3000
# A correction needs this many shapes and rows, or nothing could be left out to check it.
LEAST_SHAPES, LEAST_ROWS = 4, 24
_FOLDS = 4
_NUM_NETWORKS = 2
_TREE_SHARES = (0.0, 0.5, 1.0)
# Beyond the measured range the factor fades over this many powers of e, in size or work.
_FADE = 1.5
_SPREAD_TREES = Boosting(trees=20, leaves=16, depth=5, learning_rate=0.2, least_rows=40)
_LEAST_MISS = 0.003
_MOST = 1e9  # larger ones are no fit, and would overflow
_LEAST_SPREAD, _MOST_GROWTH = 0.02, 4.0
_SMALL_BATCH, _MANY_ROWS = 256, 30000


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """Logarithm of the factor on latency and on power.

    Attributes:
        names: Implementations and formats that were seen; others are described by features alone.
        grid: Values of tokens with an input of their own.
        low, high: Measured range of `Inputs.extent`.
        networks: Mean of these, both targets.
        trees: Of latency and of power, with the share of them that helps on unseen shapes.
        neighbours: Of latency and of power, where there are too few rows for networks.
        growth: By how many powers of e the miss of latency and of energy grows between neighbours and beyond them.
        spreads: Expected miss of latency and of energy (logarithm), where there are networks.
        quantiles: Factors on it that hold 90 % of shapes left out, of latency and of energy; NaN where unknown.
        models: Models that were measured (M, 4), where there are several shapes of each; else none.
        strangeness: Factors on the intervals of models that are not among them.
    """

    names: list[str]
    grid: list[float]
    low: FloatArray
    high: FloatArray
    networks: list[Network] = field(default_factory=list)
    trees: list[Forest] = field(default_factory=list)
    tree_shares: tuple[float, float] = (0.0, 0.0)
    neighbours: list[Kriging] = field(default_factory=list)
    growth: tuple[float, float] = (0.0, 0.0)
    spreads: list[Forest] = field(default_factory=list)
    quantiles: tuple[float, float] = (0.0, 0.0)
    models: FloatArray = field(default_factory=lambda: np.zeros((0, 4)))
    strangeness: tuple[float, float] = (1.0, 1.0)

    def __call__(self, inputs: Inputs) -> FloatArray:
        """Logarithms of the factors (B, 2)."""
        return self._inside(inputs) * np.exp(-0.5 * (self.excess(inputs) / _FADE) ** 2)[:, None]

    def miss(self, inputs: Inputs) -> FloatArray:
        """Logarithmic half width of the 90 % interval of latency and of energy (B, 2), wider outside the range."""
        if self.spreads:
            expected = np.exp(np.stack([s(inputs.features) for s in self.spreads], axis=1))
        else:
            expected = np.exp(np.array(self.growth) * self._distance(inputs)[:, None])
        outside = 1.0 + self.excess(inputs)[:, None]
        if len(self.models):
            is_known = (inputs.models[:, None] == self.models[None]).all(axis=2).any(axis=1)
            outside = outside * np.where(is_known[:, None], 1.0, np.array(self.strangeness))
        return np.asarray(expected * np.array(self.quantiles) * outside, dtype=np.float64)

    def _distance(self, inputs: Inputs) -> FloatArray:
        named = with_names(inputs, self.names)
        return np.asarray(np.mean([n.distance(named) for n in self.neighbours], axis=0), dtype=np.float64)

    def excess(self, inputs: Inputs) -> FloatArray:
        """How far each row lies outside the measured range, in powers of e (B,)."""
        beyond = np.maximum(np.maximum(self.low - inputs.extent, inputs.extent - self.high), 0.0)
        return np.asarray(np.sqrt((beyond * beyond).sum(axis=1)), dtype=np.float64)

    def covers(self, inputs: Inputs) -> BoolArray:
        """Whether each row lies inside the measured range (B,)."""
        return np.asarray(self.excess(inputs) < np.log(1.05), dtype=np.bool_)

    def _inside(self, inputs: Inputs) -> FloatArray:
        named = with_names(inputs, self.names) if self.neighbours or any(self.tree_shares) else inputs.features
        if self.neighbours:
            return np.stack([n(named) for n in self.neighbours], axis=1)
        codes = codes_of(inputs, self.names, self.grid)
        said: FloatArray = np.mean([n(inputs.features, codes) for n in self.networks], axis=0)
        for target, share in enumerate(self.tree_shares):
            if share:
                said[:, target] += share * self.trees[target](named)
        return said

    def as_dict(self) -> dict[str, Any]:
        """All parts as JSON has them."""
        lists = ("networks", "trees", "neighbours", "spreads")
        return {
            "names": self.names,
            "grid": self.grid,
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "tree_shares": list(self.tree_shares),
            "growth": list(self.growth),
            "models": self.models.tolist(),
            "strangeness": list(self.strangeness),
            "quantiles": [None if np.isnan(q) else q for q in self.quantiles],
        } | {name: [part.as_dict() for part in getattr(self, name)] for name in lists}

    @classmethod
    def from_dict(cls, values: Any, num_features: int, num_extent: int, where: str) -> Self:
        """Inverse of `as_dict`; anything missing or wrong is a `DataError`."""
        try:
            names, grid = [str(n) for n in values["names"]], [float(g) for g in values["grid"]]
            low, high = (np.array(values[n], np.float64) for n in ("low", "high"))
            pairs = ("tree_shares", "growth", "strangeness")
            shares, growth, strangeness = (tuple(float(v) for v in values[n]) for n in pairs)
            models = np.array(values["models"], np.float64).reshape(-1, 4)
            quantiles = tuple(np.nan if v is None else float(v) for v in values["quantiles"])
            parts = {n: list(values[n]) for n in ("networks", "trees", "neighbours", "spreads")}
        except (KeyError, TypeError, ValueError, OverflowError) as err:
            raise DataError(f"{where}: a correction lacks {' '.join(str(err).split())[:100]}") from err
        counts = [len(parts[n]) for n in ("trees", "neighbours", "spreads")]
        fits = (
            low.shape == high.shape == (num_extent,)
            and len(shares) == len(quantiles) == len(growth) == len(strangeness) == 2
            and all(c in (0, 2) for c in counts)
            and bool(parts["networks"]) != bool(parts["neighbours"])
            and (counts[0] == 2 or not any(shares))
            and all((np.abs(v) < _MOST).all() for v in (low, high, shares, growth, strangeness, models, grid))
            and not any(q > _MOST or q < 0 for q in quantiles)
        )
        if not fits:
            raise DataError(f"{where}: a correction holds parts that do not fit each other")
        named = num_features + len(names)
        num_codes = (len(grid) + 1) * (len(names) + 1)
        return cls(
            names=names,
            grid=grid,
            low=low,
            high=high,
            networks=[Network.from_dict(v, num_features, num_codes, 2, where) for v in parts["networks"]],
            trees=[Forest.from_dict(v, named, where) for v in parts["trees"]],
            tree_shares=(shares[0], shares[1]),
            growth=(growth[0], growth[1]),
            neighbours=[Kriging.from_dict(v, named, where) for v in parts["neighbours"]],
            spreads=[Forest.from_dict(v, num_features, where) for v in parts["spreads"]],
            quantiles=(quantiles[0], quantiles[1]),
            models=models,
            strangeness=(strangeness[0], strangeness[1]),
        )


def fit_correction(inputs: Inputs, targets: FloatArray, groups: IntArray, seed: int = 0) -> Correction | None:
    """Learn the factors, or None where there is too little to learn from or nothing to gain.

    Args:
        inputs: (B, ...).
        targets: Logarithms of measured over law, latency and power (B, 2); NaN where not measured.
        groups: Shape of each row (B,): all rows of one are left out together.
        seed: Of weights, orders and folds.
    """
    num_shapes = len(np.unique(groups))
    if num_shapes < LEAST_SHAPES or len(groups) < LEAST_ROWS:
        return None
    names = [str(n) for n in np.unique(inputs.names)]
    blank = Correction(
        names=names,
        grid=grid_of(inputs.tokens, groups),
        low=inputs.extent.min(axis=0),
        high=inputs.extent.max(axis=0),
    )
    if np.isfinite(targets).all(axis=1).sum() >= NETWORK_ROWS:
        return _fit_networks(blank, inputs, targets, groups, seed)
    return _fit_neighbours(blank, inputs, targets, _folds(groups, seed))


def _fit_neighbours(blank: Correction, inputs: Inputs, targets: FloatArray, folds: IntArray) -> Correction | None:
    named = with_names(inputs, blank.names)
    fits, left_out = [], np.where(np.isfinite(targets), 0.0, np.nan)
    distance = np.full_like(targets, np.nan)
    for column, said, far in zip(targets.T, left_out.T, distance.T, strict=True):
        known = np.isfinite(column)
        fits.append(silent(named.shape[1]))
        if known.sum() < LEAST_ROWS or len(np.unique(folds[known])) < _FOLDS:
            continue
        fit, guessed = krige(named[known], column[known], folds[known])
        if np.abs(guessed.value - column[known]).mean() < np.abs(column[known]).mean():
            fits[-1], said[known], far[known] = fit, guessed.value, guessed.distance
    if not any(np.any(fit.weights) for fit in fits):
        return None
    far = np.mean([np.where(np.isfinite(d), d, 1.0) for d in distance.T], axis=0)
    return _with_growth(replace(blank, neighbours=fits), far, _missed(targets - left_out))


def _fit_networks(blank: Correction, inputs: Inputs, targets: FloatArray, groups: IntArray, seed: int) -> Correction:
    folds, num_shapes = _folds(groups, seed), len(np.unique(groups))
    left_out = _left_out(blank, inputs, targets, folds, seed)
    misses = {s: np.nanmean(np.abs(np.expm1(said - targets)), axis=0) for s, said in left_out.items()}
    best = [min(_TREE_SHARES, key=lambda s, i=i: misses[s][i]) for i in range(2)]  # type: ignore[misc]
    whole = replace(_train(blank, inputs, targets, seed, _NUM_NETWORKS), tree_shares=(best[0], best[1]))
    whole = _with_spreads(whole, inputs, _missed(targets - _chosen(left_out, best)))
    models, model = np.unique(inputs.models, axis=0, return_inverse=True)
    if len(models) < LEAST_SHAPES or num_shapes <= len(models):
        return whole
    strange = _left_out(blank, inputs, targets, _folds(model.ravel(), seed), seed)
    ratio = np.abs(_missed(targets - _chosen(strange, best))) / whole.miss(inputs)
    first, second = (max(1.0, quantile(column)) for column in ratio.T)
    return replace(whole, models=models, strangeness=(first, second))


def _left_out(
    blank: Correction, inputs: Inputs, targets: FloatArray, folds: IntArray, seed: int
) -> dict[float, FloatArray]:
    """What a fit without a row's fold says of it (B, 2), by the share of trees."""
    said = {share: np.full_like(targets, np.nan) for share in _TREE_SHARES}
    for fold in np.unique(folds):
        seen, unseen = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        part = _train(blank, inputs.take(seen), targets[seen], seed, num_networks=1)
        for share, values in said.items():
            values[unseen] = replace(part, tree_shares=(share, share))._inside(inputs.take(unseen))
    return said


def _chosen(said: dict[float, FloatArray], shares: list[float]) -> FloatArray:
    return np.stack([said[share][:, i] for i, share in enumerate(shares)], axis=1)


def _train(blank: Correction, inputs: Inputs, targets: FloatArray, seed: int, num_networks: int) -> Correction:
    codes, labels = codes_of(inputs, blank.names, blank.grid), described(blank.names, blank.grid)
    training = Training(batch=_SMALL_BATCH if len(codes) < _MANY_ROWS else 2 * _SMALL_BATCH)
    networks = [train_network(inputs.features, codes, labels, targets, seed + i, training) for i in range(num_networks)]
    rest = targets - np.mean([n(inputs.features, codes) for n in networks], axis=0)
    trees = []
    for column in rest.T:
        known = np.isfinite(column)
        trees.append(boost(with_names(inputs, blank.names)[known], column[known], Boosting()))
    return replace(blank, networks=networks, trees=trees)


def _missed(residual: FloatArray) -> FloatArray:
    """Of latency and of energy, from those of latency and of power (B, 2)."""
    return np.stack([residual[:, 0], residual.sum(axis=1)], axis=1)


def _with_growth(fit: Correction, distance: FloatArray, missed: FloatArray) -> Correction:
    """Intervals that widen with the distance to the nearest row, from what was missed on shapes left out (B, 2)."""
    slopes, quantiles = [], []
    for column in missed.T:
        known = np.isfinite(column)
        logs, spread = np.log(np.abs(column[known]) + _LEAST_MISS), float(distance[known].std()) if known.any() else 0.0
        slope = float(np.polyfit(distance[known], logs, 1)[0]) if spread > _LEAST_SPREAD else 0.0
        slopes.append(float(np.clip(slope, 0.0, _MOST_GROWTH)))
        quantiles.append(quantile(np.abs(column) / np.exp(slopes[-1] * distance)))
    return replace(fit, growth=(slopes[0], slopes[1]), quantiles=(quantiles[0], quantiles[1]))


def _with_spreads(fit: Correction, inputs: Inputs, missed: FloatArray) -> Correction:
    """Intervals as wide as trees expect the miss to be, from what was missed on shapes left out (B, 2)."""
    spreads = []
    for column in missed.T:
        known = np.isfinite(column)
        spreads.append(boost(inputs.features[known], np.log(np.abs(column[known]) + _LEAST_MISS), _SPREAD_TREES))
    fit = replace(fit, spreads=spreads, quantiles=(1.0, 1.0))
    first, second = (quantile(column) for column in (np.abs(missed) / fit.miss(inputs)).T)
    return replace(fit, quantiles=(first, second))


def quantile(errors: FloatArray, share: float = 0.9) -> float:
    """Conformal quantile: with n errors the ceil((n + 1) share)-th smallest, or the largest; NaN without any."""
    known = np.sort(errors[np.isfinite(errors)])
    if not known.size:
        return float("nan")
    return float(known[min(int(np.ceil((known.size + 1) * share)), known.size) - 1])


def _folds(groups: IntArray, seed: int) -> IntArray:
    _, number = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(seed).permutation(number.max() + 1) % _FOLDS)[number.ravel()]
