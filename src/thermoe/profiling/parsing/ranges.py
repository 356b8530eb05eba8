"""Which range was open at a moment: ranges of one thread, nested or overlapping."""

import numpy as np

from thermoe.types import IntArray


def innermost(start_ns: IntArray, end_ns: IntArray, time_ns: IntArray) -> IntArray:
    """Index of the range, of those that are open at each moment, that began last.

    Args:
        start_ns, end_ns: (R,) ranges of one thread, in any order; both ends belong to the range.
        time_ns: (Q,) moments.

    Returns:
        (Q,) index into the ranges; -1 where none is open. Of ranges that begin together the shorter wins.
    """
    if start_ns.size == 0:
        return np.full(time_ns.shape, -1, dtype=np.int64)
    order = np.lexsort((-end_ns, start_ns))
    ends = end_ns[order]
    around = _next_longer_before(ends)
    at: IntArray = np.searchsorted(start_ns[order], time_ns, side="right").astype(np.int64) - 1
    pending = np.flatnonzero(at >= 0)
    while pending.size:  # one pass for each level that has ended already
        pending = pending[ends[at[pending]] < time_ns[pending]]
        at[pending] = around[at[pending]]
        pending = pending[at[pending] >= 0]
    return np.where(at >= 0, order[at], -1)


def _next_longer_before(ends: IntArray) -> IntArray:
    """For each range, in order of their starts, the last one before it that ends later; -1 if there is none.

    When a range has ended, so have all between it and that one: nothing is missed by jumping there.
    """
    found = np.full(ends.shape, -1, dtype=np.int64)
    values = ends.tolist()
    open_ranges: list[int] = []
    for index, end in enumerate(values):
        while open_ranges and values[open_ranges[-1]] <= end:
            open_ranges.pop()
        if open_ranges:
            found[index] = open_ranges[-1]
        open_ranges.append(index)
    return found


def innermost_by_thread(
    range_thread: IntArray, start_ns: IntArray, end_ns: IntArray, thread: IntArray, time_ns: IntArray
) -> IntArray:
    """As `innermost`, for ranges and moments of several threads: (Q,) index into all ranges, -1 where none is open."""
    result = np.full(time_ns.shape, -1, dtype=np.int64)
    if range_thread.size == 0:
        return result
    by_thread = np.argsort(range_thread, kind="stable")
    queries = np.argsort(thread, kind="stable")
    range_ids, range_first = np.unique(range_thread[by_thread], return_index=True)
    range_last = np.append(range_first[1:], range_thread.size)
    query_first = np.searchsorted(thread[queries], range_ids, side="left")
    query_last = np.searchsorted(thread[queries], range_ids, side="right")
    for low, high, first, last in zip(range_first, range_last, query_first, query_last, strict=True):
        mine, asked = by_thread[low:high], queries[first:last]
        if asked.size:
            local = innermost(start_ns[mine], end_ns[mine], time_ns[asked])
            result[asked] = np.where(local >= 0, mine[local], -1)
    return result
