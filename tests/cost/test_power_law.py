"""One law of power for all operations: what was measured on one tells the energy of another."""

from dataclasses import replace

import numpy as np
import pytest
from cost_rows import synthetic_rows

from thermoe.cost.database import CostDatabase
from thermoe.cost.fitted import dynamic_energy_j, fit_operation
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import group_database
from thermoe.cost.power_law import ENOUGH_ROWS, LEAST_ROWS, PowerLaw, fit_power_laws
from thermoe.cost.roofline import H200
from thermoe.cost.work import work_of_cases
from thermoe.errors import DataError

KEY = ("expert_mlp", "made_up", "bfloat16")


def without_energy(row):
    return replace(
        row,
        impl="other",
        energy_mj=None,
        energy_integrated_mj=None,
        power_w=None,
        latency_sustained_us=None,
        throttled=None,
        temp_c=None,
    )


@pytest.fixture
def observed():
    (found,) = group_database(CostDatabase(synthetic_rows())).values()
    return found


def test_an_implementation_without_energies_is_told_by_the_others():
    rows = synthetic_rows()
    truth = {row.case_key[2:]: row.energy_mj * 1e-3 for row in rows if row.power_w < 690}
    model = KernelCostModel().fit(CostDatabase([*rows, *map(without_energy, rows)]))
    (asked,) = group_database(CostDatabase([without_energy(r) for r in rows])).values()
    said = model.predict_cases(asked.cases).energy_j
    errors = [abs(e / truth[r.case_key[2:]] - 1) for r, e in zip(rows, said, strict=True) if r.case_key[2:] in truth]
    assert len(errors) > 20
    assert np.mean(errors) < 0.1


def test_few_energies_come_from_the_law_of_power_and_many_from_a_law_of_their_own(observed):
    observed = observed.take(np.arange(2 * ENOUGH_ROWS) % len(observed))
    energies = dynamic_energy_j(observed, H200)
    law = fit_power_laws([observed], [energies], H200).law(KEY, observed, energies)
    few = np.arange(len(observed)) < ENOUGH_ROWS - 1
    sparse = replace(observed, energy_j=np.where(few, observed.energy_j, np.nan))
    table = work_of_cases(observed.cases).table()
    told, own = (fit_operation(data, H200, law) for data in (sparse, observed))
    assert told.power is law
    latency_s, energy_j = told.both(observed.cases, table)
    assert energy_j == pytest.approx(law.dynamic_energy_j(table, latency_s))
    assert own.power is None
    assert own.both(observed.cases, table)[1] == pytest.approx(energies, rel=0.2)


def test_an_implementation_that_needs_more_for_the_same_work_is_scaled_to_what_was_measured(observed):
    energies = dynamic_energy_j(observed, H200)
    laws = fit_power_laws([observed], [energies], H200)
    usual = laws.law(KEY, observed, energies)
    greedy = usual.scaled(2.5)
    table = work_of_cases(observed.cases).table()
    other = replace(observed, cases=replace(observed.cases, impl=["other"] * len(observed)))
    truth = greedy.dynamic_energy_j(table, other.latency_s)
    found = laws.law(("expert_mlp", "other", "bfloat16"), other, np.where(np.arange(len(other)) % 3, np.nan, truth))
    assert found.dynamic_energy_j(table, other.latency_s) == pytest.approx(truth, rel=0.1)
    unknown = laws.law(("expert_mlp", "third", "bfloat16"), other, np.full(len(other), np.nan))
    assert unknown.watts == pytest.approx(laws.watts[[0, 1, 2, 3, 4, 6]])


def test_with_more_rows_the_coefficients_of_an_implementation_are_its_own(observed):
    """Its bytes are dear and its operations cheap: no scale says both."""
    energies = dynamic_energy_j(observed, H200)
    table, count = work_of_cases(observed.cases).table(), len(observed)
    other = replace(observed, cases=replace(observed.cases, impl=["other"] * count))
    laws = fit_power_laws([observed], [energies], H200)
    usual = laws.law(KEY, observed, energies)
    truth = replace(usual, watts=usual.watts * (1, 1, 2.5, 1, 0.4, 1)).dynamic_energy_j(table, other.latency_s)
    errors = []
    for known in (2, 6, 24):
        seen = np.isin(np.arange(count), np.random.default_rng(0).permutation(count)[:known])
        law = laws.law(("expert_mlp", "other", "bfloat16"), other, np.where(seen, truth, np.nan))
        said = law.dynamic_energy_j(table, other.latency_s)
        errors.append(float(np.mean(np.abs(said / truth - 1)[~seen])))
    assert errors[2] < 0.003 < 0.015 < errors[0]
    assert errors[2] < errors[1] < errors[0]


def test_what_is_missed_is_known_of_each_implementation_with_rows_enough(observed):
    """One follows a law, the other is noise: the first one's interval is not as wide as the other's."""
    energies = dynamic_energy_j(observed, H200)
    noise = np.exp(0.4 * np.random.default_rng(0).standard_normal(len(observed)))
    noisy = replace(observed, cases=replace(observed.cases, op="linear_fc1", impl=["noisy"] * len(observed)))
    laws = fit_power_laws([observed, noisy], [energies, energies * noise], H200)
    wild = ("linear_fc1", "noisy", "bfloat16")
    calm, loud = laws.law(KEY, observed, energies), laws.law(wild, noisy, energies * noise)
    assert 1.5 * calm.log_error < laws.log_error < loud.log_error
    few = laws.law(("expert_mlp", "other", "bfloat16"), observed, np.full(len(observed), np.nan))
    assert few.log_error == laws.log_error


def test_the_law_returns_the_watts_that_made_the_rows(observed):
    made = PowerLaw(np.array([9.0, 40.0, 500.0, 450.0, 600.0, 0.0]), np.array([2.3e-13, 1.5e-15, 0.0]), np.nan)
    limits = replace(H200, bandwidth_bytes_per_s=1 / 2.3e-13, flops_per_s_16bit=1 / 1.5e-15)
    table = work_of_cases(observed.cases).table()
    truth = made.dynamic_energy_j(table, observed.latency_s)
    laws = fit_power_laws([observed], [truth], limits)
    assert laws.law(KEY, observed, truth).dynamic_energy_j(table, observed.latency_s) == pytest.approx(truth, rel=0.02)
    assert laws.log_error < 0.02


def test_too_few_rows_tell_nothing_and_a_host_lets_the_device_wait(observed):
    energies = dynamic_energy_j(observed, H200)
    few = np.where(np.arange(len(observed)) < LEAST_ROWS - 1, energies, np.nan)
    assert fit_power_laws([observed], [few], H200) is None
    assert fit_power_laws([], [], H200) is None
    host = replace(observed, cases=replace(observed.cases, impl=["host"] * len(observed)))
    laws = fit_power_laws([observed], [energies], H200)
    law = laws.law(("ttha_update", "host", "float32"), host, energies)
    table = work_of_cases(host.cases).table()
    assert law.dynamic_energy_j(table, host.latency_s) == pytest.approx(laws.watts[0] * host.latency_s)
    assert fit_power_laws([host], [energies], H200) is None


def test_a_law_survives_a_file_and_refuses_what_is_none():
    law = PowerLaw(np.arange(6.0), np.array([1e-13, 1e-15, 0.0]), 0.2)
    again = PowerLaw.from_dict(law.as_dict(), "model.json")
    assert again.watts == pytest.approx(law.watts)
    assert again.seconds == pytest.approx(law.seconds)
    assert again.log_error == law.log_error
    assert np.isnan(PowerLaw.from_dict(law.as_dict() | {"log_error": None}, "f").log_error)
    for wrong in ({"watts": [1.0]}, {"watts": [-1.0] * 6}, {"seconds": None}, {"log_error": "x"}, {"watts": ["a"] * 6}):
        with pytest.raises(DataError, match=r"model\.json"):
            PowerLaw.from_dict(law.as_dict() | wrong, "model.json")
    with pytest.raises(DataError, match=r"model\.json"):
        PowerLaw.from_dict([], "model.json")
