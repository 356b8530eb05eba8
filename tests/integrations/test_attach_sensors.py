"""`thermoe.attach` with measured sensors: the control thread, what it counts, and what it survives."""

import threading
import time

import numpy as np
import pytest
import torch
from attach_helpers import Meter, generate, until, untouched_model
from tiny_models import LAYERS, token_ids

import thermoe
import thermoe.integrations.transformers as attaching
from thermoe.integrations.serving import LONGEST_PAUSE_S, ThreadDriver


@pytest.fixture
def meter(monkeypatch) -> Meter:
    made = Meter()
    monkeypatch.setattr(attaching, "open_source", lambda *_, **__: made)
    return made


@pytest.fixture
def model():
    with untouched_model() as model:
        yield model


def test_measured_sensors_are_followed_by_a_thread(model, meter):
    handle = thermoe.attach(model, power_budget_w=100.0, interval_s=0.05)
    assert {"thermoe-control", "thermoe-monitor-meter"} <= {t.name for t in threading.enumerate()}
    price = handle.plane.knobs.price[0]

    def dearer():
        generate(model, 4)
        return handle.plane.knobs.price[0] > 1.2 * price

    until(dearer)
    assert handle.plane.terms["error_power"] == pytest.approx(np.log(3.0), abs=0.3)
    handle.detach()
    summary = handle.summary()
    assert not [t for t in threading.enumerate() if t.name.startswith("thermoe")]
    assert meter.closed == 1
    assert summary["telemetry"] == summary["energy_j_per_token"]["kind"] == "measured"
    assert summary["priced_as"] == "model"
    assert summary["power_w_mean"] == pytest.approx(300.0, rel=1e-6)
    assert summary["latency_ms"]["mean"] is None
    assert 0 < summary["routing_overhead_pct"] < 100


def test_counters_drained_beside_the_forwards_lose_nothing(model, meter):
    handle = thermoe.attach(model, "opportunistic", settings={"k0": 2}, interval_s=0.05)
    handle._driver.period_s = 0.001
    forwards = 150
    for seed in range(forwards):
        with torch.no_grad():
            model(token_ids(2, 3, seed))
        if seed % 10 == 0:
            handle.summary()
    handle.detach()
    totals = handle._driver.totals
    assert totals.num_tokens == forwards * 6
    assert totals.num_groups == forwards
    assert totals.loads_L.shape == (LAYERS,)


def test_figures_of_sensors_begin_anew_with_a_strategy(model, meter):
    with thermoe.attach(model, "opportunistic", interval_s=0.05) as handle:
        generate(model, 30)
        handle.set_strategy("baseline")
        assert handle.summary()["distinct_experts_mean"] is None
        with torch.no_grad():
            model(token_ids(2, 3))
        summary = handle.summary()
        assert handle._driver.totals.num_tokens == 6
        assert summary["power_w_mean"] == pytest.approx(300.0, rel=1e-6)
        assert summary["energy_j_per_token"]["value"] * summary["tokens_per_s"] == pytest.approx(300.0, rel=0.05)


def test_what_was_counted_since_the_last_look_is_in_the_final_totals(model, meter):
    handle = thermoe.attach(model, "opportunistic", interval_s=30.0)
    with torch.no_grad():
        model(token_ids(2, 3))
    handle.detach()
    assert handle._driver.totals.num_tokens == 6


@pytest.mark.parametrize("telemetry", ["meter", "twin"])
def test_a_failing_control_plane_does_not_stop_serving(model, request, monkeypatch, caplog, telemetry):
    if telemetry == "meter":
        request.getfixturevalue("meter")
    handle = thermoe.attach(model, "opportunistic", settings={"k0": 2}, interval_s=0.05)
    knobs = handle.plane.knobs

    def fail(observation):
        raise ArithmeticError("no knobs today")

    monkeypatch.setattr(handle.plane, "update", fail)

    def logged():
        generate(model, 8)
        return "no knobs today" in caplog.text

    until(logged)
    generate(model)
    assert caplog.text.count("no knobs today") == caplog.text.count("ArithmeticError")
    assert caplog.text.count("control plane failed") == 1
    np.testing.assert_array_equal(handle.hooks.knobs.host.protected_k0, knobs.protected_k0)
    tokens = handle._driver.totals.num_tokens
    handle.detach()
    assert handle._driver.totals.num_tokens >= tokens > 0


def test_silent_sensors_leave_figures_null_and_come_back(model, meter):
    meter.silent = True
    with thermoe.attach(model, power_budget_w=100.0, interval_s=0.05) as handle:
        until(lambda: generate(model, 4) is not None and "loss_total" in handle.plane.terms)
        assert "error_power" not in handle.plane.terms
        summary = handle.summary()
        assert summary["energy_j_per_token"]["value"] is None
        assert summary["power_w_mean"] is None
        meter.silent = False
        until(lambda: generate(model, 4) is not None and "error_power" in handle.plane.terms)


def test_short_pauses_count_towards_the_mean_and_long_ones_do_not(model, meter, monkeypatch):
    handle = thermoe.attach(model, power_budget_w=100.0, interval_s=0.05)
    driver: ThreadDriver = handle._driver
    driver.stop()
    seen = []
    monkeypatch.setattr(handle.plane, "update", seen.append)
    monkeypatch.setattr(handle.hooks, "set_knobs", lambda knobs: None)
    for pause_s in (0.4 * LONGEST_PAUSE_S, 1.1 * LONGEST_PAUSE_S):
        driver._last_s = time.monotonic() - pause_s
        driver._control()
        with torch.no_grad():
            model(token_ids(2, 3))
        driver._control()
    assert seen[0].period_s > 0.4 * LONGEST_PAUSE_S
    assert seen[1].period_s < 0.5 * LONGEST_PAUSE_S
    handle.detach()


def test_counts_polled_by_a_summary_reach_the_next_control_period(model, meter, monkeypatch):
    handle = thermoe.attach(model, power_budget_w=100.0, interval_s=30.0)
    seen = []
    monkeypatch.setattr(handle.plane, "update", lambda observation: seen.append(observation) or handle.plane.knobs)
    for _ in range(3):
        with torch.no_grad():
            model(token_ids(2, 3))
        handle.summary()
    handle._driver._control()
    assert [o.num_tokens for o in seen] == [18]
    assert seen[0].statistics.tokens_per_expert.sum() == 18 * 3 * LAYERS
    handle.detach()


def test_energy_of_a_period_is_its_mean_power_over_its_time_and_unknown_where_power_is(model, meter, monkeypatch):
    handle = thermoe.attach(model, power_budget_w=100.0, interval_s=30.0)
    seen = []
    monkeypatch.setattr(handle.plane, "update", lambda observation: seen.append(observation) or handle.plane.knobs)
    for silent in (False, True):
        meter.silent = silent
        handle._driver.monitor.sample()
        with torch.no_grad():
            model(token_ids(2, 3))
        handle._driver._control()
    assert seen[0].energy_j == pytest.approx(300.0 * seen[0].period_s)
    assert seen[1].energy_j is None
    handle.detach()
