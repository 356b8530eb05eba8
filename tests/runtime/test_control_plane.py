"""The control plane on the digital twin: targets reached, budgets moved, state kept and forgotten."""

import json

import numpy as np
import pytest
from synthetic_serving import SHAPE, Serving, calibration, distinct_at, plane

from thermoe.adaptation.objectives import TERMS
from thermoe.errors import BudgetError, ConfigError
from thermoe.routing.calibration import Calibration
from thermoe.types import Budget, RoutingKnobs, RoutingStrategy

ARRIVAL_S = 0.025  # a step takes about 17 ms


@pytest.fixture(scope="module")
def baseline_j_per_token() -> float:
    serving = Serving(None)
    serving.run(400)
    return serving.j_per_token(0, 400)


@pytest.fixture(scope="module")
def baseline_power_w() -> float:
    serving = Serving(None, period_s=ARRIVAL_S)
    serving.run(400)
    return serving.power_w(100, 399)


def windows(num_steps):
    return [(first, first + 200) for first in range(500, num_steps - 200, 100)]


def same(a: RoutingKnobs | None, b: RoutingKnobs | None) -> bool:
    assert a is not None
    assert b is not None
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in RoutingKnobs.__dataclass_fields__)


@pytest.mark.parametrize("adapter", [0.0, 1.0])
@pytest.mark.parametrize("calibrated", [True, False])
def test_an_energy_target_is_reached_and_held(baseline_j_per_token, adapter, calibrated):
    target = 0.85 * baseline_j_per_token
    budget = Budget(energy_j_per_token=target)
    control = plane(calibrated=calibration() if calibrated else None, budget=budget, adapter=adapter)
    serving = Serving(control)
    serving.run(1400)
    for window in windows(1400):
        assert serving.j_per_token(*window) == pytest.approx(target, rel=0.05)
    assert (np.abs(control.adaptation.bias).max() > 0) == (adapter > 0)


@pytest.mark.parametrize("adapter", [0.0, 1.0])
def test_a_power_target_is_held_at_a_fixed_arrival_rate(baseline_power_w, adapter):
    target = 0.92 * baseline_power_w
    serving = Serving(
        plane(calibrated=calibration(), budget=Budget(power_w=target), adapter=adapter), period_s=ARRIVAL_S
    )
    serving.run(1400)
    for window in windows(1400):
        assert serving.power_w(*window) == pytest.approx(target, rel=0.05)


def test_every_term_is_logged_and_they_add_up():
    control = plane(
        calibrated=calibration(), budget=Budget(energy_j_per_token=0.4, temp_c=30.0), target_tokens_per_s=9e3
    )
    serving = Serving(control)
    serving.run(40)
    price = control.adaptation.price
    serving.run(8)
    terms = control.terms
    for name in TERMS:
        assert f"loss_{name}" in terms
        assert f"weight_{name}" in terms
    assert terms["loss_total"] == pytest.approx(sum(terms[f"loss_{name}"] for name in TERMS))
    for name in ("energy", "temp", "throughput"):
        squared = terms[f"error_{name}"] ** 2
        assert terms[f"loss_{name}"] == pytest.approx(0.5 * terms[f"weight_{name}"] * squared)
        assert terms[f"loss_{name}"] > 0
    assert terms["loss_power"] == terms["loss_latency"] == 0.0
    assert terms["loss_task"] == pytest.approx(np.log1p(calibration().loss_at(price) / 100))
    assert terms["target"] == 0.4
    assert terms["price"] == control.knobs.price[0]
    assert all(np.isfinite(v) for v in terms.values())


def test_the_logged_price_is_the_one_in_force():
    control = plane("kernel_aware", calibrated=calibration(), reserve=0.9)
    idle = control.terms["price"]
    Serving(control).run(16)  # under load the reserve is released
    assert control.terms["price"] == control.knobs.price[0] > idle
    control.switch(RoutingStrategy.OPPORTUNISTIC)
    assert "price" not in control.terms


def test_a_dearer_expert_loses_bias_and_only_relatively():
    runs = {}
    for factor in (1.0, 4.0):
        control = plane(calibrated=calibration(), budget=Budget(power_w=200.0))  # more is drawn whatever the price
        control.set_expert_cost(1, 7, factor)
        Serving(control).run(240)
        runs[factor] = control
    even, dear = (runs[f].knobs.bias for f in (1.0, 4.0))
    assert dear[1, 7] < even[1, 7] - 0.2
    others = np.delete(dear[1] - even[1], 7)
    assert dear[1, 7] - even[1, 7] < others.min()
    learned = runs[4.0].adaptation.bias
    assert learned[1, 7] < runs[1.0].adaptation.bias[1, 7]
    np.testing.assert_allclose(learned.mean(axis=1), 0.0, atol=1e-12)


def test_reset_is_bit_for_bit():
    control = plane(calibrated=calibration(), budget=Budget(energy_j_per_token=0.4), balance_rate=0.01)
    first, knobs = json.dumps(control.state_dict() | {"overhead_s": 0}), control.knobs
    serving = Serving(control)
    serving.run(80)
    assert json.dumps(control.state_dict() | {"overhead_s": 0}) != first
    control.reset()
    assert json.dumps(control.state_dict() | {"overhead_s": 0}) == first
    assert same(control.knobs, knobs)


@pytest.mark.parametrize("strategy", ["kernel_aware_ttha", "kernel_aware", "static_optimal", "opportunistic"])
def test_a_restored_plane_goes_on_as_if_nothing_had_happened(strategy):
    extra = {"balance_rate": 0.01, "mask_above_c": 30.0} if strategy.startswith("kernel_aware") else {}

    def make():
        budget = Budget(energy_j_per_token=0.4)
        return plane(strategy, calibrated=calibration(), budget=budget, **extra)

    one, other = Serving(make()), Serving(make())
    one.run(80)
    other.control.load_state_dict(json.loads(json.dumps(one.control.state_dict())))
    assert same(one.control.knobs, other.control.knobs)
    assert other.control.terms == one.control.terms
    other.twin.load_state_dict(one.twin.state_dict())
    other.rng.bit_generator.state = one.rng.bit_generator.state
    one.run(80)
    other.run(80)
    assert same(one.control.knobs, other.control.knobs)
    assert one.energies_j[80:] == other.energies_j
    states = [json.dumps(s.control.state_dict() | {"overhead_s": 0}) for s in (one, other)]
    assert states[0] == states[1]


def test_a_silent_sensor_is_neither_zero_nor_poison():
    target = 0.42
    control = plane(calibrated=calibration(), budget=Budget(energy_j_per_token=target))
    serving = Serving(control)
    serving.run(80)
    before = control.adaptation.price
    serving.silent = True
    serving.run(40)
    assert control.adaptation.price == before
    assert "error_energy" not in control.terms
    assert control.terms["loss_energy"] == 0.0
    serving.silent = False
    serving.run(8)
    # The first known period counts alone: the silent time is not part of its mean.
    seen = target * np.exp(control.terms["error_energy"])
    assert seen == pytest.approx(serving.j_per_token(120, 128), rel=1e-6)
    serving.run(600)
    assert np.isfinite(control.knobs.bias).all()
    assert serving.j_per_token(500, 720) == pytest.approx(target, rel=0.05)


def test_a_target_out_of_reach_is_refused_and_the_old_budget_stays():
    with pytest.raises(BudgetError, match="J/token was asked for"):
        plane(calibrated=calibration(), budget=Budget(energy_j_per_token=0.01))
    control = plane(calibrated=calibration(), budget=Budget(energy_j_per_token=0.4), target_temp_c=50.0)
    serving = Serving(control)
    serving.run(80)
    state, budget, knobs = json.dumps(control.state_dict()), control.budget, control.knobs
    for refused in (Budget(energy_j_per_token=0.01), Budget(energy_j_per_token=0.25, max_quality_loss_pct=0.2)):
        with pytest.raises(BudgetError):
            control.set_budget(refused)
    assert control.budget == budget
    assert control.adaptation.targets.energy_j_per_token == 0.4
    assert control.adaptation.targets.temp_c == 50.0
    assert json.dumps(control.state_dict()) == state
    assert control.knobs is knobs


def test_static_optimal_keeps_its_choice_where_a_budget_cannot_be_met():
    control = plane("static_optimal", calibrated=calibration(), budget=Budget(max_quality_loss_pct=5.0))
    loose = control.knobs.price[0]
    with pytest.raises(BudgetError):
        control.set_budget(Budget(max_quality_loss_pct=0.01))
    assert control.budget.max_quality_loss_pct == 5.0
    assert control.set_budget(Budget(max_quality_loss_pct=0.5)).price[0] < loose


def test_a_new_target_moves_the_price_by_what_prediction_says_and_keeps_what_was_learned():
    control = plane(calibrated=calibration(), budget=Budget(energy_j_per_token=0.42))
    Serving(control).run(240)
    learned, bias = control.adaptation.price, control.adaptation.bias.copy()
    tighter = control.set_budget(Budget(energy_j_per_token=0.38))
    assert tighter.price[0] > learned
    np.testing.assert_array_equal(control.adaptation.bias, bias)
    back = control.set_budget(Budget(energy_j_per_token=0.42))
    assert back.price[0] == pytest.approx(learned)


def test_a_quality_limit_bounds_the_price_also_after_a_reset():
    control = plane(calibrated=calibration(), budget=Budget(power_w=150.0))
    Serving(control).run(160)
    limit = calibration().price_for_loss(2.0)
    assert control.adaptation.price > limit
    control.set_budget(Budget(power_w=150.0, max_quality_loss_pct=2.0))
    Serving(control).run(80)
    assert control.adaptation.price == pytest.approx(limit)
    control.reset()
    assert control.adaptation.price <= limit
    Serving(control).run(160)
    assert control.adaptation.price <= limit * (1 + 1e-12)


def test_a_changed_limit_replaces_a_target_of_the_settings():
    control = plane(calibrated=calibration(), target_power_w=500.0)
    control.set_budget(Budget(temp_c=60.0))
    assert control.adaptation.targets.power_w == 500.0
    control.set_budget(Budget(power_w=400.0))
    assert control.adaptation.targets.power_w == 400.0


def test_a_refused_switch_leaves_the_old_strategy_serving():
    control = plane("opportunistic", k0=3)
    knobs = control.knobs
    for strategy in (RoutingStrategy.KERNEL_AWARE, RoutingStrategy.STATIC_OPTIMAL):
        with pytest.raises(ConfigError):
            control.switch(strategy)
        assert control.strategy is RoutingStrategy.OPPORTUNISTIC
        assert control.knobs is knobs
    Serving(control).run(16)
    assert control.knobs.protected_k0.tolist() == [3] * SHAPE.num_layers
    control.switch(RoutingStrategy.KERNEL_AWARE_TTHA)
    assert control.adaptation is not None
    control.switch(RoutingStrategy.BASELINE)
    assert control.adaptation is None
    assert control.knobs is None


def test_the_feed_forward_meets_its_target_by_prediction():
    control = plane(calibrated=calibration(), budget=Budget(energy_j_per_token=0.4))
    distinct = distinct_at(control.adaptation.price)
    assert control._step_energy_j(distinct) / 16 == pytest.approx(0.4, rel=0.03)


@pytest.mark.parametrize("arguments", [(9, 0, 2.0), (0, 64, 2.0), (-1, 0, 2.0), (0, 0, 0.0), (0, 0, float("inf"))])
def test_expert_costs_that_cannot_be(arguments):
    with pytest.raises(ConfigError):
        plane("opportunistic").set_expert_cost(*arguments)


def test_a_calibration_of_another_model():
    values = calibration().to_dict()
    values["sensitivity"] = [[1.0] * 32] * 4
    with pytest.raises(ConfigError, match="calibrate this model"):
        plane(calibrated=Calibration.from_dict(values))


@pytest.mark.parametrize("price", [0.0, 1e-9, 1e9])
def test_a_start_price_at_the_edges_stays_finite(price):
    for calibrated in (None, calibration()):
        control = plane(calibrated=calibrated, price=price, target_power_w=300.0)
        Serving(control).run(24)
        assert np.isfinite(control.knobs.price).all()
        assert np.isfinite(control.knobs.bias).all()
