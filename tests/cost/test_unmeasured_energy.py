"""What was fitted without energies says that its energies are guesses."""

from dataclasses import replace

import numpy as np
import pytest
from cost_rows import QWEN3, make_row, synthetic_rows

from thermoe.cost.database import CostDatabase
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import group_database

_SILENT = {"energy_mj": None, "power_w": None, "latency_sustained_us": None}


def silent_rows():
    return [replace(row, **_SILENT) for row in synthetic_rows()]


def without_interval(estimate):
    return estimate.low is None and estimate.high is None


def test_energy_of_a_fit_without_any_is_a_guess_without_an_interval_and_the_source_says_so(tmp_path):
    path = tmp_path / "m.json"
    KernelCostModel().fit(CostDatabase(silent_rows())).save(path)
    model = KernelCostModel.load(path)
    said = model.predict("expert_mlp", QWEN3, 128, 64)
    assert said.source == "fitted: Test GPU; energy guessed, none was measured"
    assert said.energy_is_guess
    assert not without_interval(said.latency_s)
    assert without_interval(said.energy_j)
    assert without_interval(said.power_w)
    assert model.routing_cost(QWEN3, 16).source == said.source
    assert model.get_cost("expert_mlp", 16, shape=QWEN3).energy_is_guess
    observed = group_database(CostDatabase(silent_rows()))["expert_mlp"]
    assert np.isnan(model.predict_cases(observed.cases).log_error[:, 1]).all()


def test_measured_energy_is_no_guess():
    said = KernelCostModel().fit(CostDatabase(synthetic_rows())).predict("expert_mlp", QWEN3, 128, 64)
    assert said.source == "fitted: Test GPU"
    assert not said.energy_is_guess
    assert not without_interval(said.energy_j)


def test_the_roofline_guesses_too():
    said = KernelCostModel().predict("expert_mlp", QWEN3, 128, 64)
    assert said.source.startswith("roofline: ")
    assert said.energy_is_guess


@pytest.mark.parametrize(("impl", "guessed"), [("grouped_mm", False), ("host", True)])
def test_energy_by_the_power_of_other_operations_is_told_from_a_measured_one(impl, guessed):
    """Rows of an operation without energy, beside others with it; what runs on the host learns nothing from a GPU."""
    silent = [replace(row, op="linear_fc1", impl=impl) for row in silent_rows()]
    model = KernelCostModel().fit(CostDatabase([*synthetic_rows(), *silent]))
    said = model.predict("linear_fc1", QWEN3, 128, 64)
    told = "energy guessed, none was measured" if guessed else "energy from the power of other operations"
    assert said.source == f"fitted: Test GPU; {told}"
    assert said.energy_is_guess is guessed
    assert without_interval(said.energy_j) is guessed


def test_few_measured_energies_elsewhere_leave_a_guess():
    """Fewer than the law of power takes."""
    few = [make_row(50.0, op="copy", energy_mj=10.0, power_w=200.0, tokens=n, routed_rows=128 * n) for n in (1, 2)]
    model = KernelCostModel().fit(CostDatabase([*silent_rows(), *few]))
    assert model.predict("expert_mlp", QWEN3, 128, 64).energy_is_guess
    assert not model.predict("copy", replace(QWEN3, hidden_size=2048, top_k=1), 128, 1).energy_is_guess
