"""Rows of each expert, told from three figures, against loads drawn as the profiler draws them."""

import numpy as np
import pytest
from drawn_loads import SIZES, drawn, told

from thermoe.cost.loads import Loads, even_loads
from thermoe.cost.ragged import spread

TILES = (4, 8, 16, 64, 128)
# Largest and mean relative error of the sum of rows and of tiles over all cases below. Loads by Zipf's law that the
# number of tokens cuts off are the hardest: nothing tells how many experts are full.
BOUNDS = {"random": (0.06, 0.006), "zipf": (0.18, 0.015), "balanced": (0.17, 0.006)}


def cases() -> list[tuple[int, int, int, int]]:
    found = []
    for num_experts, top_k in SIZES:
        for tokens in (1, 4, 16, 64, 256, 1024, 4096):
            for share in (0.1, 0.3, 0.6, 1.0):
                distinct = max(top_k, int(num_experts * share))
                if distinct <= tokens * top_k:
                    found.append((num_experts, top_k, tokens, distinct))
    return found


def loads_of(rows: float, distinct: float, fullest: float) -> Loads:
    return even_loads(np.array([rows]), np.array([distinct]), np.array([fullest * distinct / rows]))


@pytest.mark.parametrize("load", BOUNDS)
def test_rows_experts_and_tiles_are_those_of_drawn_loads(load):
    errors = []
    for case in cases():
        draws = drawn(*case, load, count=8)
        rows, experts = spread(told(draws))
        assert experts.sum(axis=1) == pytest.approx(float(case[3]))
        assert rows[:, -1] == pytest.approx([d.max() for d in draws])
        assert (rows >= 1.0).all()
        assert (rows <= rows[:, -1:]).all()
        pairs = [((rows * experts).sum(axis=1), [d.sum() for d in draws])]
        pairs += [((np.ceil(rows / c) * experts).sum(axis=1), [np.ceil(d / c).sum() for d in draws]) for c in TILES]
        errors.append([float(np.mean(got) / np.mean(want) - 1.0) for got, want in pairs])
    most, mean = BOUNDS[load]
    assert np.abs(errors).max() < most
    assert (np.abs(errors).mean(axis=0) < mean).all()


def test_a_single_expert_has_all_rows():
    rows, experts = spread(loads_of(37.0, 1.0, 37.0))
    assert (rows * experts).sum() == pytest.approx(37.0)
    assert experts[0].tolist() == [0.0] * (experts.shape[1] - 1) + [1.0]


@pytest.mark.parametrize(("distinct", "each"), [(8, 1), (64, 1), (5, 3), (12, 170), (2, 4096)])
def test_experts_of_the_same_load_have_just_that(distinct, each):
    rows, experts = spread(loads_of(float(distinct * each), distinct, each))
    assert (rows == each).all()
    assert experts.sum() == pytest.approx(distinct)


def test_a_skew_of_six_digits_fills_no_further_tile():
    rows, _ = spread(even_loads(np.array([96.0]), np.array([28.0]), np.array([1.16667])))
    assert rows[0, -1] == 4.0


@pytest.mark.parametrize(("rows", "distinct"), [(128.0, 82.4), (10.7, 4.1), (33.3, 30.0), (5.5, 1.5)])
def test_real_counts_are_shared_in_whole_rows_around_the_mean(rows, distinct):
    each, experts = spread(loads_of(rows, distinct, rows / distinct))
    mean = rows / distinct
    assert set(each[0, :-1]) <= {np.floor(mean), np.ceil(mean)}
    assert (each * experts).sum() == pytest.approx(rows, rel=0.06)
    assert experts.sum() == pytest.approx(distinct)


@pytest.mark.parametrize(
    ("rows", "distinct", "fullest"),
    [(0, 0, 0), (0, 8, 0), (0.3, 0.2, 0.3), (8, 8, 50), (100, 7, 1e6), (1e-9, 1e-9, 1), (2**40, 3, 2**40), (5, 9, 2)],
)
def test_nothing_overflows_and_no_expert_has_more_than_all_rows(rows, distinct, fullest):
    one = Loads(*(np.array([float(v)]) for v in (rows, distinct, fullest)), tiles=np.ones((1, 5)))
    with np.errstate(all="raise", under="ignore"):
        each, experts = spread(one)
    assert np.isfinite(each).all()
    assert np.isfinite(experts).all()
    assert (experts >= 0).all()
    assert each.max() <= max(rows, 1.0)


def test_more_of_the_fullest_makes_loads_fall_more_without_a_step():
    skews = np.linspace(1.0, 8.0, 400)
    rows, _ = spread(even_loads(np.full(400, 4096.0), np.full(400, 64.0), skews))
    unevenness = rows[:, :-1].max(axis=1) / rows[:, :-1].min(axis=1)
    assert unevenness[0] == 1.0
    assert unevenness[-1] > 10.0
    assert np.abs(np.diff(np.log(unevenness))).max() < 0.3
