"""Intervals, tests and effect sizes for paired batches; every random draw is seeded.

Shapes: N units (inputs, with seeds and passes pooled), R resamples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from thermoe.types import BoolArray, FloatArray, IntArray

NUM_RESAMPLES = 2000
MIN_UNITS = 3
_LEVEL = 0.90
_SEED = 20261
_NUM_SIGN_FLIPS = 9999


class Interval(NamedTuple):
    """A value and its 90 % interval; the ends are None with fewer than `MIN_UNITS` units."""

    value: float
    low: float | None
    high: float | None


def reduction(change_pct: Interval) -> Interval:
    """A change [%] told as a reduction: the sign turned, the ends swapped."""
    value, low, high = change_pct
    return Interval(0.0 - value, None if high is None else 0.0 - high, None if low is None else 0.0 - low)


def resample_counts(num_units: int, num_resamples: int = NUM_RESAMPLES, seed: int = _SEED) -> IntArray:
    """(R, N) how often each unit is drawn in each resample of N units with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_units, np.full(num_units, 1.0 / num_units), size=num_resamples)


def bootstrap(sums: FloatArray, statistic: Callable[[FloatArray], FloatArray]) -> Interval:
    """90 % percentile interval of a statistic of sums over units.

    All columns of one unit are drawn together, so a difference between columns is a paired one.

    Args:
        sums: (N, C) what each unit adds to each of C sums.
        statistic: Maps (..., C) summed columns to (...) values.

    Returns:
        The statistic of the whole sample and its interval.
    """
    value = float(statistic(sums.sum(axis=0)))
    if len(sums) < MIN_UNITS:
        return Interval(value, None, None)
    draws = statistic(resample_counts(len(sums)) @ sums)
    tail = 50.0 * (1.0 - _LEVEL)
    low, high = np.percentile(draws, [tail, 100.0 - tail])
    return Interval(value, float(low), float(high))


def sign_flip_p_value(differences_N: FloatArray) -> float | None:
    """Two-sided permutation test that paired differences are as likely to be positive as negative.

    Exact where all sign patterns can be tried. None with fewer than `MIN_UNITS` pairs.
    """
    if len(differences_N) < MIN_UNITS:
        return None
    if not np.any(differences_N):
        return 1.0
    # Rounding must not make equally extreme sign patterns look less extreme than the sample itself.
    scaled = np.round(differences_N / np.abs(differences_N).max(), 12)
    result = stats.permutation_test(
        (scaled,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_NUM_SIGN_FLIPS,
        rng=np.random.default_rng(_SEED),
    )
    return float(result.pvalue)


def cliffs_delta(first_N: FloatArray, second_M: FloatArray) -> float | None:
    """Share of pairs with first > second less the share with first < second, in [-1, 1]."""
    if not len(first_N) or not len(second_M):
        return None
    return float(np.sign(first_N[:, None] - second_M[None, :]).mean())


def cohens_dz(differences_N: FloatArray) -> float | None:
    """Mean of paired differences over their standard deviation; None where they do not vary."""
    if len(differences_N) < 2:
        return None
    spread = float(np.std(differences_N, ddof=1))
    scale = float(np.abs(differences_N).max())
    return float(np.mean(differences_N)) / spread if spread > 1e-12 * scale else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for their number by Holm's step-down rule; None stays None and is not counted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, index) in enumerate(known):
        running = max(running, min(1.0, p * (len(known) - rank)))
        adjusted[index] = running
    return adjusted


def pareto_front(points: FloatArray) -> BoolArray:
    """Which points no other point beats, less being better in both coordinates.

    Args:
        points: (N, 2); a row with NaN is never on the front.

    Returns:
        (N,) mask; of equal points all are on the front or none.
    """
    front = np.zeros(len(points), dtype=np.bool_)
    order = np.lexsort((points[:, 1], points[:, 0]))
    best, best_x = np.inf, np.nan
    for index in order:
        x, y = points[index]
        if np.isnan(x) or np.isnan(y):
            continue
        if y < best or (y == best and x == best_x):
            front[index] = True
            best, best_x = y, x
    return front
