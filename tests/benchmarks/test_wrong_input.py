"""Benchmarks of costs and heat end in one line and code 2 where they are given something else."""

import gzip
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import cost_heldout, cost_samples, heat, profiler_join
from thermoe.cost.database import CostDatabase

pytest.importorskip("sklearn", reason="benchmarks.cost_rivals needs scikit-learn")

TRACE = {
    "env": {},
    "constant": {"source": "s", "kind": "measured"},
    "columns": ["time_s", "wall_time_s", "temp_c", "power_w"],
    "rows": [[i * 0.1, i * 0.1, 40.0, 100.0] for i in range(5)],
    "loads": [{"start_s": 0.0, "name": "a", "duty": 1.0, "planned_w": 100.0}],
}


def ends_in_one_line(capsys, main, words, said):
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--gemm", "missing.parquet"], "cannot be read as Parquet"),
        (["--gemm", "text.parquet"], "cannot be read as Parquet"),
        (["--gemm", "other.parquet"], "without the columns"),
        (["--gemm", "other.parquet", "--parts", "sing"], "choose from gemm_shapes"),
        (["--gemm", "other.parquet", "--methods", "guess"], "choose from gemm_shapes"),
        (["--gemm", "other.parquet", "--sample", "-3"], "0 or more"),
        ([], "no table for gemm_shapes"),
        (["--gemm", "other.parquet", "--out", "text.parquet"], "is no result of this benchmark"),
    ],
)
def test_samples(tmp_path, monkeypatch, capsys, change, said):
    monkeypatch.chdir(tmp_path)
    Path("text.parquet").write_text("no table")
    pd.DataFrame({"a": [1]}).to_parquet("other.parquet")
    ends_in_one_line(
        capsys, cost_samples.main, ["--parts", "gemm_shapes", "--methods", "law", "--out", "r.json", *change], said
    )
    assert Path("text.parquet").read_text() == "no table"


def test_held_out(tmp_path, capsys):
    empty = tmp_path / "e.costs.json"
    CostDatabase().save(empty)
    out = ["--out", str(tmp_path / "r.json")]
    ends_in_one_line(capsys, cost_heldout.main, [str(tmp_path / "missing"), *out], "cannot be read")
    ends_in_one_line(capsys, cost_heldout.main, [str(empty), *out], "leaving shapes out needs 2")
    ends_in_one_line(capsys, cost_heldout.main, [str(empty), "--folds", "-3", *out], "folds = -3")
    ends_in_one_line(capsys, cost_heldout.main, [str(empty), "--out", str(empty)], "would be lost")


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # workers that start in another second must name a test alike


def damaged() -> bytes:
    content = bytearray(packed(json.dumps(TRACE).encode()))
    content[30] ^= 255
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        damaged(),
        b"\x1f\x8b\x08\x00" + b"garbage" * 5,
        packed(json.dumps(TRACE | {"rows": [["a", "b", "c", "d"]] * 5}).encode()),
        packed(json.dumps(TRACE | {"rows": [[0.0, 0.0, float("nan"), 1.0]] * 5}).encode()),
        packed(json.dumps(TRACE | {"rows": TRACE["rows"][::-1]}).encode()),
        packed(json.dumps(TRACE | {"loads": [TRACE["loads"][0] | {"start_s": "x"}]}).encode()),
        packed(json.dumps(TRACE | {"columns": 5}).encode()),
        packed(b"[1, 2]"),
    ],
)
def test_heat(tmp_path, capsys, content):
    (tmp_path / "x.json.gz").write_bytes(content)
    words = ["--evaluate", str(tmp_path), "--out", str(tmp_path / "r.json")]
    ends_in_one_line(capsys, heat.main, words, "is no trace of loads")


def test_profiler_join(tmp_path, capsys):
    out = ["--out", str(tmp_path / "r.json")]
    ends_in_one_line(capsys, profiler_join.main, ["--recorded", str(tmp_path), *out], "holds no recording")
