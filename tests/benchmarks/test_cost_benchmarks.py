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

from benchmarks import cost_heldout, cost_samples
from thermoe.cost.database import CostDatabase
from thermoe.cost.held_out import folds_of_shapes

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
