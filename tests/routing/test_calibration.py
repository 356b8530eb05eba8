"""Calibration: files, and the curves between price, loss and distinct experts."""

import copy
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from routing_inputs import calibration

from thermoe.errors import BudgetError, DataError
from thermoe.routing.calibration import Calibration, best_within


def test_dictionary_round_trip_is_exact():
    rng = np.random.default_rng(0)
    first = calibration(sensitivity=rng.uniform(0.01, 50.0, (3, 12)))
    again = Calibration.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again.to_dict() == first.to_dict()
    assert np.array_equal(again.sensitivity, first.sensitivity)
    assert again.frontier == first.frontier
    assert set(first.to_dict()) == set(Calibration.__dataclass_fields__)


def corrupt(path, value):
    values = copy.deepcopy(calibration().to_dict())
    target = values
    for key in path[:-1]:
        target = target[key]
    if value is None:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return values


@pytest.mark.parametrize(
    "values",
    [
        corrupt(["sensitivity"], None),
        corrupt(["sensitivity"], [1.0, 2.0]),
        corrupt(["sensitivity"], [[0.0] * 12] * 3),
        corrupt(["sensitivity"], [[float("nan")] * 12] * 3),
        corrupt(["sensitivity"], [[float("inf")] * 12] * 3),
        corrupt(["sensitivity"], [["a"] * 12] * 3),
        corrupt(["sensitivity", 0], [1.0]),
        corrupt(["own_distinct"], [1.0]),
        corrupt(["unheard_of"], 1),
        corrupt(["batch_size"], "sixteen"),
        corrupt(["frontier"], 3),
        corrupt(["frontier", 0], "priced"),
        corrupt(["frontier", 0, "policy"], "guess"),
        corrupt(["frontier", 0, "value"], 0.0),
        corrupt(["frontier", 0, "loss_pct"], float("nan")),
        corrupt(["frontier", 0, "loss_pct"], "1"),
        corrupt(["frontier", 0, "distinct_experts"], [1.0]),
        corrupt(["frontier", 0, "distinct_experts"], None),
        [],
        "text",
        None,
        corrupt(["batch_size"], 0),
        corrupt(["batch_size"], 2.5),
        corrupt(["num_tokens"], True),
        corrupt(["protected_k0"], -1),
        corrupt(["value_power"], -2.0),
        corrupt(["own_distinct"], [10.0, -1.0, 10.0]),
        corrupt(["frontier", 0, "distinct_experts"], [5.0, 5.0, 0.0]),
        corrupt(["frontier", 3, "value"], 2.5),
        corrupt(["frontier"], []),
    ],
)
def test_what_is_no_calibration_is_one_clear_line(values):
    with pytest.raises(DataError) as caught:
        Calibration.from_dict(values)
    assert "\n" not in str(caught.value)


def test_judged_prices_answer_with_their_own_figures():
    c = calibration()
    for price, loss, distinct in ((0.0, 0.0, 10.0), (0.001, 0.2, 9.0), (0.01, 1.0, 8.0), (0.1, 4.0, 5.0)):
        assert c.loss_at(price) == pytest.approx(loss)
        assert c.price_for_loss(loss) == pytest.approx(price)
        assert c.price_for_distinct(distinct) == pytest.approx(price)
        np.testing.assert_allclose(c.distinct_at(price), distinct)


def test_between_judged_prices_the_logarithm_is_interpolated():
    c = calibration()
    assert c.price_for_loss(2.5) == pytest.approx(0.01 * 10**0.5)
    assert c.price_for_distinct(6.5) == pytest.approx(0.01 * 10**0.5)
    assert c.price_for_loss(0.1) == pytest.approx(0.0005)  # below the least price that was judged: linearly to 0


@example(4.0, 3.9999999999999996)
@given(st.floats(0.0, 4.0), st.floats(0.0, 4.0))
def test_price_for_loss_is_monotone_and_inverse_to_loss_at(a, b):
    c = calibration()
    low, high = sorted((a, b))
    assert c.price_for_loss(low) <= c.price_for_loss(high)
    assert c.loss_at(c.price_for_loss(a)) == pytest.approx(a, abs=1e-9)


@given(st.floats(5.0, 10.0), st.floats(5.0, 10.0))
def test_price_for_distinct_is_antitone_and_inverse_to_distinct_at(a, b):
    c = calibration()
    low, high = sorted((a, b))
    assert c.price_for_distinct(low) >= c.price_for_distinct(high)
    np.testing.assert_allclose(c.distinct_at(c.price_for_distinct(a)), a, atol=1e-9)


def test_beyond_what_was_judged():
    c = calibration()
    assert c.price_for_loss(50.0) == pytest.approx(0.1)
    assert c.price_for_loss(-1.0) == 0.0
    assert c.price_for_distinct(11.0) == 0.0
    assert c.loss_at(7.0) == pytest.approx(4.0)
    with pytest.raises(BudgetError, match=r"least that calibration reached is 5\.0"):
        c.price_for_distinct(4.9)


def test_noise_in_the_judged_losses_never_buys_a_price_that_loses_more():
    values = calibration().to_dict()
    for point, loss in zip(values["frontier"][:3], (4.0, 0.7, 0.4), strict=True):
        point["loss_pct"] = loss  # the middle price came out better than the lowest
    c = Calibration.from_dict(values)
    assert c.price_for_loss(0.4) < 0.001
    assert c.price_for_loss(0.7) == pytest.approx(0.01)


def test_a_flat_frontier_gives_its_highest_price():
    values = calibration().to_dict()
    for point in values["frontier"][:3]:
        point["loss_pct"] = 0.0
    assert Calibration.from_dict(values).price_for_loss(0.0) == pytest.approx(0.1)


def test_one_priced_policy_is_no_curve():
    values = calibration().to_dict()
    values["frontier"] = values["frontier"][:1]
    with pytest.raises(DataError, match="fewer than 2"):
        Calibration.from_dict(values).price_for_loss(1.0)


def test_best_within_breaks_ties_by_order_and_heeds_the_limit():
    points = calibration().frontier
    energies = [3.0] * len(points)
    assert best_within(points, 9.0, energies) is points[0]
    assert best_within(points, 0.2, energies).loss_pct == 0.2
