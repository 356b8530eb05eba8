import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cost_rows import INDEPENDENT_TABLE, KEY, QWEN3, SHAPES, loads, make_row, row_of, synthetic_rows, true_cost

from thermoe.cost.as_timed import latency_as_timed
from thermoe.cost.command import CostsEval, Fit
from thermoe.cost.database import CostDatabase
from thermoe.cost.evaluate import evaluate
from thermoe.cost.fingerprints import cases_and_shapes
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import group_database
from thermoe.cost.work import OPERATIONS
from thermoe.errors import CostError, DataError
from thermoe.types import Kind, MoEShape, StepWork, SysState


@pytest.fixture(scope="module")
def fitted() -> KernelCostModel:
    return KernelCostModel().fit(CostDatabase(synthetic_rows(noise=0.02)))


def state(**values) -> SysState:
    return SysState(time_s=0.0, wall_time_s=0.0, source="test", kind=Kind.SIMULATED, **values)


def test_fit_recovers_a_known_device_within_two_per_cent():
    model = KernelCostModel().fit(CostDatabase(synthetic_rows()))
    for shape in SHAPES:
        for rows, distinct in loads(shape):
            latency_s, energy_j = true_cost(shape, rows, distinct)
            if energy_j / latency_s > 700.0:  # there the limit stretches what the made-up device does not
                continue
            got = model.predict("expert_mlp", shape, rows, distinct)
            assert got.latency_s.value == pytest.approx(latency_s, rel=0.02)
            assert got.energy_j.value == pytest.approx(energy_j, rel=0.02)


def test_a_shape_left_out_is_predicted_and_its_interval_holds():
    left_out = SHAPES[3]
    rows = [r for r in synthetic_rows(noise=0.02) if r.inter_size != left_out.inter_size]
    model = KernelCostModel().fit(CostDatabase(rows))
    inside = 0
    for routed_rows, distinct in loads(left_out):
        latency_s, _ = true_cost(left_out, routed_rows, distinct)
        got = model.predict("expert_mlp", left_out, routed_rows, distinct)
        inside += got.latency_s.low <= latency_s <= got.latency_s.high
        assert got.energy_j.low < got.energy_j.value < got.energy_j.high
    assert inside >= 0.8 * len(loads(left_out))


def test_intervals_cover_new_noise_and_are_not_wide(fitted):
    covered, widths = [], []
    for row in synthetic_rows(noise=0.02, seed=7):
        shape = next(s for s in SHAPES if s.inter_size == row.inter_size)
        got = fitted.predict("expert_mlp", shape, row.routed_rows, row.active_experts).latency_s
        if row.power_w < 690:
            covered.append(got.low <= row.latency_us * 1e-6 <= got.high)
            widths.append(math.log(got.high / got.low))
    assert np.mean(covered) > 0.8
    assert np.mean(widths) < 0.25


def test_table_measured_by_others_is_fitted_within_a_tenth_in_latency_and_a_fifth_in_energy():
    rows = [row_of(QWEN3, n, d, t * 1e-6, e * 1e-3) for n, d, t, e in INDEPENDENT_TABLE]
    model = KernelCostModel().fit(CostDatabase(rows))
    for n, d, t, e in INDEPENDENT_TABLE:
        got = model.predict("expert_mlp", QWEN3, n, d)
        assert got.latency_s.value == pytest.approx(t * 1e-6, rel=0.10)
        assert got.energy_j.value == pytest.approx(e * 1e-3, rel=0.20)


@pytest.fixture(scope="module")
def shipped() -> KernelCostModel:
    return KernelCostModel.shipped()


def test_shipped_model_predicts_a_layer_measured_by_others(shipped):
    """The same product under even loads, another harness; fewer experts than a token picks are in no sweep."""
    errors = []
    for n, d, t, e in INDEPENDENT_TABLE:
        if d >= QWEN3.top_k:
            got = shipped.predict("expert_mlp", QWEN3, n, d, impl="grouped_mm")
            errors.append(np.abs([got.latency_s.value / (t * 1e-6) - 1, got.energy_j.value / (e * 1e-3) - 1]))
    assert (np.mean(errors, axis=0) < (0.05, 0.065)).all()
    assert (np.max(errors, axis=0) < (0.12, 0.25)).all()


@pytest.mark.parametrize("op", ["expert_mlp", "gemm", "combine", "elementwise"])
def test_shipped_model_is_near_the_measurements_that_are_shipped(shipped, op):
    observed = group_database(CostDatabase.load(Path("h200")))[op]
    got = shipped.predict_cases(observed.cases)  # with the fullest expert that was measured
    latency = np.abs(latency_as_timed(shipped, observed, got) / observed.window_s - 1)
    energy = np.abs(got.energy_j / observed.energy_j - 1)
    assert latency.mean() < 0.01
    assert latency.max() < 0.05
    assert np.nanmean(energy) < 0.06


def test_a_cut_block_costs_a_long_call_no_more_than_a_short_one(shipped):
    wide = MoEShape(num_layers=1, hidden_size=2880, inter_size=1, num_experts=1, top_k=1)
    whole, cut = shipped.predict_many("elementwise", wide, [16, 65536], 1).latency_s
    one_less = shipped.predict_many("elementwise", wide, [15, 65535], 1).latency_s
    assert one_less[0] > 1.05 * whole  # measured: 0.2 us more at so few rows
    assert abs(one_less[1] - cut) < 1e-6


def test_shipped_model_is_fitted_to_the_shipped_database(shipped):
    """A database that changes without a new fit is found out."""
    groups = group_database(CostDatabase.load(Path("h200")))
    seen = np.unique(np.concatenate([cases_and_shapes(g.cases).ravel() for g in groups.values()]))
    assert np.array_equal(shipped.seen_, seen)
    assert {key[0] for key in shipped.operations_} == set(groups) == set(OPERATIONS)


def test_without_data_it_is_the_roofline_and_says_so():
    got = KernelCostModel().predict("expert_mlp", QWEN3, 128, 82)
    assert got.source == "roofline: NVIDIA H200"
    assert got.extrapolated
    assert (got.latency_s.kind, got.latency_s.low) == (Kind.PREDICTED, None)
    weights = 82 * 3 * 2048 * 768 * 2
    assert got.latency_s.value == pytest.approx(5e-6 + weights / 4.38e12, rel=0.01)


def test_precision_that_was_not_measured_falls_back_to_physics(fitted):
    assert fitted.predict("expert_mlp", QWEN3, 128, 82, bits=4).source.startswith("roofline")
    assert fitted.predict("expert_mlp", QWEN3, 128, 82).source == "fitted: Test GPU"


def test_extrapolation_is_marked(fitted):
    assert not fitted.predict("expert_mlp", QWEN3, 128, 64).extrapolated
    assert fitted.predict("expert_mlp", QWEN3, 10**6, 128).extrapolated


def test_arrays_agree_with_single_predictions(fitted):
    many = fitted.predict_many("expert_mlp", QWEN3, [8, 128, 1024], [8, 32, 128])
    for i, (rows, distinct) in enumerate([(8, 8), (128, 32), (1024, 128)]):
        one = fitted.predict("expert_mlp", QWEN3, rows, distinct)
        assert (many.latency_s[i], many.energy_j[i]) == pytest.approx((one.latency_s.value, one.energy_j.value))


def test_lower_power_limit_stretches_work_until_it_fits(fitted):
    free = fitted.predict("expert_mlp", QWEN3, 1024, 128)
    capped = fitted.predict("expert_mlp", QWEN3, 1024, 128, state=state(power_limit_w=300.0))
    assert free.power_w.value > 350.0
    assert capped.power_w.value == pytest.approx(300.0)
    assert capped.latency_s.value > free.latency_s.value
    idle_j = 117.0 * (capped.latency_s.value - free.latency_s.value)
    assert capped.energy_j.value < free.energy_j.value + idle_j  # a lower clock saves some of the rest


def test_heat_adds_leakage_and_a_silent_sensor_adds_nothing(fitted):
    cool, hot, silent = (
        fitted.predict("expert_mlp", QWEN3, 128, 64, state=s).energy_j.value
        for s in (None, state(temp_c=fitted.reference_temp_c_ + 40.0), state())
    )
    assert hot > cool
    assert silent == cool


def test_step_adds_layers_and_the_rest():
    model = KernelCostModel()
    step = model.predict_step(StepWork(shape=QWEN3, num_tokens=16, distinct_experts=[82] * 48, routed_rows=[128] * 48))
    parts = [model.predict(op, QWEN3, 128, 82) for op in ("router_topk", "dispatch_combine", "expert_mlp")]
    assert step.kind is Kind.PREDICTED
    assert step.extra["moe_latency_s"] == pytest.approx(48 * sum(p.latency_s.value for p in parts))
    assert step.latency_s == pytest.approx(step.extra["moe_latency_s"] + 12.8e-3 - 48 * 199e-6)
    assert step.energy_j == pytest.approx(step.extra["moe_energy_j"] + 7.65 * 0.23)


def test_a_step_counts_dispatch_and_combine_apart_where_they_were_measured_apart():
    rows = [make_row(40.0, op=op, active_experts=82) for op in ("dispatch", "combine")]
    work = StepWork(shape=QWEN3, num_tokens=16, distinct_experts=[82], routed_rows=[128])
    apart, none = KernelCostModel().fit(CostDatabase(rows)).predict_step(work), KernelCostModel().predict_step(work)
    roofline = KernelCostModel().predict("dispatch_combine", QWEN3, 128, 82).latency_s.value
    assert apart.latency_s == pytest.approx(none.latency_s - roofline + 80e-6, rel=0.03)


def test_small_model_is_priced_as_a_large_one():
    small = replace(QWEN3, num_layers=6, hidden_size=384, inter_size=128, num_experts=64)
    work = StepWork(shape=small, num_tokens=16, distinct_experts=[41.0] * 6, routed_rows=[128.0] * 6)
    model = KernelCostModel()
    same = StepWork(shape=QWEN3, num_tokens=16, distinct_experts=[82.0] * 48, routed_rows=[128.0] * 48)
    assert model.predict_step(work, QWEN3).energy_j == pytest.approx(model.predict_step(same).energy_j)
    assert model.predict_step(work).energy_j < model.predict_step(work, QWEN3).energy_j


def test_get_cost_takes_the_experts_of_random_routing(fitted):
    got = fitted.get_cost("expert_mlp", 16, shape=QWEN3)
    assert got.latency_s.value == pytest.approx(
        fitted.predict("expert_mlp", QWEN3, 128, 82.4).latency_s.value, rel=0.01
    )
    with pytest.raises(CostError, match="at least 1"):
        fitted.get_cost("expert_mlp", 0, shape=QWEN3)


def test_unknown_operation_and_implementation_are_refused(fitted):
    with pytest.raises(CostError, match="choose from"):
        fitted.predict("sing", QWEN3, 1, 1)
    with pytest.raises(CostError, match="known are made_up"):
        fitted.predict("expert_mlp", QWEN3, 8, 8, impl="magic")


def test_saved_model_answers_the_same(fitted, tmp_path):
    path = tmp_path / "model.json"
    fitted.save(path)
    again = KernelCostModel.load(path)
    assert again.predict("expert_mlp", QWEN3, 128, 82) == fitted.predict("expert_mlp", QWEN3, 128, 82)


def test_damaged_model_is_a_one_line_error(fitted, tmp_path):
    path = tmp_path / "model.json"
    fitted.save(path)
    whole = json.loads(path.read_text())
    damaged = [
        "",
        "{}",
        json.dumps(whole)[:300],
        json.dumps(whole | {"limits": {}}),
        json.dumps(whole | {"limits": whole["limits"] | {"bandwidth_bytes_per_s": 0}}),
        json.dumps(whole | {"operations": [{}]}),
        json.dumps(whole | {"operations": [whole["operations"][0] | {"latency_coef": [-1.0] * 7}]}),
        json.dumps(whole | {"operations": [whole["operations"][0] | {"smoothness": 0.5}]}),
        json.dumps(whole | {"operations": [whole["operations"][0] | {"op": "sing"}]}),
        json.dumps(whole | {"reference_temp_c": "warm"}),
    ]
    for text in damaged:
        path.write_text(text)
        with pytest.raises(DataError) as err:
            KernelCostModel.load(path)
        assert "\n" not in str(err.value)


def test_nothing_to_fit_and_two_gpus_are_refused():
    with pytest.raises(DataError, match="no measured row"):
        KernelCostModel().fit(CostDatabase())
    with pytest.raises(DataError, match="no measured row"):
        KernelCostModel().fit(CostDatabase([make_row(kind=Kind.PREDICTED)]))
    mixed = CostDatabase([make_row(), make_row(device=replace(KEY, gpu="Other GPU"))])
    with pytest.raises(DataError, match="select one GPU"):
        KernelCostModel().fit(mixed)


def test_one_row_is_enough_to_fit_and_gives_no_interval():
    model = KernelCostModel().fit(CostDatabase([make_row(127.0)]))
    got = model.predict("expert_mlp", QWEN3, 128, 32)
    assert got.latency_s.value == pytest.approx(127e-6, rel=0.05)
    assert got.latency_s.low is None


def plain_table() -> pd.DataFrame:
    rows = []
    for shape in SHAPES:
        for tokens in (1, 16, 128, 1024):
            distinct = shape.num_experts * (1 - (1 - shape.top_k / shape.num_experts) ** tokens)
            latency_s, energy_j = true_cost(shape, tokens * shape.top_k, distinct)
            sizes = {"hidden_size": shape.hidden_size, "inter_size": shape.inter_size, "num_experts": shape.num_experts}
            power_w = min(energy_j / latency_s, 690.0)
            rows.append(
                sizes | {"topk": shape.top_k, "num_tokens": tokens, "latency_ms": latency_s * 1e3, "power_w": power_w}
            )
    return pd.DataFrame(rows)


def test_plain_table_is_fitted_and_evaluated_from_the_command_line(tmp_path, capsys):
    table, model = tmp_path / "t.csv", tmp_path / "m.json"
    plain_table().to_csv(table, index=False)
    assert Fit(tables=(table,), out=model).execute() == 0
    capsys.readouterr()
    assert CostsEval(model=model, table=table, json=True).execute() == 0
    result = json.loads(capsys.readouterr().out)
    assert result["all"]["rows"] == 20
    assert result["operations"]["expert_mlp"]["latency"]["mape_pct"] < 3.0
    assert result["all"]["energy"]["mape_pct"] < 10.0
    assert CostsEval(model=model, table=table).execute() == 0
    assert "mean error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latency_ms": -1.0}, "latency_ms holds -1 in row 0"),
        ({"latency_ms": float("nan")}, "latency_ms holds nan"),
        ({"hidden_size": "wide"}, "other than numbers"),
        ({"dtype": "int1"}, "int1 is not known"),
    ],
)
def test_wrong_tables_are_refused_in_one_line(change, words):
    with pytest.raises(DataError, match=words):
        KernelCostModel().fit(plain_table().assign(**change))
    with pytest.raises(DataError, match="lacks topk"):
        KernelCostModel().fit(plain_table().drop(columns="topk"))


def test_evaluation_by_hand():
    """Roofline against rows that took exactly twice as long: half the truth, no interval."""
    model = KernelCostModel()
    latency_s = model.predict("expert_mlp", QWEN3, 128, 32).latency_s.value
    result = evaluate(model, CostDatabase([make_row(2e6 * latency_s)]))
    figures = {"mape_pct": 50.0, "median_pct": 50.0, "p90_pct": 50.0, "coverage_pct": None, "width_pct": None}
    assert result["all"]["latency"] == pytest.approx(figures)
    assert result["all"]["energy"] == dict.fromkeys(figures)
