"""Where the price starts and may go, and how strongly it acts."""

import numpy as np
import pytest

from thermoe.adaptation import PricePlan, Targets, plan_price, price_response, refuse_below_idle
from thermoe.adaptation.price_plan import LEAST_RESPONSE, PRICE_SPAN, UNCALIBRATED_PRICE, UNCALIBRATED_RESPONSE
from thermoe.errors import BudgetError
from thermoe.routing.calibration import Calibration, FrontierPoint
from thermoe.routing.settings import resolve_settings
from thermoe.telemetry import IdleFigures
from thermoe.types import Budget, RoutingStrategy

PRICES = np.geomspace(1e-3, 0.1, 41)


def calibration(distinct) -> Calibration:
    points = [
        FrontierPoint(policy="priced", value=float(p), loss_pct=100 * float(p), distinct_experts=(distinct(p),) * 2)
        for p in PRICES
    ]
    return Calibration(
        model_type="tiny",
        batch_size=10,
        num_tokens=1000,
        sensitivity=np.ones((2, 4)),
        value_power=2.0,
        protected_k0=1,
        own_distinct=np.full(2, distinct(1e-3)),
        own_perplexity=10.0,
        frontier=tuple(points),
    )


CURVE = calibration(lambda p: 4.0 * float(p) ** -0.3)


def plan(targets=None, budget=None, calibrated=CURVE, **settings) -> PricePlan:
    resolved = resolve_settings(RoutingStrategy.KERNEL_AWARE_TTHA, settings)
    return plan_price(targets or Targets(), resolved, budget or Budget(), calibrated, lambda d: float(d.sum()))


def test_an_energy_target_starts_at_the_price_that_meets_it_by_prediction():
    # two layers of 4 p^-0.3 joules over 10 tokens
    start = plan(Targets(energy_j_per_token=0.8 * 0.02**-0.3)).start
    assert start == pytest.approx(0.02, rel=0.07)  # the grid's step


def test_out_of_reach_by_more_than_a_tenth_is_refused_and_by_less_is_tried():
    least = 0.8 * 0.1**-0.3
    assert plan(Targets(energy_j_per_token=least / 1.09)).start == pytest.approx(0.1)
    with pytest.raises(BudgetError, match=f"{least:.3g}"):
        plan(Targets(energy_j_per_token=least / 1.11))
    with pytest.raises(BudgetError):
        plan(Targets(energy_j_per_token=least), Budget(max_quality_loss_pct=1.0))


def test_a_target_that_cannot_be_predicted_starts_near_the_models_own_routing():
    for targets in (Targets(power_w=400.0), Targets(temp_c=50.0), Targets(latency_s=0.01)):
        assert plan(targets).start == pytest.approx(1e-3)


def test_without_a_target_the_default_quality_loss_decides():
    assert plan().start == pytest.approx(0.01)
    assert plan(max_quality_loss_pct=3.0).start == pytest.approx(0.03, rel=1e-2)


def test_bounds():
    assert (plan().low, plan().high) == pytest.approx((1e-3, 0.1))
    limited = plan(budget=Budget(max_quality_loss_pct=0.5))
    assert limited.high == limited.start == pytest.approx(0.005, rel=1e-2)
    assert plan(budget=Budget(max_quality_loss_pct=0.0)) == PricePlan(start=1e-3, low=1e-3, high=1e-3)
    assert plan(price=7.0).start == pytest.approx(0.1)
    assert plan(price=0.0).start == pytest.approx(1e-3)


def test_without_a_calibration_it_is_wide_around_the_start():
    free = plan(calibrated=None)
    assert (free.start, free.low, free.high) == (
        UNCALIBRATED_PRICE,
        UNCALIBRATED_PRICE / PRICE_SPAN,
        UNCALIBRATED_PRICE * PRICE_SPAN,
    )
    assert plan(calibrated=None, price=0.3).start == 0.3


@pytest.mark.parametrize("price", [0.002, 0.01, 0.05])
def test_the_response_is_the_slope_of_the_calibrated_curve(price):
    assert price_response(CURVE, price) == pytest.approx(0.3, rel=1e-3)
    assert price_response(calibration(lambda p: 5.0), price) == LEAST_RESPONSE
    assert price_response(None, price) == UNCALIBRATED_RESPONSE


@pytest.mark.parametrize(
    ("targets", "idle", "said"),
    [
        (
            {"power_w": 100.0},
            {"power_w": 117.0},
            "100 W was asked for; the board draws 117 W without any work: ask for",
        ),
        ({"power_w": 117.0}, {"power_w": 117.0}, "117 W"),
        ({"temp_c": 20.0}, {"temp_c": 33.9, "power_w": 117.0}, "20 deg C was asked for; the board is at 33.9 deg C"),
    ],
)
def test_what_an_idle_board_takes_cannot_be_undercut(targets, idle, said):
    with pytest.raises(BudgetError, match=said):
        refuse_below_idle(Targets(**targets), IdleFigures(board="the board", **idle))


@pytest.mark.parametrize(
    ("targets", "idle"),
    [
        ({"power_w": 118.0, "temp_c": 20.0}, IdleFigures(board="b", power_w=117.0)),
        ({"power_w": 1.0}, IdleFigures(board="b", temp_c=33.9)),
        ({"power_w": 1.0, "temp_c": 1.0}, None),
        ({"energy_j_per_token": 1e-9, "latency_s": 1e-9}, IdleFigures(board="b", power_w=117.0, temp_c=33.9)),
    ],
)
def test_limits_above_it_or_against_what_is_unknown_are_taken(targets, idle):
    refuse_below_idle(Targets(**targets), idle)


def test_without_a_calibration_only_what_no_routing_meets_is_out_of_reach():
    settings, budget = resolve_settings(RoutingStrategy.KERNEL_AWARE_TTHA, {}), Budget()

    def planned(wanted, least):
        return plan_price(Targets(energy_j_per_token=wanted), settings, budget, None, lambda d: 1.0, None, least)

    assert planned(0.01 / 1.09, 0.01).start == planned(1e-6, None).start == UNCALIBRATED_PRICE
    with pytest.raises(BudgetError, match="for any routing of any batch is 0"):
        planned(0.01 / 1.11, 0.01)
