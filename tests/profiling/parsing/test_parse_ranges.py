"""The innermost open range against a search through all ranges."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from thermoe.profiling.parsing.ranges import innermost, innermost_by_thread

range_lists = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 2)), max_size=12)
moments = st.lists(st.tuples(st.integers(-2, 65), st.integers(0, 3)), min_size=1, max_size=12)


def begins_last(ranges, thread, at):
    """Start and end of the open range that began last, the shorter of two that began together."""
    around = [(s, s + n) for s, n, owner in ranges if owner == thread and s <= at <= s + n]
    return max(around, key=lambda pair: (pair[0], -pair[1]), default=None)


@settings(deadline=None, max_examples=200)
@given(ranges=range_lists, asked=moments)
def test_each_moment_gets_the_range_that_began_last_on_its_thread(ranges, asked):
    start, length, owner = (
        np.array(column, dtype=np.int64) for column in (zip(*ranges, strict=True) if ranges else ([], [], []))
    )
    at, thread = (np.array(column, dtype=np.int64) for column in zip(*asked, strict=True))

    index = innermost_by_thread(owner, start, start + length, thread, at)

    got = [None if i < 0 else (int(start[i]), int(start[i] + length[i])) for i in index]
    assert got == [begins_last(ranges, who, when) for when, who in asked]
    assert all(i < 0 or owner[i] == who for i, (_, who) in zip(index, asked, strict=True))


def test_many_nested_ranges_are_quick():
    depth = 50_000
    start = np.arange(depth, dtype=np.int64)
    end = 2 * depth - start
    assert innermost(start, end, np.array([depth, depth + 1000, 3 * depth])).tolist() == [depth - 1, depth - 1000, -1]
