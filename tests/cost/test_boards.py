"""Boards of one product side by side: energies of one as another would have taken them."""

from dataclasses import replace

import numpy as np
import pytest
from cost_rows import synthetic_rows

from thermoe.cost.boards import boards_by_occasion, boards_of, same_board, tells_board
from thermoe.cost.database import CostDatabase
from thermoe.cost.fitted import dynamic_energy_j
from thermoe.cost.held_out import predictions
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import group_database
from thermoe.cost.roofline import H200

REST_W, FACTOR, REFERENCE_REST_W = 131.0, 0.9, 125.0
ONE, OTHER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def row(like, occasion, op, latency_us, power_w, throttled=False):
    return replace(
        like,
        occasion=occasion,
        op=op,
        impl="torch",
        tokens=int(latency_us),
        routed_rows=int(latency_us),
        active_experts=1,
        top_k=1,
        latency_us=latency_us,
        latency_low_us=latency_us,
        latency_high_us=latency_us,
        latency_sustained_us=latency_us,
        energy_mj=power_w * latency_us * 1e-3,
        energy_integrated_mj=None,
        power_w=power_w,
        bytes_moved=1e6 * latency_us,
        throttled=throttled,
    )


@pytest.fixture
def rows():
    like = synthetic_rows()[0]
    first = [
        row(like, ONE, "copy", 1500.0, 525.0),
        row(like, ONE, "copy", 1.0, 125.0),
        row(like, ONE, "norm", 9.0, 300.0),
    ]
    other_w = REST_W + FACTOR * (525.0 - REFERENCE_REST_W)
    return [*first, row(like, OTHER, "copy", 1500.0, other_w), row(like, OTHER, "norm", 1.0, REST_W)]


def test_a_board_is_known_by_its_long_copy_and_its_rest(rows):
    boards, reference = boards_by_occasion(rows)
    assert (reference.rest_w, reference.above_w) == (125.0, 400.0)
    found = boards_of(rows, boards, reference)
    assert found.factor == pytest.approx([1, 1, 1, FACTOR, FACTOR])
    assert found.rest_w == pytest.approx([125, 125, 125, REST_W, REST_W])


def test_energies_go_to_the_reference_and_back(rows):
    found = boards_of(rows, *boards_by_occasion(rows)).take(np.array([3, 4]))
    latency_s = np.array([2e-3, 1e-6])
    energy_j = (REST_W + FACTOR * np.array([200.0, 0.0])) * latency_s
    there_j = found.to_reference_j(energy_j, latency_s, np.array([False, False]))
    assert there_j / latency_s == pytest.approx([REFERENCE_REST_W + 200.0, REFERENCE_REST_W])
    assert found.from_reference_j(there_j, latency_s, 700.0) == pytest.approx(energy_j)


def test_work_at_the_power_limit_takes_the_same_on_every_board(rows):
    found = boards_of(rows, *boards_by_occasion(rows)).take(np.array([3]))
    at_limit_j, latency_s = np.array([0.699]), np.array([1e-3])
    assert found.to_reference_j(at_limit_j, latency_s, np.array([True])) == pytest.approx(at_limit_j)
    assert found.from_reference_j(at_limit_j, latency_s, 700.0) == pytest.approx(at_limit_j)


def test_only_the_same_copy_tells(rows):
    """The other sweep has a longer copy, which draws less: with it alone the board would look thrifty."""
    longer = replace(rows[3], tokens=9000, routed_rows=9000, bytes_moved=9e9, power_w=250.0)
    rows = [*rows, replace(rows[2], power_w=310.0), replace(rows[2], power_w=290.0)]  # most energies are of the first
    boards, reference = boards_by_occasion([*rows, longer])
    assert boards_of([longer], boards, reference).factor == pytest.approx([FACTOR])
    alone, reference = boards_by_occasion([*rows[:3], *rows[5:], longer, rows[4]])
    assert boards_of([longer], alone, reference).factor == pytest.approx([1.0])
    short = [replace(r, tokens=2, routed_rows=2, bytes_moved=2e6, power_w=140.0) for r in (rows[0], rows[3])]
    too_short, reference = boards_by_occasion([*rows[:3], *rows[5:], *short, longer, rows[4]])
    assert boards_of([longer], too_short, reference).factor == pytest.approx([1.0])


def test_the_longest_copy_and_the_row_at_rest_of_each_occasion_tell(rows):
    latency_alone = replace(rows[0], energy_mj=None, power_w=None, bytes_moved=9e9)
    assert tells_board([*rows, latency_alone]).tolist() == [True, True, False, True, True, False]
    assert not tells_board(rows[:3]).any()


@pytest.mark.parametrize("spoil", ["no copy", "throttled copy", "never at rest", "another device"])
def test_a_board_that_does_not_tell_is_taken_for_the_reference(rows, spoil):
    copy, rest = rows[3], rows[4]
    spoilt = {
        "no copy": [replace(copy, op="gemm"), rest],
        "throttled copy": [replace(copy, throttled=True), rest],
        "never at rest": [copy, replace(rest, power_w=300.0)],
        "another device": [replace(copy, power_w=2000.0), rest],
    }[spoil]
    boards, reference = boards_by_occasion([*rows[:3], *spoilt])
    assert set(boards) == {ONE}
    assert boards_of(spoilt, boards, reference).factor == pytest.approx([1.0, 1.0])


def test_nothing_known_changes_nothing():
    energy_j, latency_s = np.array([0.3, np.nan]), np.array([1e-3, 1e-3])
    assert boards_by_occasion([]) == ({}, None)
    nothing = same_board(2)
    assert nothing.to_reference_j(energy_j, latency_s, np.array([False, False])) == pytest.approx(energy_j, nan_ok=True)
    assert nothing.from_reference_j(energy_j, latency_s, 700.0) == pytest.approx(energy_j, nan_ok=True)


def elsewhere(r):
    """A row of a board that takes 120 W at rest as the other board would have measured it."""
    power_w = REST_W + FACTOR * (r.power_w - 120.0)
    return replace(r, occasion=OTHER, power_w=power_w, energy_mj=power_w * r.latency_sustained_us * 1e-3)


def plain_rows():
    """Rows of one board, and those that tell it."""
    plain = [replace(r, occasion=ONE) for r in synthetic_rows() if not r.throttled]
    return plain, [row(plain[0], ONE, "copy", 1500.0, 525.0), row(plain[0], ONE, "copy", 1.0, 120.0)]


def test_laws_are_fitted_to_what_the_reference_would_have_taken():
    plain, marks = plain_rows()
    alone = group_database(CostDatabase([*plain, *marks]))["expert_mlp"]
    mixed = [*plain[::2], *map(elsewhere, plain[1::2]), *marks, *map(elsewhere, marks)]
    both = group_database(CostDatabase(mixed))["expert_mlp"]
    expected = dynamic_energy_j(alone, H200)
    found = dynamic_energy_j(both, H200)
    assert found == pytest.approx(np.concatenate([expected[::2], expected[1::2]]))
    assert both.energy_j[-1] != pytest.approx(alone.energy_j[-1], rel=0.01)


def test_two_boards_are_predicted_as_well_as_one():
    """Half the rows as another board would have measured them: told apart, they cost no accuracy."""
    plain, marks = plain_rows()
    mixed = [*plain[::2], *map(elsewhere, plain[1::2]), *marks, *map(elsewhere, marks)]
    errors = []
    for rows in ([*plain, *marks], mixed, [replace(r, occasion=ONE) for r in mixed]):
        database = CostDatabase(rows)
        found = predictions(KernelCostModel().fit(database), group_database(database)["expert_mlp"])
        errors.append(float(np.mean(np.abs(found.energy_j / found.measured_j - 1))))
    one, two, taken_for_one = errors
    assert two < 1.1 * one + 0.001
    assert taken_for_one > 1.5 * two
