"""One law of power for all operations: what was measured on one tells the energy of another."""

from dataclasses import replace

import numpy as np
import pytest
from cost_rows import synthetic_rows

from thermoe.cost.database import CostDatabase
from thermoe.cost.fitted import dynamic_energy_j, fit_operation
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import group_database
from thermoe.cost.power_prior import LEAST_ROWS, fit_power_prior
from thermoe.cost.roofline import H200
from thermoe.cost.work import work_of_cases


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


def test_a_format_without_energies_is_told_by_the_others():
    rows = synthetic_rows()
    truth = {row.case_key[2:]: row.energy_mj * 1e-3 for row in rows if row.power_w < 690}
    model = KernelCostModel().fit(CostDatabase([*rows, *map(without_energy, rows)]))
    (observed,) = group_database(CostDatabase([without_energy(r) for r in rows])).values()
    said = model.predict_cases(observed.cases).energy_j
    errors = [abs(e / truth[r.case_key[2:]] - 1) for r, e in zip(rows, said, strict=True) if r.case_key[2:] in truth]
    assert len(errors) > 20
    assert np.mean(errors) < 0.1


def test_measured_energies_outweigh_the_prior():
    (observed,) = group_database(CostDatabase(synthetic_rows())).values()
    energies = dynamic_energy_j(observed, H200)
    prior = fit_power_prior([observed], [3.0 * energies], H200)  # three times too much
    few = replace(observed, energy_j=np.where(np.arange(len(observed)) % 2, np.nan, observed.energy_j))
    alone, told = (fit_operation(few, H200, p).law for p in (None, prior))
    table = work_of_cases(observed.cases).table()
    ratio = told.both(table)[1] / alone.both(table)[1]
    assert 1.0 < np.median(ratio) < 1.3


def test_too_few_rows_and_hosts_tell_nothing():
    (observed,) = group_database(CostDatabase(synthetic_rows())).values()
    energies = dynamic_energy_j(observed, H200)
    few = np.where(np.arange(len(observed)) < LEAST_ROWS - 1, energies, np.nan)
    assert fit_power_prior([observed], [few], H200) is None
    prior = fit_power_prior([observed], [energies], H200)
    assert prior.dynamic_energy_j(observed) == pytest.approx(energies, rel=0.5)
    host = replace(observed, cases=replace(observed.cases, impl=["host"] * len(observed)))
    assert np.isnan(prior.dynamic_energy_j(host)).all()
