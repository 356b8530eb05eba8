import json
import math

import numpy as np
import pandas as pd
import pytest
from synthetic_run import EVERYTHING, MEASURED_NULLS, Plan, make_tables, null_columns

from thermoe.analysis.summary import summarise

ENV = {"telemetry": "simulated", "priced_as": "qwen3-30b-a3b", "model": "m"}


def batch(strategy, index, **values):
    key = {"workload": "w", "seed": 0, "strategy": strategy, "batch_index": index}
    return key | {"num_tokens": 10, "num_steps": 5, "energy_kind": "simulated"} | values


def summary_of(batches, steps=(), env=ENV, config=None):
    tables = {"batches": pd.DataFrame(list(batches))}
    if steps:
        tables["steps"] = pd.DataFrame(list(steps))
    return summarise(tables, config or {}, env)["workloads"]["w"]["strategies"]


def test_perplexity_pools_over_predictions_not_over_batches():
    found = summary_of(
        [
            batch("baseline", 0, nll_sum=20.0, num_predictions=10),
            batch("baseline", 1, nll_sum=30.0, num_predictions=30),
            batch("cheap", 0, nll_sum=21.0, num_predictions=10),
            batch("cheap", 1, nll_sum=33.0, num_predictions=30),
        ]
    )
    assert found["baseline"]["perplexity"] == pytest.approx(math.exp(50 / 40))
    assert found["baseline"]["perplexity_change_pct"] == 0.0
    assert found["cheap"]["perplexity"] == pytest.approx(math.exp(54 / 40))
    assert found["cheap"]["perplexity_change_pct"] == pytest.approx(100 * (math.exp(0.1) - 1))


def test_the_change_stands_on_the_batches_both_have():
    found = summary_of(
        [
            batch("baseline", 0, nll_sum=20.0, num_predictions=10),
            batch("baseline", 1, nll_sum=90.0, num_predictions=10),  # a hard text that the other has not reached
            batch("cheap", 0, nll_sum=21.0, num_predictions=10),
            batch("cheap", 2, nll_sum=3.0, num_predictions=10),  # an easy one that baseline has not reached
        ]
    )
    assert found["cheap"]["perplexity_change_pct"] == pytest.approx(100 * (math.exp(0.1) - 1))


def test_energy_per_token_pools_and_never_mixes_kinds_or_sources():
    found = summary_of(
        [
            batch("baseline", 0, energy_j=5.0, energy_j_integrated=99.0, energy_kind="measured"),
            batch("baseline", 1, energy_j=9.0, num_tokens=30, energy_kind="measured"),
            batch("baseline", 2, energy_j=1000.0, energy_kind="simulated"),
            batch("baseline", 3, energy_j_integrated=1000.0, energy_kind="measured"),
            batch("integrated", 0, energy_j_integrated=4.0, energy_kind="measured"),
            batch("predicted", 0, predicted_energy_j=3.0, energy_kind=None),
        ]
    )
    assert found["baseline"]["energy_j_per_token"] == {"value": 14 / 40, "low": None, "high": None, "kind": "measured"}
    assert found["integrated"]["energy_j_per_token"]["value"] == 0.4
    assert found["predicted"]["energy_j_per_token"] == {"value": 0.3, "low": None, "high": None, "kind": "predicted"}


def test_the_interval_needs_three_batches_and_is_the_same_every_time():
    rows = [batch("baseline", i, energy_j=5.0 + i) for i in range(3)]
    first = summary_of(rows)["baseline"]["energy_j_per_token"]
    assert first == summary_of(rows)["baseline"]["energy_j_per_token"]
    assert first["low"] < first["value"] < first["high"]
    # The same batch under three seeds is one text: it tells nothing about other texts.
    seeds = [batch("baseline", 0, energy_j=5.0 + i) | {"seed": i} for i in range(3)]
    assert summary_of(seeds)["baseline"]["energy_j_per_token"]["low"] is None


def test_means_are_weighted_by_what_they_are_means_of():
    values = {"power_w_mean": 400.0, "latency_s": 3.0, "temp_c_peak": 50.0, "distinct_experts_mean": 20.0}
    other = {"power_w_mean": 600.0, "latency_s": 1.0, "temp_c_peak": 61.0, "distinct_experts_mean": 40.0}
    overhead = {"routing_overhead_s": 0.1, "wall_s": 10.0}
    found = summary_of([batch("a", 0, **values, **overhead), batch("a", 1, num_steps=15, **other, **overhead)])["a"]
    assert found["power_w_mean"] == pytest.approx(450.0)
    assert found["temp_c_peak"] == 61.0
    assert found["distinct_experts_mean"] == pytest.approx(35.0)
    assert found["tokens_per_s"] == pytest.approx(20 / 4)
    assert found["routing_overhead_pct"] == pytest.approx(1.0)
    assert found["latency_ms"] == {"mean": pytest.approx(200.0), "p90": None, "p99": None}


def test_latency_is_that_of_steps_where_they_were_timed():
    key = {"workload": "w", "seed": 0, "strategy": "a", "batch_index": 0}
    steps = [key | {"step": i, "latency_s": (i + 1) / 1000} for i in range(101)]
    found = summary_of([batch("a", 0, latency_s=77.0)], steps)["a"]["latency_ms"]
    assert found == {"mean": pytest.approx(51.0), "p90": pytest.approx(91.0), "p99": pytest.approx(100.0)}


def test_nulls_are_never_invented():
    tables = make_tables(Plan(nulls=EVERYTHING, num_batches=2, num_steps=3))
    found = summarise(tables, {}, {})
    assert (found["telemetry"], found["priced_as"], found["model"]) == (None, None, None)
    for workload in found["workloads"].values():
        for figures in workload["strategies"].values():
            leaves = [*figures.values(), *figures["energy_j_per_token"].values(), *figures["latency_ms"].values()]
            assert [leaf for leaf in leaves if leaf is not None and not isinstance(leaf, dict)] == []


def test_a_measured_run_without_text_has_energy_but_no_perplexity():
    found = summarise(make_tables(Plan(kind="measured", nulls=MEASURED_NULLS)), {}, ENV)
    figures = found["workloads"]["prose"]["strategies"]["kernel_aware"]
    assert found["telemetry"] == "measured"  # the rows say so, whatever the environment file claims
    assert figures["perplexity"] is None
    assert figures["perplexity_change_pct"] is None
    assert figures["energy_j_per_token"]["kind"] == "measured"


def test_the_summary_is_json_with_baseline_first_and_the_fixed_keys():
    tables = make_tables(Plan(strategies=("kernel_aware", "baseline"), num_batches=3, num_steps=4))
    found = json.loads(json.dumps(summarise(tables, {"model": "from config"}, {"priced_as": "model"}), allow_nan=False))
    assert set(found) == {"schema", "telemetry", "priced_as", "model", "workloads"}
    assert found["model"] == "from config"
    strategies = found["workloads"]["code"]["strategies"]
    assert list(strategies) == ["baseline", "kernel_aware"]
    assert list(strategies["baseline"]) == [
        *("perplexity", "perplexity_change_pct", "distinct_experts_mean", "gate_mass_mean", "bits_mean"),
        *("energy_j_per_token", "power_w_mean", "temp_c_peak", "latency_ms", "tokens_per_s", "routing_overhead_pct"),
        *("limits", "limits_held"),
    ]
    assert set(strategies["baseline"]["energy_j_per_token"]) == {"value", "low", "high", "kind"}
    assert set(strategies["baseline"]["latency_ms"]) == {"mean", "p90", "p99"}


def test_limits_of_the_configuration_are_held_against_the_figures():
    rows = [
        batch(name, 0, power_w_mean=500.0, latency_s=1.0, energy_j=5.0, nll_sum=nll, num_predictions=10)
        for name, nll in (("baseline", 20.0), ("kernel_aware", 20.1), ("kernel_aware_ttha", 20.3))
    ]
    config = {"power_budget_w": 480, "latency_budget_ms": 250.0, "max_quality_loss_pct": 2.0, "csv": True}
    config |= {"kernel_aware_ttha": {"target_energy_j_per_token": 0.5, "gain": 0.1}}
    found = summary_of(rows, config=config)
    assert (found["baseline"]["limits"], found["baseline"]["limits_held"]) == ({}, None)
    assert found["kernel_aware"]["limits_held"] is True
    limits = found["kernel_aware_ttha"]["limits"]
    assert {name: (entry["limit"], entry["held"], entry["kind"]) for name, entry in limits.items()} == {
        "power_w": (480.0, False, "simulated"),
        "energy_j_per_token": (0.5, True, "simulated"),
        "latency_ms": (250.0, True, "simulated"),
        "quality_loss_pct": (2.0, False, None),
    }
    assert limits["quality_loss_pct"]["value"] == pytest.approx(100 * (math.exp(0.03) - 1))
    assert found["kernel_aware_ttha"]["limits_held"] is False


@pytest.mark.parametrize("config", [{}, {"power_budget_w": "much", "kernel_aware_ttha": 3}, {"power_budget_w": True}])
def test_a_configuration_without_limits_or_with_something_else_in_their_place_is_read(config):
    found = summary_of([batch("kernel_aware_ttha", 0, power_w_mean=500.0, latency_s=1.0)], config=config)
    assert (found["kernel_aware_ttha"]["limits"], found["kernel_aware_ttha"]["limits_held"]) == ({}, None)


def test_infinite_values_count_as_unknown():
    found = summary_of([batch("a", 0, temp_c_peak=np.inf, energy_j=np.nan)])["a"]
    assert found["temp_c_peak"] is None
    assert found["energy_j_per_token"]["value"] is None


def test_tables_with_nullable_and_text_columns_of_nulls_are_understood():
    tables = make_tables(Plan(num_batches=3, num_steps=4))
    tables["batches"] = null_columns(tables["batches"], ("energy_j",)).convert_dtypes()
    found = summarise(tables, {}, ENV)["workloads"]["prose"]["strategies"]["baseline"]["energy_j_per_token"]
    batches = tables["batches"]
    arm = batches[(batches["workload"] == "prose") & (batches["strategy"] == "baseline")]
    assert found["value"] == pytest.approx(float(arm["energy_j_integrated"].sum() / arm["num_tokens"].sum()))
