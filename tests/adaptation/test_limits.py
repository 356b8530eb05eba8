"""Whether limits were held, from figures written by hand."""

import pytest

from thermoe.adaptation.limits import all_held, limits_of, told
from thermoe.types import Budget

FIGURES = {
    "power_w_mean": 450.0,
    "energy_j_per_token": {"value": 0.5, "low": None, "high": None, "kind": "simulated"},
    "temp_c_peak": 50.0,
    "latency_ms": {"mean": 12.0, "p90": 14.0, "p99": 20.0},
    "tokens_per_s": 1000.0,
    "perplexity_change_pct": 0.8,
}
NOTHING_KNOWN = {
    "power_w_mean": None,
    "energy_j_per_token": {"value": None, "low": None, "high": None, "kind": None},
    "temp_c_peak": None,
    "latency_ms": {"mean": None, "p90": None, "p99": None},
    "tokens_per_s": None,
    "perplexity_change_pct": None,
}


def held(strategy="kernel_aware_ttha", figures=FIGURES, settings=None, **budget):
    found = limits_of(strategy, Budget(**budget), settings or {}, figures, "simulated")
    return {name: entry["held"] for name, entry in found.items()}


@pytest.mark.parametrize(
    ("budget", "name", "expected"),
    [
        ({"power_w": 450.0}, "power_w", True),
        ({"power_w": 446.0}, "power_w", True),  # 0.9 % over: it is steered to from both sides
        ({"power_w": 445.0}, "power_w", False),
        ({"energy_j_per_token": 0.496}, "energy_j_per_token", True),
        ({"energy_j_per_token": 0.49}, "energy_j_per_token", False),
        ({"temp_c": 49.0}, "temp_c", True),
        ({"temp_c": 48.9}, "temp_c", False),
        ({"latency_s": 0.012}, "latency_ms", True),
        ({"latency_s": 0.0118}, "latency_ms", False),
        ({"max_quality_loss_pct": 0.8}, "quality_loss_pct", True),
        ({"max_quality_loss_pct": 0.79}, "quality_loss_pct", False),
    ],
)
def test_a_limit_is_held_up_to_its_tolerance(budget, name, expected):
    assert held(**budget) == {name: expected}


def test_a_rate_is_a_least_value_and_settings_come_before_the_budget():
    assert held(settings={"target_tokens_per_s": 1009.0}) == {"tokens_per_s": True}
    assert held(settings={"target_tokens_per_s": 1020.0}) == {"tokens_per_s": False}
    found = limits_of("kernel_aware_ttha", Budget(power_w=300.0), {"target_power_w": 500.0}, FIGURES, "measured")
    assert found == {"power_w": {"limit": 500.0, "value": 450.0, "held": True, "kind": "measured"}}


def test_a_strategy_answers_for_the_limits_that_it_heeds():
    limits = {"power_w": 100.0, "max_quality_loss_pct": 0.5}
    assert held("baseline", **limits) == held("opportunistic", **limits) == {}
    assert held("kernel_aware", **limits) == held("static_optimal", **limits) == {"quality_loss_pct": False}
    assert held("kernel_aware_ttha", **limits) == {"power_w": False, "quality_loss_pct": False}


def test_what_is_unknown_is_neither_held_nor_missed():
    found = limits_of("kernel_aware_ttha", Budget(power_w=1.0, temp_c=1.0), {}, NOTHING_KNOWN, "replayed")
    assert [(entry["held"], entry["kind"]) for entry in found.values()] == [(None, None), (None, None)]
    assert (all_held(found), told(found)) == (None, "no reading for 1 W, 1 °C")
    partly = limits_of(
        "kernel_aware_ttha", Budget(power_w=1.0, temp_c=1.0), {}, NOTHING_KNOWN | {"temp_c_peak": 9.0}, None
    )
    assert (all_held(partly), told(partly)) == (False, "missed: 9 > 1 °C")
    one = limits_of(
        "kernel_aware_ttha", Budget(power_w=1.0, temp_c=9.0), {}, NOTHING_KNOWN | {"temp_c_peak": 9.0}, None
    )
    assert (all_held(one), told(one)) == (None, "held: 9 of 9 °C; no reading for 1 W")
    assert (all_held({}), told({})) == (None, None)


def test_what_was_missed_is_told_with_both_numbers():
    budget = Budget(power_w=400.0, latency_s=0.02, max_quality_loss_pct=0.5)
    found = limits_of("kernel_aware_ttha", budget, {"target_tokens_per_s": 2000.0}, FIGURES, "simulated")
    assert told(found) == "missed: 450 > 400 W, 1000 < 2000 tokens/s, 0.8 > 0.5 % loss"
    assert all_held(found) is False
    assert found["quality_loss_pct"]["kind"] is None


def test_what_was_held_is_told_with_both_numbers_also_where_it_uses_its_tolerance():
    budget = Budget(power_w=446.0, latency_s=0.02, max_quality_loss_pct=1.0)
    found = limits_of("kernel_aware_ttha", budget, {"target_tokens_per_s": 900.0}, FIGURES, "simulated")
    assert told(found) == "held: 450 of 446 W, 12 of 20 ms, 1000 of 900 tokens/s, 0.8 of 1 % loss"
    assert all_held(found) is True
