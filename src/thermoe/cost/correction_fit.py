"""Fitting a correction: which learner, how many, and how far it misses on shapes and on models left out.

Shapes: B rows, F features.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from thermoe.cost.correction import Correction, distances, quantile
from thermoe.cost.encoding import Inputs, codes_of, described, for_neighbours, grid_of, with_names
from thermoe.cost.forest import Boosting, boost
from thermoe.cost.kin import joined_without_own, kin_of
from thermoe.cost.kriging import Fold, krige, silent
from thermoe.cost.network import Training, train_network
from thermoe.types import BoolArray, FloatArray, IntArray

# From so many rows with power on, networks and trees; below, neighbours.
NETWORK_ROWS = 3000
# A correction needs this many shapes and rows, or nothing could be left out to check it.
LEAST_SHAPES, LEAST_ROWS = 4, 24
_FOLDS = 4
_FOLDS_OF_FEW = 6  # neighbours are quickly found, and what is left out of few rows is missed
_TREE_SHARES = (0.0, 0.5, 1.0)
# More rows teach more in an epoch: larger batches, fewer networks, less decay.
_MANY_ROWS = 30000
_FEW, _MANY = Training(batch=256, weight_decay=0.1), Training(batch=512)
_NUM_FEW, _NUM_MANY = 4, 2
_SPREAD_TREES = Boosting(trees=20, leaves=16, depth=5, learning_rate=0.2, least_rows=40)
_LEAST_MISS = 0.003
_LEAST_SPREAD, _MOST_GROWTH = 0.02, 4.0


Without = Callable[[BoolArray], tuple[Inputs, FloatArray]]
"""Inputs and targets of all rows by laws that were fitted without some of them (B,)."""


def fit_correction(
    inputs: Inputs,
    targets: FloatArray,
    groups: IntArray,
    seed: int = 0,
    without: Without | None = None,
    energy_shares: FloatArray | None = None,
) -> Correction | None:
    """Learn the factors, or None where there is too little to learn from or nothing to gain.

    Args:
        inputs: (B, ...).
        targets: Logarithms of measured over law, latency and power (B, 2); NaN where not measured.
        groups: Shape of each row (B,): all rows of one are left out together.
        seed: Of weights, orders and folds.
        without: Refits the laws without some rows, so that what is missed on them is what a new shape meets; where
            None, and for networks, which have so many rows that no law clings to one of them, the laws stay.
        energy_shares: How much of misses of latency and of power is one of energy, where neighbours answer (B, 2); all
            if None.
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
    folds = _folds(groups, seed, _FOLDS_OF_FEW)
    told = [(folds == fold, *(without(folds == fold) if without else (inputs, targets))) for fold in np.unique(folds)]
    shares = np.ones_like(targets) if energy_shares is None else energy_shares
    return _fit_neighbours(blank, inputs, targets, told, shares)


def _fit_neighbours(
    blank: Correction,
    inputs: Inputs,
    targets: FloatArray,
    told: list[tuple[BoolArray, Inputs, FloatArray]],
    energy_shares: FloatArray,
) -> Correction | None:
    """`told` are the rows of each fold, and inputs and targets of all rows without it."""
    named = for_neighbours(inputs, blank.names)
    fits, missed, distance = [], np.full_like(targets, np.nan), np.full_like(targets, np.nan)
    for i in range(targets.shape[1]):
        folds = [Fold(unseen, for_neighbours(part, blank.names), column[:, i]) for unseen, part, column in told]
        known = np.flatnonzero(np.isfinite(targets[:, i]))
        fits.append(silent(named.shape[1]))
        for fold in folds:
            missed[fold.unseen, i] = fold.target[fold.unseen]
        if len(known) < LEAST_ROWS or not all(_is_enough(fold) for fold in folds):
            continue
        fit, left_out = krige(named[known], targets[known, i], [fold.take(known) for fold in folds])
        if np.nanmean(np.abs(left_out.missed)) < np.nanmean(np.abs(left_out.without)):
            fits[-1], missed[known, i], distance[known, i] = fit, left_out.missed, left_out.distance
    if not any(np.any(fit.weights) for fit in fits):
        return None
    far = distances(*(np.where(np.isfinite(d), d, 1.0) for d in distance.T))
    return _with_growth(replace(blank, neighbours=fits), far, _missed(missed, energy_shares))


def _is_enough(fold: Fold) -> bool:
    """Whether there is something to guess in a fold, and enough to guess it from."""
    known = np.isfinite(fold.target)
    return bool((known & fold.unseen).any()) and int((known & ~fold.unseen).sum()) >= LEAST_ROWS // 2


def _fit_networks(blank: Correction, inputs: Inputs, targets: FloatArray, groups: IntArray, seed: int) -> Correction:
    folds, num_shapes = _folds(groups, seed), len(np.unique(groups))
    training, num_networks = (_FEW, _NUM_FEW) if len(groups) < _MANY_ROWS else (_MANY, _NUM_MANY)
    left_out = _left_out(blank, inputs, targets, groups, folds, seed, training)
    misses = {s: np.nanmean(np.abs(np.expm1(said - targets)), axis=0) for s, said in left_out.items()}
    best = [min(_TREE_SHARES, key=lambda s, i=i: misses[s][i]) for i in range(2)]  # type: ignore[misc]
    whole = _train(blank, inputs, targets, groups, seed, training, num_networks)
    whole = replace(whole, tree_shares=(best[0], best[1]))
    known = joined_without_own(inputs, targets, groups)
    whole = _with_spreads(whole, known, _missed(targets - _chosen(left_out, best)))
    models, model = np.unique(inputs.models, axis=0, return_inverse=True)
    if len(models) < LEAST_SHAPES or num_shapes <= len(models):
        return whole
    strange = _left_out(blank, inputs, targets, groups, _folds(model.ravel(), seed), seed, training)
    ratio = np.abs(_missed(targets - _chosen(strange, best))) / whole.miss(known)
    first, second = (max(1.0, quantile(column)) for column in ratio.T)
    return replace(whole, models=models, strangeness=(first, second))


def _left_out(
    blank: Correction,
    inputs: Inputs,
    targets: FloatArray,
    groups: IntArray,
    folds: IntArray,
    seed: int,
    training: Training,
) -> dict[float, FloatArray]:
    """What a fit without a row's fold says of it (B, 2), by the share of trees."""
    said = {share: np.full_like(targets, np.nan) for share in _TREE_SHARES}
    for fold in np.unique(folds):
        seen, unseen = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        part = _train(blank, inputs.take(seen), targets[seen], groups[seen], seed, training, num_networks=1)
        asked = part.kin.joined(inputs.take(unseen))
        for share, values in said.items():
            values[unseen] = replace(part, tree_shares=(share, share)).inside(asked)
    return said


def _chosen(said: dict[float, FloatArray], shares: list[float]) -> FloatArray:
    return np.stack([said[share][:, i] for i, share in enumerate(shares)], axis=1)


def _train(
    blank: Correction,
    inputs: Inputs,
    targets: FloatArray,
    groups: IntArray,
    seed: int,
    training: Training,
    num_networks: int,
) -> Correction:
    kin = kin_of(inputs, targets)
    inputs = joined_without_own(inputs, targets, groups)
    codes, labels = codes_of(inputs, blank.names, blank.grid), described(blank.names, blank.grid)
    networks = [train_network(inputs.features, codes, labels, targets, seed + i, training) for i in range(num_networks)]
    rest = targets - np.mean([n(inputs.features, codes) for n in networks], axis=0)
    trees = []
    for column in rest.T:
        known = np.isfinite(column)
        trees.append(boost(with_names(inputs, blank.names)[known], column[known], Boosting()))
    return replace(blank, kin=kin, networks=networks, trees=trees)


def _missed(residual: FloatArray, energy_shares: FloatArray | float = 1.0) -> FloatArray:
    """Of latency and of energy, from those of latency and of power (B, 2)."""
    return np.stack([residual[:, 0], (energy_shares * residual).sum(axis=1)], axis=1)


def _with_growth(fit: Correction, distance: FloatArray, missed: FloatArray) -> Correction:
    """Intervals that widen with the distance to the nearest row, from what shapes left out missed, both (B, 2)."""
    slopes, quantiles = [], []
    for column, far in zip(missed.T, distance.T, strict=True):
        known = np.isfinite(column)
        logs, spread = np.log(np.abs(column[known]) + _LEAST_MISS), float(far[known].std()) if known.any() else 0.0
        slope = float(np.polyfit(far[known], logs, 1)[0]) if spread > _LEAST_SPREAD else 0.0
        slopes.append(float(np.clip(slope, 0.0, _MOST_GROWTH)))
        quantiles.append(quantile(np.abs(column) / np.exp(slopes[-1] * far)))
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


def _folds(groups: IntArray, seed: int, count: int = _FOLDS) -> IntArray:
    _, number = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(seed).permutation(number.max() + 1) % count)[number.ravel()]
