"""`thermoe.attach` on a tiny Qwen3-MoE with the twin: knobs that move, refusals, and everything taken back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from attach_helpers import NAME, Meter, generate, untouched_model
from tiny_models import EXPERTS, LAYERS, tiny_model, token_ids

import thermoe
import thermoe.integrations.transformers as attaching
from thermoe.errors import BudgetError, ConfigError, DataError, UnsupportedModelError
from thermoe.integrations.calibrate import calibrate

SUMMARY_KEYS = {
    *("perplexity", "perplexity_change_pct", "distinct_experts_mean", "gate_mass_mean", "bits_mean"),
    *("energy_j_per_token", "power_w_mean", "temp_c_peak", "latency_ms", "tokens_per_s", "routing_overhead_pct"),
    *("limits", "limits_held"),
}


def leaves(values):
    """All values of dictionaries in dictionaries."""
    return [leaf for v in values.values() for leaf in (leaves(v) if isinstance(v, dict) else [v])]


@pytest.fixture
def meter(monkeypatch) -> Meter:
    made = Meter()
    monkeypatch.setattr(attaching, "open_source", lambda *_, **__: made)
    return made


@pytest.fixture
def model():
    with untouched_model() as model:
        yield model


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
        assert {type(value) for value in leaves(summary)} <= {str, int, float, bool, type(None)}
        assert summary["energy_j_per_token"]["kind"] == summary["telemetry"] == "simulated"
        assert summary["energy_j_per_token"]["value"] > 0
        assert summary["priced_as"] == "qwen3-30b-a3b"
        assert 3 <= summary["distinct_experts_mean"] <= EXPERTS
        assert summary["perplexity"] is None
        assert summary["latency_ms"]["mean"] <= summary["latency_ms"]["p99"]
        assert summary["strategy"] == "kernel_aware_ttha"
        assert summary["calibrated"] is False
        assert list(summary["limits"]) == ["power_w"]
        assert summary["limits"]["power_w"]["limit"] == 300.0
        assert repr(summary["limits"]["power_w"]["kind"]) == "'simulated'"
        assert summary["limits_held"] is (summary["power_w_mean"] <= 303.0)
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


def test_a_limit_under_the_idle_power_is_refused_while_it_serves_and_the_old_one_stays(model):
    with thermoe.attach(model, power_budget_w=300.0) as handle:
        with pytest.raises(BudgetError, match="117 W"):
            handle.set_budget(power_w=110.0)
        assert handle.plane.budget.power_w == 300.0
        handle.set_budget(power_w=120.0)
    with thermoe.attach(model, "baseline") as handle:
        with pytest.raises(BudgetError, match="117 W"):
            handle.set_strategy("kernel_aware_ttha", {"target_power_w": 50.0})
        assert handle.summary()["strategy"] == "baseline"


def test_a_real_board_is_asked_what_it_draws_before_it_works(model, monkeypatch):
    class Resting(Meter):
        def read(self):
            return replace(super().read(), gpu_util=0.0)

    monkeypatch.setattr(attaching, "open_source", lambda *_, **__: Resting())
    with pytest.raises(BudgetError, match="250 W was asked for; meter draws 300 W without any work"):
        thermoe.attach(model, power_budget_w=250.0)
    thermoe.attach(model, power_budget_w=350.0, temp_budget_c=40.0).detach()


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
        ({"power_budget_w": "450"}, ConfigError, "power_w = '450'"),
        ({"latency_budget_ms": "5"}, ConfigError, "latency_s = '5'"),
        ({"temp_budget_c": [80]}, ConfigError, r"temp_c = \[80\]"),
        ({"energy_budget_j_per_token": np.nan}, ConfigError, "energy_j_per_token = nan"),
        ({"telemetry": None}, ConfigError, r"telemetry is None \(NoneType\): needs str"),
        ({"settings": {"price": "a"}}, ConfigError, "setting price = 'a'.*number"),
        ({"settings": {"price": None}}, ConfigError, "setting price = None.*number"),
        ({"settings": 3}, ConfigError, "settings is 3"),
        ({"cost_model": "x"}, ConfigError, "cost_model is 'x'.*KernelCostModel"),
        ({"calibration": {}}, ConfigError, "calibration is {}.*Calibration"),
        ({"calibration": {"k": "x\ny" * 99}}, ConfigError, r"\.\.\. \(dict\)"),
        ({"priced_as": ["model"]}, ConfigError, "priced_as"),
        ({"interval_s": "fast"}, ConfigError, "interval_s is 'fast'"),
        ({"power_budget_w": 100.0}, BudgetError, "100 W was asked for; the digital twin draws 117 W"),
        ({"settings": {"target_temp_c": 30.0}}, BudgetError, "30 deg C was asked for; the digital twin is at"),
    ],
)
def test_a_refused_attachment_leaves_nothing_behind(model, arguments, error, says):
    with pytest.raises(error, match=says) as caught:
        thermoe.attach(model, **arguments)
    assert "\n" not in str(caught.value)
    thermoe.attach(model, "baseline").detach()


def test_wrong_types_are_refused_while_it_serves_and_for_the_model(model):
    with thermoe.attach(model, "baseline") as handle:
        with pytest.raises(ConfigError, match="max_quality_loss_pct = '1'"):
            handle.set_budget(max_quality_loss_pct="1")
        with pytest.raises(ConfigError, match="setting k0 = '2'"):
            handle.set_strategy("opportunistic", {"k0": "2"})
        assert handle.summary()["strategy"] == "baseline"
    with pytest.raises(ConfigError, match="model is None"):
        thermoe.attach(None)


def test_numbers_of_numpy_are_numbers(model):
    limits = {"power_budget_w": np.float32(450.0), "latency_budget_ms": np.int64(50)}
    with thermoe.attach(model, settings={"gain": np.float32(0.5)}, **limits) as handle:
        assert (handle.plane.budget.power_w, handle.plane.budget.latency_s) == (450.0, 0.05)


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


def test_a_calibration_of_another_family_of_the_same_sizes(model, calibrated):
    with pytest.raises(DataError, match=f"of a mixtral model, this one is of {NAME}"):
        thermoe.attach(model, calibration=replace(calibrated, model_type="mixtral"))


def test_a_limit_in_force_that_the_next_strategy_cannot_hold(model):
    with thermoe.attach(model, power_budget_w=300.0) as handle:
        with pytest.raises(ConfigError, match="lift the limit"):
            handle.set_strategy("opportunistic")
        handle.set_budget(power_w=None)
        handle.set_strategy("opportunistic")


def test_settings_of_the_command_line_reach_the_knobs(model):
    with thermoe.attach(model, "gate_mass", settings={"share": 0.5, "k0": 0}) as handle:
        assert handle.plane.knobs.max_experts.tolist() == [EXPERTS // 2] * LAYERS
        assert handle.plane.knobs.protected_k0.tolist() == [0] * LAYERS
