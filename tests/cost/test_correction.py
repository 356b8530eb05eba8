"""A learned correction on a made-up device whose kernels do what the physical law cannot say."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cost_rows import QWEN3, synthetic_rows

from thermoe.cost.command import CostsEval, Fit
from thermoe.cost.correction import quantile
from thermoe.cost.database import CostDatabase
from thermoe.cost.evaluate import evaluate
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.kriging import Fold, krige
from thermoe.cost.tables import group_table
from thermoe.errors import CostError, DataError
from thermoe.types import Kind, MoEShape, SysState

WIDTHS = [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192]


def products(widths_n, widths_k, seed=0, noise=0.01) -> pd.DataFrame:
    """Matrix products on 100 processors with tiles of 128 x 128: time goes in whole waves, power follows it."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in widths_n:
        for k in widths_k:
            for m in (1, 16, 48, 128, 384, 1000, 2048, 4096):
                waves = np.ceil(np.ceil(m / 128) * np.ceil(n / 128) / 100)
                latency_s = 4e-6 + max((m * k + n * k + m * n) * 2 / 3e12, waves * k * 2.2e-9)
                power_w = 130 + 300 * (m * n * k * 2 / 500e12 / latency_s) ** 0.5  # below the limit of 700 W
                scale = np.exp(noise * rng.standard_normal(2))
                rows.append({"m": m, "n": n, "k": k, "latency_s": latency_s * scale[0], "power_w": power_w * scale[1]})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    whole = products(WIDTHS, WIDTHS[::2])
    shape = whole.groupby(["n", "k"]).ngroup()
    is_unseen = shape.isin(np.random.default_rng(0).permutation(shape.max() + 1)[:13])
    return whole[~is_unseen].iloc[::2], whole[is_unseen]


@pytest.fixture(scope="module")
def fitted(tables) -> KernelCostModel:
    return KernelCostModel().fit(tables[0])


def test_neighbours_beat_the_law_on_shapes_left_out_and_their_intervals_hold(tables, fitted):
    law = KernelCostModel().fit(tables[0])
    law.corrections_.clear()
    with_law, with_all = (evaluate(m, tables[1])["all"] for m in (law, fitted))
    for target, share in (("latency", 0.8), ("energy", 0.4)):
        assert with_all[target]["mape_pct"] < share * with_law[target]["mape_pct"], target
        assert 78 <= with_all[target]["coverage_pct"] <= 99  # 104 rows of 13 shapes
        assert with_all[target]["width_pct"] < 15.0
    assert with_all["latency"]["mape_pct"] < 3.0


def test_a_saved_model_answers_the_same(tables, fitted, tmp_path):
    fitted.save(tmp_path / "m.json")
    again = KernelCostModel.load(tmp_path / "m.json")
    assert evaluate(again, tables[1]) == evaluate(fitted, tables[1])


@pytest.mark.parametrize(
    "change",
    [
        {"neighbours": []},
        {"networks": [{}]},
        {"low": [0.0]},
        {"tree_shares": [1.0, 0.0]},
        {"quantiles": [-1.0, 1.0]},
        {"names": None},
        {"spreads": [{}, {}]},
    ],
)
def test_a_damaged_correction_is_refused_in_one_line(change, fitted, tmp_path):
    path = tmp_path / "m.json"
    fitted.save(path)
    whole = json.loads(path.read_text())
    whole["corrections"]["gemm"] |= change
    path.write_text(json.dumps(whole))
    with pytest.raises(DataError) as err:
        KernelCostModel.load(path)
    assert "\n" not in str(err.value)


def product_shape(n: int, k: int) -> MoEShape:
    return MoEShape(num_layers=1, hidden_size=k, inter_size=n, num_experts=1, top_k=1)


def test_far_outside_the_data_physics_speaks_alone_and_the_interval_is_wide(fitted):
    law = KernelCostModel()
    law.operations_, law.fitted_on_ = fitted.operations_, fitted.fitted_on_
    inside, outside = product_shape(1024, 2048), product_shape(400_000, 400_000)
    far, alone = (m.predict("gemm", outside, 100_000, 1) for m in (fitted, law))
    assert far.latency_s.value == pytest.approx(alone.latency_s.value, rel=1e-3)
    assert far.extrapolated
    near = fitted.predict("gemm", inside, 128, 1)
    assert not near.extrapolated
    widths = [np.log(e.latency_s.high / e.latency_s.low) for e in (near, far)]
    assert widths[1] > 3 * widths[0]


def test_power_never_passes_the_limit_and_a_lower_limit_stretches(fitted):
    shape = product_shape(8192, 8192)
    capped = SysState(time_s=0, wall_time_s=0, source="t", kind=Kind.SIMULATED, power_limit_w=300.0)
    free, held = (fitted.predict("gemm", shape, 4096, 1, state=s) for s in (None, capped))
    assert free.power_w.value > 400
    assert held.power_w.value == pytest.approx(300.0)
    assert held.latency_s.value > free.latency_s.value
    loose = replace(capped, power_limit_w=700.0)
    assert fitted.predict("gemm", shape, 4096, 1, state=loose) == free


def test_shapes_targets_and_telemetry_may_come_apart(tables, fitted):
    seen, unseen = tables
    shapes, energy_j = seen[["m", "n", "k"]], seen["power_w"] * seen["latency_s"]
    telemetry = pd.DataFrame({"temp_c": np.full(len(seen), 51.0)}, index=seen.index)
    model = KernelCostModel().fit(telemetry, shapes, seen["latency_s"], energy_j)
    assert model.reference_temp_c_ == 51.0
    assert evaluate(model, unseen)["all"]["latency"] == pytest.approx(evaluate(fitted, unseen)["all"]["latency"])
    with pytest.raises(DataError, match="need the same"):
        KernelCostModel().fit(telemetry, shapes, [1.0])
    with pytest.raises(DataError, match="y_latency"):
        KernelCostModel().fit(None, shapes)
    with pytest.raises(DataError, match="nothing to fit"):
        KernelCostModel().fit(None)


def test_latency_alone_is_enough(tables):
    model = KernelCostModel().fit(tables[0].drop(columns="power_w"))
    result = evaluate(model, tables[1])["all"]
    assert result["latency"]["mape_pct"] < 8.0
    assert result["energy"]["coverage_pct"] is None  # nothing is known of it, so there is no interval


def test_two_shapes_are_too_few_for_a_correction():
    few = products([512], [256, 1024])
    assert KernelCostModel().fit(few).corrections_ == {}


def test_many_rows_go_to_networks_and_trees(monkeypatch, tables):
    pytest.importorskip("sklearn", reason="trees are fitted with scikit-learn")
    monkeypatch.setattr("thermoe.cost.correction_fit.NETWORK_ROWS", 100)
    model = KernelCostModel().fit(tables[0])
    correction = model.corrections_["gemm"]
    assert correction.networks
    assert not correction.neighbours
    law = KernelCostModel()
    law.operations_ = model.operations_
    ours, theirs = (evaluate(m, tables[1])["all"]["latency"]["mape_pct"] for m in (model, law))
    assert ours < theirs


def test_guesses_of_left_out_rows_are_worse_than_the_fit_and_far_away_it_says_nothing():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    y = np.sin(x[:, 0]) + 0.3 * x[:, 1]
    folds = np.arange(60) // 5 % 4
    whole, left_out = krige(x, y, [Fold(folds == f, x, y) for f in range(4)])
    assert np.abs(left_out.missed).mean() > np.abs(whole(x) - y).mean()
    assert np.abs(left_out.missed).mean() < 0.3 * np.abs(y).mean()
    assert left_out.without == pytest.approx(y)
    assert whole.distance(x).max() < 1e-7 < left_out.distance.min()  # rows are kept with four digits
    assert np.abs(whole(100 + x)).max() < 1e-12


def test_conformal_quantile_by_hand():
    assert quantile(np.array([3.0, np.nan, 1.0, 2.0])) == 3.0
    assert quantile(np.arange(1.0, 100.0)) == 90.0
    assert np.isnan(quantile(np.array([np.nan])))


def test_mixed_precision_layers_cost_by_expert():
    rows = synthetic_rows()
    cheaper = [
        replace(
            r,
            dtype="int4",
            latency_us=r.latency_us / 3,
            latency_low_us=r.latency_us / 4,
            latency_sustained_us=r.latency_us / 3,
            energy_mj=r.energy_mj / 3,
        )
        for r in rows
    ]
    model = KernelCostModel().fit(CostDatabase([*rows, *cheaper]))
    bits = np.where(np.arange(128) < 32, 16, 4)
    layer = model.layer(QWEN3, bits)
    costs = layer.cost_per_expert(np.ones(128))
    assert costs.energy_j[0] > 2 * costs.energy_j[-1]
    one, other = (layer.predict(e, (4, 2048)) for e in (0, 127))
    assert one.latency_s.value > 2 * other.latency_s.value
    assert one == model.predict("expert_mlp", QWEN3, 4, 1)
    for expert, shape in ((128, (4, 2048)), (0, (4, 100)), (0, (0, 2048)), (0, (4,))):
        with pytest.raises(CostError):
            layer.predict(expert, shape)
    for wrong in ([16, 4], 0, float("nan")):
        with pytest.raises(CostError):
            model.layer(QWEN3, wrong)


def test_a_model_that_was_never_measured_gets_wider_intervals(monkeypatch):
    pytest.importorskip("sklearn", reason="trees are fitted with scikit-learn")
    monkeypatch.setattr("thermoe.cost.correction_fit.NETWORK_ROWS", 100)
    rng = np.random.default_rng(0)
    lines = []
    for i in range(6):
        model = {"hidden_size": 1024 + 512 * i, "inter_size": 512 * (1 + i % 3), "topk": 4, "num_experts": 64}
        own = 1.0 + 0.3 * (-1) ** i  # what no size tells
        for ranks in (1, 2, 4, 8):
            for tokens in (1, 8, 64, 512, 4096):
                work_ms = tokens * model["hidden_size"] * model["inter_size"] / ranks / 4e10
                latency_ms = (0.02 + work_ms) * own * np.exp(0.01 * rng.standard_normal())
                lines.append(
                    model | {"moe_ep_size": ranks, "num_tokens": tokens, "latency_ms": latency_ms, "power_w": 300.0}
                )
    table = pd.DataFrame(lines)
    (observed,) = group_table(table).values()
    fitted = KernelCostModel().fit(table)
    assert len(fitted.corrections_["expert_mlp"].models) == 6
    (strange,) = group_table(table.assign(topk=2)).values()
    known, unknown = (fitted.predict_cases(o.cases).log_error[:, 0] for o in (observed, strange))
    assert np.median(unknown / known) > 1.5


def moe_table() -> pd.DataFrame:
    shape = {"hidden_size": 2048, "inter_size": 768, "topk": 8, "num_experts": 128, "kernel_source": "vllm_fused_moe"}
    lines = [
        shape | {"num_tokens": t, "distribution": d, "moe_ep_size": ep, "latency_ms": 0.02 + 1e-3 * t, "power_w": 400.0}
        for t in (1, 16, 256)
        for d in ("balanced", "power_law_1.2")
        for ep in (1, 8)
    ]
    return pd.DataFrame(lines)


def test_products_and_layers_make_one_model_from_the_command_line(tmp_path, tables, capsys):
    gemm, moe, out = tmp_path / "gemm.parquet", tmp_path / "moe.csv", tmp_path / "m.json"
    tables[0].to_parquet(gemm)
    moe_table().to_csv(moe, index=False)
    assert Fit(tables=(gemm, moe), out=out).execute() == 0
    (gemm_line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gemm ")]
    assert gemm_line.endswith("neighbours")
    assert {key[0] for key in KernelCostModel.load(out).operations_} == {"gemm", "expert_mlp"}
    assert CostsEval(model=out, table=moe, json=True).execute() == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["all"]["rows"] == 12
    assert printed["operations"]["expert_mlp"]["latency"]["mape_pct"] < 60.0
    with pytest.raises(DataError, match="two tables hold gemm"):
        Fit(tables=(gemm, gemm), out=out).execute()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"distribution": "sideways"}, "distribution sideways"),
        ({"moe_ep_size": 3}, "must divide num_experts"),
        ({"topk": 200}, "more experts per token"),
        ({"num_tokens": 1.5}, "whole numbers"),
        ({"op": "sing"}, "op sing is not known"),
    ],
)
def test_tables_that_cannot_be_are_refused(change, words):
    with pytest.raises(DataError, match=words):
        KernelCostModel().fit(moe_table().assign(**change))


def test_skewed_loads_are_other_cases_than_balanced_ones():
    (observed,) = group_table(moe_table()).values()
    balanced, skewed = observed.cases.take([9]), observed.cases.take([11])  # 256 tokens on 8 GPUs
    assert balanced.ranks[0] == skewed.ranks[0] == 8
    assert skewed.loads.rows[0] > 1.5 * balanced.loads.rows[0]
    assert balanced.num_experts[0] == 16
