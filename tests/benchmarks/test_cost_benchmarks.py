"""Both benchmarks of the cost model on small made-up data: shapes stay together, figures are those of left-out rows."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cost"))

from cost_rows import SHAPES, synthetic_rows

from benchmarks import cost_heldout, cost_labels, cost_samples, cost_speed
from thermoe.cost.database import CostDatabase
from thermoe.cost.held_out import folds_of_shapes
from thermoe.cost.kernel_cost_model import KernelCostModel

pytest.importorskip("sklearn", reason="the boosted rival is fitted with scikit-learn")


def test_own_shapes_are_left_out_whole(tmp_path, capsys):
    costs, out = tmp_path / "c.costs.json", tmp_path / "r.json"
    database = CostDatabase(synthetic_rows(noise=0.01))
    database.save(costs)
    folds = folds_of_shapes(database, 2, seed=0)
    assert sum(map(len, folds)) == len(SHAPES)
    assert cost_heldout.main([str(costs), "--folds", "2", "--out", str(out)]) == 0
    part = json.loads(out.read_text())["operations"]["expert_mlp"]["all"]
    assert part["rows"] == part["energy_rows"] == len(database)
    assert part["latency"]["mape_pct"] < part["roofline_latency_mape_pct"]
    assert part["energy"]["mape_pct"] < part["mean_power_energy_mape_pct"]
    assert "expert_mlp" in capsys.readouterr().out


def products() -> pd.DataFrame:
    lines = [
        {
            "gemm_dtype": "bfloat16",
            "m": m,
            "n": n,
            "k": k,
            "latency_ms": 0.01 + m * n * k / 3e11,
            "power_w": 200.0 + n / 50,
        }
        for m in (1, 64, 1024)
        for n in (256, 1024, 4096)
        for k in (512, 2048)
    ]
    return pd.DataFrame(lines)


def test_groups_of_others_tables_stay_together_and_every_method_answers(tmp_path):
    table = products()
    folds = cost_samples.folds_of(table, ["n", "k"], 3, seed=0)
    assert (table.assign(fold=folds).groupby(["n", "k"])["fold"].nunique() == 1).all()
    assert np.unique(cost_samples.folds_of(table, ["n", "k"], None, seed=0)).size == 6
    path, out = tmp_path / "gemm.parquet", tmp_path / "r.json"
    table.to_parquet(path)
    options = ["--gemm", str(path), "--parts", "gemm_shapes", "--methods", "thermoe,calibrated_roofline,boosted,law"]
    assert cost_samples.main([*options, "--out", str(out)]) == 0
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == set(cost_samples.METHODS)
    assert all(row["rows"] == len(table) and row["kind"] == "predicted" for row in rows.values())
    assert rows["thermoe"]["latency"]["mape_pct"] < 20.0


def test_figures_by_hand():
    said, truth, half = np.array([1.0, 2.0]), np.array([2.0, 2.0]), np.array([0.1, 0.1])
    found = cost_samples.figures(said, truth, half)
    assert (found["mape_pct"], found["coverage_pct"]) == (25.0, 50.0)
    assert found["width_pct"] == pytest.approx(10.017, abs=0.01)
    assert cost_samples.figures(said, truth, half * np.nan)["coverage_pct"] is None


def layers() -> pd.DataFrame:
    line = {"hidden_size": 64, "inter_size": 32, "topk": 2, "num_experts": 8, "moe_tp_size": 1, "moe_ep_size": 1}
    line |= {"kernel_source": "k", "moe_dtype": "bfloat16", "num_tokens": 4, "distribution": "balanced"}
    wide = line | {"hidden_size": 128, "inter_size": 64, "moe_tp_size": 2}
    measured = [
        line | {"latency_ms": 1.0, "power_w": 300.0},
        line | {"latency_ms": 1.01, "power_w": 100.0, "distribution": "power_law_1.2"},
        line | {"latency_ms": 1.05, "power_w": 900.0, "distribution": "random"},
        wide | {"latency_ms": 3.0, "power_w": 500.0},
        wide | {"latency_ms": 3.0, "power_w": 500.0, "num_tokens": 8},
    ]
    return pd.DataFrame(measured)


def test_labels_of_rows_that_ask_nearly_the_same(tmp_path, capsys):
    path, out = tmp_path / "t.parquet", tmp_path / "r.json"
    layers().to_parquet(path)
    assert cost_labels.main([str(path), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert (found["same_layer"]["pairs"], found["same_layer"]["power_differs_mean_pct"]) == (1, 100.0)
    assert (found["same_on_gpu"]["pairs"], found["same_on_gpu"]["power_differs_mean_pct"]) == (1, 50.0)
    layers().drop(columns="topk").to_parquet(path)
    assert cost_labels.main([str(path), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_speed_is_timed(tmp_path, monkeypatch):
    model, out = tmp_path / "m.json", tmp_path / "r.json"
    KernelCostModel().fit(CostDatabase(synthetic_rows())).save(model)
    for name, count in (("SINGLES", 3), ("BATCHES", 2), ("BATCH", 16)):
        monkeypatch.setattr(cost_speed, name, count)
    assert cost_speed.main([str(model), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert 0 < found["in_batches"]["best_us"] < found["alone"]["best_us"] <= found["alone"]["median_us"]
