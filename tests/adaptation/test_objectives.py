"""Errors, loss terms and targets, by hand."""

import numpy as np
import pytest

from thermoe.adaptation.objectives import (
    TERMS,
    Observed,
    Targets,
    log_errors,
    loss_terms,
    state_weights,
    steering_error,
)
from thermoe.routing.settings import resolve_settings
from thermoe.types import Budget, RoutingStrategy


def test_errors_are_logarithms_above_zero_where_too_much_is_used():
    observed = Observed(power_w=500.0, temp_c=44.0, latency_s=0.02, tokens_per_s=800.0, energy_j_per_token=0.5)
    targets = Targets(power_w=400.0, temp_c=55.0, latency_s=0.01, tokens_per_s=1000.0, energy_j_per_token=0.5)
    errors = log_errors(observed, targets)
    assert errors == pytest.approx(
        {"power": np.log(1.25), "temp": np.log(0.8), "latency": np.log(2), "throughput": np.log(1.25), "energy": 0.0}
    )
    assert steering_error(errors) == pytest.approx(np.log(2))


def test_a_silent_sensor_and_a_missing_target_make_no_error():
    assert log_errors(Observed(power_w=None, temp_c=50.0), Targets(power_w=400.0, latency_s=1.0)) == {}
    assert steering_error({}) == 0.0


def test_loss_terms_add_up_and_name_every_term():
    errors = {"power": 0.2, "energy": -0.3}
    weights = state_weights(errors)
    assert weights["power"] == 4.0
    assert weights["energy"] == weights["temp"] == 1.0
    terms = loss_terms(errors, weights)
    assert set(terms) == {f"loss_{name}" for name in TERMS} | {"loss_total"}
    assert terms["loss_power"] == pytest.approx(0.5 * 4.0 * 0.04)
    assert terms["loss_energy"] == pytest.approx(0.5 * 0.09)
    assert terms["loss_temp"] == 0.0
    assert terms["loss_total"] == pytest.approx(sum(v for k, v in terms.items() if k != "loss_total"))


def test_targets_come_from_settings_before_the_budget():
    settings = resolve_settings(RoutingStrategy.KERNEL_AWARE_TTHA, {"target_power_w": 410.0, "target_latency_ms": 25.0})
    targets = Targets.of(Budget(power_w=300.0, temp_c=60.0, latency_s=1.0), settings)
    assert targets == Targets(power_w=410.0, temp_c=60.0, latency_s=0.025)
    assert targets.first() == 410.0
    assert Targets().first() is None
