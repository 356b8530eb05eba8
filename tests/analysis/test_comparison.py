import numpy as np
import pandas as pd
import pytest
from synthetic_run import Plan, make_tables, write_killed_run

from thermoe.analysis.comparison import compare_with_baseline
from thermoe.analysis.load import RunFolder
from thermoe.analysis.schema import conform
from thermoe.analysis.summary import summarise
from thermoe.analysis.units import with_units
from thermoe.analysis.view import RunView, shared_batches


def batches_of(*rows):
    names = ["strategy", "seed", "batch_index", "energy_j", "energy_kind"]
    frame = pd.DataFrame(list(rows), columns=names).assign(workload="w", num_tokens=10)
    return {"batches": conform("batches", frame)}


def test_savings_are_paired_by_batch_and_seed():
    energies = [4.0, 8.0, 5.0, 9.0, 6.0]
    rows = [("baseline", 0, i, e, "simulated") for i, e in enumerate(energies)]
    rows += [("cheap", 0, i, 0.8 * e, "simulated") for i, e in reversed(list(enumerate(energies)))]
    rows += [("baseline", 1, 0, 1e6, "simulated")]  # a seed that the other strategy has not run
    (found,) = compare_with_baseline(batches_of(*rows), {})
    assert found.energy.change_pct == pytest.approx((-20.0, -20.0, -20.0))
    assert found.energy.num_units == 5
    assert found.energy.p_value == pytest.approx(2 / 2**5)
    assert found.energy_kind == "simulated"
    assert found.perplexity is None


def test_passes_over_the_same_inputs_are_no_further_observations():
    """Four passes with the same figures say as much as one: the same interval, units and p-value."""
    energies, factors, found = [4.0, 8.0, 5.0, 9.0, 6.0], [0.8, 0.7, 0.9, 0.75, 0.85], []
    for passes in (1, 4):
        numbered = list(enumerate(zip(energies * passes, factors * passes, strict=True)))
        rows = [("baseline", 0, i, e, "simulated") for i, (e, _) in numbered]
        rows += [("cheap", 0, i, e * factor, "simulated") for i, (e, factor) in numbered]
        tables, config = batches_of(*rows), {"passes": passes}
        (comparison,) = compare_with_baseline(tables, config)
        figures = summarise(tables, config, {})["workloads"]["w"]["strategies"]["cheap"]["energy_j_per_token"]
        found.append((comparison.energy.num_units, comparison.energy.p_value, *comparison.energy.change_pct))
        found[-1] += (figures["value"], figures["low"], figures["high"])
    assert found[0] == pytest.approx(found[1])
    assert found[0][0] == 5


def test_an_unfinished_last_pass_leaves_batches_apart():
    batches = batches_of(*[("baseline", 0, i, 4.0, "simulated") for i in range(7)])["batches"]
    assert with_units(batches, {"passes": 2})["unit"].tolist() == list(range(7))


def test_different_kinds_are_not_compared():
    rows = [("baseline", 0, i, 4.0, "measured") for i in range(4)]
    rows += [("cheap", 0, i, 3.0, "simulated") for i in range(4)]
    (found,) = compare_with_baseline(batches_of(*rows), {})
    assert found.energy is None
    assert found.energy_kind is None


def test_without_baseline_there_is_nothing_to_compare():
    assert compare_with_baseline(batches_of(("cheap", 0, 0, 3.0, "simulated")), {}) == []


def test_p_values_are_adjusted_within_a_workload():
    tables = {name: conform(name, table) for name, table in make_tables(Plan(num_batches=6, num_steps=4)).items()}
    found = compare_with_baseline(tables, {})
    assert len(found) == 2 * 4
    for comparison in found:
        assert comparison.energy.p_value == pytest.approx(2 / 2**6)
        assert comparison.energy.p_holm == pytest.approx(4 * 2 / 2**6)
        assert comparison.energy.cliffs_delta == -1.0


def test_perplexity_changes_are_those_that_were_put_in():
    tables = {name: conform(name, table) for name, table in make_tables(Plan(num_steps=4)).items()}
    by_name = {c.strategy: c.perplexity.change_pct.value for c in compare_with_baseline(tables, {})}
    expected = {"static_optimal": 0.6, "opportunistic": 0.9, "kernel_aware": 0.5, "kernel_aware_ttha": 0.7}
    assert by_name == pytest.approx(expected)


def test_an_unfinished_run_is_judged_on_the_batches_its_strategies_share(tmp_path):
    # Two workloads of five strategies: twelve parts leave prose's first two strategies a batch ahead.
    view = RunView.of(RunFolder(write_killed_run(tmp_path / "killed", num_parts=12)))
    assert not view.is_even
    figures = {s: view.figures_of("prose", s)["perplexity"] for s in view.strategies}
    assert figures["static_optimal"] / figures["baseline"] == pytest.approx(1.006)
    assert figures["kernel_aware"] / figures["baseline"] == pytest.approx(1.005)


def test_where_strategies_share_no_batch_each_keeps_its_own():
    rows = [("baseline", 0, 0, 4.0, "simulated"), ("cheap", 0, 1, 3.0, "simulated")]
    batches = batches_of(*rows)["batches"]
    assert np.array_equal(shared_batches(batches).index, batches.index)
