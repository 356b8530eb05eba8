"""Which cases to spend time on: the next one is always where least is known. No torch.

Costs are smooth in the logarithms of the sizes, so what a measured case says about another falls with their distance
there. The variance of a Gaussian process whose covariance falls in that way needs no costs, only the places of the
measurements; the greedy choice of the largest variance covers the space and never measures the same thing twice.
Where a fitted model is at hand, the width of its intervals weighs the variance.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from thermoe.cost.rows import CostRow
from thermoe.profiling.case import WEIGHT_BITS, Case
from thermoe.types import FloatArray, IntArray

NOISE = 1e-2  # a case measured twice tells a little more
OTHER_KIND = 0.75  # covariance between implementations, formats and loads, of that at the same place
_LENGTHS = np.array([2.0, 2.0, 2.5, 2.0, 3.0, 1.5, 2.0])  # of D, I, E, k, rows, experts, context [log2]
MAX_CANDIDATES = 3000

Uncertainty = Callable[[Case], float]


def order(
    candidates: Sequence[Case],
    known: Iterable[CostRow] = (),
    uncertainty: Uncertainty | None = None,
    count: int | None = None,
) -> list[Case]:
    """Candidates of one operation in the order in which to measure them.

    Args:
        candidates: All of the same operation.
        known: What is measured already; rows of other operations are not looked at.
        uncertainty: Relative width of a prediction's interval; the same for all if None.
        count: How many to choose; all if None.
    """
    if not candidates:
        return []
    candidates = _thinned(candidates)
    op = candidates[0].op
    known_rows = [row for row in known if row.op == op][-MAX_CANDIDATES:]
    places = np.array([*(_place(c) for c in candidates), *(_place(r) for r in known_rows)])
    kinds = [*(_kind(c) for c in candidates), *(_kind(r) for r in known_rows)]
    weight = np.ones(len(candidates))
    if uncertainty is not None:
        weight = np.maximum([uncertainty(c) for c in candidates], 1e-6) ** 2
    chosen = _greedy(places, _numbered(kinds), weight, min(count or len(candidates), len(candidates)))
    return [candidates[i] for i in chosen]


def _greedy(places: FloatArray, kinds: IntArray, weight: FloatArray, count: int) -> list[int]:
    """Indices of `count` of the first `len(weight)` places; those behind them are known from the start."""
    num_candidates, total = len(weight), len(places)
    factor = np.zeros((total, total - num_candidates + count))
    variance = np.ones(total)
    taken = np.zeros(num_candidates, dtype=np.bool_)
    chosen: list[int] = []
    for step in range(factor.shape[1]):
        known = num_candidates + step
        if known < total:
            pick = known
        else:
            score = np.where(taken, -1.0, variance[:num_candidates] * weight)
            pick = int(score.argmax())
            taken[pick] = True
            chosen.append(pick)
        column = _covariance(places, kinds, pick) - factor[:, :step] @ factor[pick, :step]
        column /= np.sqrt(max(variance[pick], 0.0) + NOISE)
        factor[:, step] = column
        variance = np.maximum(variance - column**2, 0.0)
    return chosen


def _covariance(places: FloatArray, kinds: IntArray, at: int) -> FloatArray:
    squared = (((places - places[at]) / _LENGTHS) ** 2).sum(axis=1)
    covariance: FloatArray = np.exp(-0.5 * squared) * np.where(kinds == kinds[at], 1.0, OTHER_KIND)
    return covariance


def _place(case: Case | CostRow) -> list[float]:
    touched = case.distinct_experts if isinstance(case, Case) else case.active_experts
    sizes = (case.hidden_size, case.inter_size, case.num_experts, case.top_k, case.routed_rows, touched, case.context)
    return [float(np.log2(size)) for size in sizes]


def _kind(case: Case | CostRow) -> tuple[str, float, str]:
    return (case.impl, WEIGHT_BITS.get(case.dtype, 16.0), f"{case.dtype} {case.load}")


def _numbered(kinds: Sequence[tuple[str, float, str]]) -> IntArray:
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return np.array([numbers[kind] for kind in kinds])


def _thinned(candidates: Sequence[Case]) -> Sequence[Case]:
    if len(candidates) <= MAX_CANDIDATES:
        return candidates
    kept = np.random.default_rng(0).permutation(len(candidates))[:MAX_CANDIDATES]
    return [candidates[i] for i in sorted(kept.tolist())]
