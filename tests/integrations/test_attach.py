"""`thermoe.attach` on a tiny Qwen3-MoE: the twin, a measured source of the test's own, and everything taken back."""

import json
import threading
import time

import numpy as np
import pytest
import torch
from tiny_models import EXPERTS, LAYERS, tiny_model, token_ids

import thermoe
import thermoe.integrations.transformers as attaching
from thermoe.errors import BudgetError, ConfigError, DataError, UnsupportedModelError
from thermoe.integrations.calibrate import calibrate
from thermoe.integrations.serving import LONGEST_PAUSE_S, ThreadDriver
from thermoe.types import Kind, SysState

SUMMARY_KEYS = {
    *("perplexity", "perplexity_change_pct", "distinct_experts_mean", "gate_mass_mean", "bits_mean"),
    *("energy_j_per_token", "power_w_mean", "temp_c_peak", "latency_ms", "tokens_per_s", "routing_overhead_pct"),
}
NAME = "qwen3_moe"


class Meter:
    """Sensors of a board that draws 300 W; silent or failing when told."""

    name, kind = "meter", Kind.MEASURED

    def __init__(self):
        self.began_s, self.silent, self.closed = time.monotonic(), False, 0

    def read(self) -> SysState:
        now_s = time.monotonic()
        known = {} if self.silent else {"power_w": 300.0, "energy_j": 300.0 * (now_s - self.began_s), "temp_c": 50.0}
        return SysState(time_s=now_s, wall_time_s=time.time(), source=self.name, kind=self.kind, **known)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def meter(monkeypatch) -> Meter:
    made = Meter()
    monkeypatch.setattr(attaching, "open_source", lambda *_, **__: made)
    return made


@pytest.fixture
def model():
    model = tiny_model(NAME)
    before = hooks_of(model), threading.active_count()
    with torch.no_grad():
        logits = model(token_ids(3, 9)).logits
    yield model
    assert (hooks_of(model), threading.active_count()) == before
    with torch.no_grad():
        assert torch.equal(model(token_ids(3, 9)).logits, logits)


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def generate(model, tokens=12, rows=4):
    ids = token_ids(rows, 5)
    with torch.no_grad():
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def calibrated():
    ids = token_ids(4, 65)
    return calibrate(tiny_model(NAME), [type("Block", (), {"input_ids": ids[:, :-1], "target_ids": ids[:, 1:]})])


def test_generate_works_and_the_summary_has_every_key(model):
    with thermoe.attach(model, "kernel_aware_ttha", power_budget_w=300.0) as handle:
        assert generate(model).shape == (4, 17)
        running = handle.summary()
    for summary in (running, handle.summary()):
        assert set(summary) >= SUMMARY_KEYS
        assert json.loads(json.dumps(summary)) == summary
        assert summary["energy_j_per_token"]["kind"] == summary["telemetry"] == "simulated"
        assert summary["energy_j_per_token"]["value"] > 0
        assert summary["priced_as"] == "qwen3-30b-a3b"
        assert 3 <= summary["distinct_experts_mean"] <= EXPERTS
        assert summary["perplexity"] is None
        assert summary["latency_ms"]["mean"] <= summary["latency_ms"]["p99"]
        assert summary["strategy"] == "kernel_aware_ttha"
        assert summary["calibrated"] is False
    assert handle.plane.adaptation.terms["error_power"] > 0


def test_knobs_change_while_it_serves_and_a_tighter_budget_raises_the_price(model, calibrated):
    with thermoe.attach(model, calibration=calibrated, settings={"price": 0.005}) as handle:
        generate(model)
        loose = handle.plane.knobs.price[0]
        handle.set_budget(power_w=150.0)
        generate(model, 40)
        tight = handle.plane.knobs.price[0]
        assert tight > loose
        np.testing.assert_array_equal(handle.hooks.knobs.host.price, handle.plane.knobs.price)
        handle.set_budget(max_quality_loss_pct=0.0)
        assert handle.plane.knobs.price[0] < tight
        handle.reset()
        assert not handle.plane.adaptation.bias.any()


def test_strategies_switch_while_it_serves(model):
    with thermoe.attach(model, "baseline") as handle:
        own = generate(model)
        assert handle.summary()["gate_mass_mean"] == pytest.approx(1.0)
        handle.set_strategy("opportunistic", {"k0": 1})
        generate(model)
        assert handle.summary()["gate_mass_mean"] < 1.0
        with pytest.raises(ConfigError, match="thermoe calibrate"):
            handle.set_strategy("static_optimal")
        assert handle.summary()["strategy"] == "opportunistic"
        handle.set_strategy("baseline")
        assert torch.equal(generate(model), own)


def test_detached_twice_and_then_refused(model):
    handle = thermoe.attach(model, "opportunistic")
    with pytest.raises(UnsupportedModelError, match="attached already"):
        thermoe.attach(model, "baseline")
    generate(model)
    assert handle.attached
    handle.detach()
    first = handle.summary()
    handle.detach()
    assert not handle.attached
    assert handle.summary() == first
    for call in (lambda: handle.set_budget(power_w=1.0), lambda: handle.set_strategy("baseline"), handle.reset):
        with pytest.raises(ConfigError, match="detached"):
            call()


def test_an_error_in_the_block_still_detaches(model):
    with pytest.raises(ZeroDivisionError), thermoe.attach(model, "opportunistic"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"strategy": "guess"}, ConfigError, "choose from"),
        ({"union": "galaxy"}, ConfigError, "choose from"),
        ({"priced_as": "gpt-9"}, ConfigError, "choose from"),
        ({"telemetry": "crystal ball"}, ConfigError, "crystal ball"),
        ({"interval_s": -1.0}, ConfigError, "interval"),
        ({"settings": {"k1": 1}}, ConfigError, "k1"),
        ({"strategy": "opportunistic", "power_budget_w": 300.0}, ConfigError, "cannot hold power_w"),
        ({"strategy": "top_p", "max_quality_loss_pct": 1.0}, ConfigError, "cannot hold max_quality_loss_pct"),
        ({"power_budget_w": -3.0}, ConfigError, "power_w"),
        ({"strategy": "kernel_aware"}, ConfigError, "thermoe calibrate"),
        ({"calibration": "no/such/file.json"}, DataError, "cannot be read"),
    ],
)
def test_a_refused_attachment_leaves_nothing_behind(model, arguments, error, says):
    with pytest.raises(error, match=says) as caught:
        thermoe.attach(model, **arguments)
    assert "\n" not in str(caught.value)
    thermoe.attach(model, "baseline").detach()


def test_a_source_of_a_refused_attachment_is_closed(model, meter):
    with pytest.raises(ConfigError):
        thermoe.attach(model, interval_s=-1.0)
    assert meter.closed == 1


def test_a_budget_out_of_reach(model, calibrated, tmp_path):
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(calibrated.to_dict()))
    with pytest.raises(BudgetError):
        thermoe.attach(model, calibration=file, energy_budget_j_per_token=1e-4)
    with thermoe.attach(model, calibration=str(file), energy_budget_j_per_token=3.0) as handle:
        with pytest.raises(BudgetError):
            handle.set_budget(energy_j_per_token=1e-4)
        with pytest.raises(ConfigError, match="unknown budget"):
            handle.set_budget(watts=3.0)
        assert handle.plane.budget.energy_j_per_token == 3.0
    file.write_text('{"frontier": 1}')
    with pytest.raises(DataError, match="thermoe calibrate"):
        thermoe.attach(model, calibration=file)
    file.write_text("not json")
    with pytest.raises(DataError, match="no calibration"):
        thermoe.attach(model, calibration=file)


def test_a_limit_in_force_that_the_next_strategy_cannot_hold(model):
    with thermoe.attach(model, power_budget_w=300.0) as handle:
        with pytest.raises(ConfigError, match="lift the limit"):
            handle.set_strategy("opportunistic")
        handle.set_budget(power_w=None)
        handle.set_strategy("opportunistic")


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
    assert totals.num_groups == forwards * 3
    assert totals.loads_L.shape == (LAYERS,)


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
        driver._last = (time.monotonic() - pause_s, None)
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


def test_an_energy_counter_that_began_anew_is_unknown_not_negative(model, meter, monkeypatch):
    handle = thermoe.attach(model, power_budget_w=100.0, interval_s=30.0)
    seen = []
    monkeypatch.setattr(handle.plane, "update", lambda observation: seen.append(observation) or handle.plane.knobs)
    for before_j in (0.0, 1e9):
        handle._driver._last = (time.monotonic(), before_j)
        with torch.no_grad():
            model(token_ids(2, 3))
        handle._driver._control()
    assert seen[0].energy_j >= 0.0
    assert seen[1].energy_j is None
    handle.detach()


def test_settings_of_the_command_line_reach_the_knobs(model):
    with thermoe.attach(model, "gate_mass", settings={"share": 0.5, "k0": 0}) as handle:
        assert handle.plane.knobs.max_experts.tolist() == [EXPERTS // 2] * LAYERS
        assert handle.plane.knobs.protected_k0.tolist() == [0] * LAYERS
