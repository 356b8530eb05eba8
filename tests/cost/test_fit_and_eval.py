"""`thermoe fit` and `thermoe costs eval` say what was left out, what is missed, and when errors flatter."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cost_rows import KEY, QWEN3, make_row, synthetic_rows

from thermoe.cost.command import CostsEval, Fit
from thermoe.cost.database import CostDatabase
from thermoe.cost.evaluate import evaluate
from thermoe.cost.fingerprints import as_text, cases_and_shapes, from_text
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import group_database
from thermoe.errors import DataError
from thermoe.types import Kind

SEEN = [row for row in synthetic_rows() if row.hidden_size != QWEN3.hidden_size]
UNSEEN = [row for row in synthetic_rows() if row.hidden_size == QWEN3.hidden_size]


@pytest.fixture
def model_of(tmp_path, capsys):
    def fit(rows):
        CostDatabase(rows).save(tmp_path / "fit.costs.json")
        assert Fit(tables=(tmp_path / "fit.costs.json",), out=tmp_path / "m.json").execute() == 0
        return tmp_path / "m.json"

    return fit


@pytest.fixture
def judged(tmp_path, capsys):
    def run(model, rows):
        table = tmp_path / "t.costs.json"
        CostDatabase(rows).save(table)
        capsys.readouterr()
        assert CostsEval(model=model, table=table).execute() == 0
        told = capsys.readouterr()
        assert CostsEval(model=model, table=table, json=True).execute() == 0
        return told.out, told.err, json.loads(capsys.readouterr().out)

    return run


def test_rows_that_were_in_the_fit_are_said_to_flatter(model_of, judged):
    model = model_of(SEEN)
    out, err, figures = judged(model, SEEN)
    assert f"all {len(SEEN)} rows were in the fit of {model}: these errors flatter; judge the model on shapes" in err
    assert figures["all"]["rows_in_fit"] == figures["all"]["rows_of_seen_shapes"] == len(SEEN)
    assert "unseen" not in figures
    assert out.splitlines()[0].split()[:4] == ["rows", "in", "the", "fit"]
    assert out.splitlines()[1].split()[:3] == ["all", str(len(SEEN)), str(len(SEEN))]


def test_a_case_measured_again_with_another_result_was_in_the_fit(model_of, judged):
    again = [replace(row, latency_us=1.01 * row.latency_us, occasion="later", skew=1.7) for row in SEEN[:3]]
    _, err, _ = judged(model_of(SEEN), again)
    assert "all 3 rows were in the fit" in err


def test_rows_of_other_shapes_do_not_flatter(model_of, judged):
    _, err, figures = judged(model_of(SEEN), UNSEEN)
    assert not err
    assert figures["all"]["rows_in_fit"] == figures["all"]["rows_of_seen_shapes"] == 0
    assert "unseen" not in figures


def test_of_both_the_last_line_has_those_of_other_shapes(model_of, judged):
    other_load = replace(SEEN[0], tokens=3, routed_rows=3 * SEEN[0].top_k, active_experts=SEEN[0].top_k)
    model = model_of(SEEN)
    out, err, figures = judged(model, [*SEEN[:2], other_load, *UNSEEN])
    rows = len(UNSEEN) + 3
    assert f"2 of {rows} rows were in the fit of {model}, 1 more have a shape that was: these errors flatter; " in err
    assert "the last line has the rows of other shapes" in err
    assert figures["all"]["rows_in_fit"] == 2
    alone = judged(model, UNSEEN)[2]["all"]
    assert set(figures["unseen"]) == set(alone)
    for name, figure in alone.items():
        assert figures["unseen"][name] == pytest.approx(figure), name
    assert out.split("\n\n")[0].splitlines()[-1].startswith("shapes not in the fit")
    _, err, _ = judged(model, [other_load])
    assert f"all 1 rows have a shape that was in the fit of {model}: these errors flatter" in err
    _, err, _ = judged(model, [other_load, *UNSEEN])
    assert f"1 of {len(UNSEEN) + 1} rows have a shape that was in the fit of {model}: these errors flatter" in err


def test_a_model_file_without_its_cases_says_so(model_of, judged):
    model = model_of(SEEN)
    content = json.loads(model.read_text())
    model.write_text(json.dumps({name: part for name, part in content.items() if name != "seen"}))
    out, err, figures = judged(model, SEEN)
    assert f"{model} does not say what it was fitted to" in err
    assert figures["all"]["rows_in_fit"] is None
    assert out.splitlines()[1].split()[:3] == ["all", str(len(SEEN)), "-"]
    KernelCostModel.load(model).save(model)
    assert KernelCostModel.load(model).seen_ is None
    for damaged in (7, "nonsense!", "AAAA"):
        model.write_text(json.dumps(content | {"seen": damaged}))
        with pytest.raises(DataError, match="no fingerprints"):
            KernelCostModel.load(model)


def test_rows_of_a_plain_table_are_known_again(tmp_path):
    table = pd.DataFrame({"m": [1, 8, 64] * 2, "n": [64] * 3 + [128] * 3, "k": [256] * 6, "latency_us": [5.0] * 6})
    model = KernelCostModel().fit(table.iloc[:3])
    counts = [evaluate(model, part)["all"]["rows_in_fit"] for part in (table, table.iloc[3:], table.iloc[1:2])]
    assert counts == [3, 0, 1]


def test_fingerprints_tell_cases_apart_and_survive_writing():
    cases = group_database(CostDatabase(synthetic_rows()))["expert_mlp"].cases
    case, shape = cases_and_shapes(cases)
    assert len(np.unique(case)) == len(cases)
    assert len(np.unique(shape)) == 5
    assert set(from_text(as_text(case), "m.json")) == set(case)
    assert len(from_text("", "m.json")) == 0


def test_what_a_fit_leaves_out_is_said_in_one_line(model_of, capsys):
    rows = [
        *SEEN,
        make_row(1.0, op="matmul"),
        make_row(1.0, op="matmul", tokens=17),
        make_row(1.0, dtype="nf4"),
        make_row(1.0, occasion="smoke 2026"),
        make_row(1.0, kind=Kind.PREDICTED, device=replace(KEY, torch="3")),
    ]
    model_of(rows)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "left out: 2 rows of operation matmul, which the model does not know; 1 row in nf4, a format that the model "
        "does not know; 1 row of smoke runs, which show only that a case runs; 1 row of kind predicted, not measured"
    )


def test_a_fit_is_told_in_a_table_without_unknowns(model_of, capsys):
    silent = {"energy_mj": None, "power_w": None, "latency_sustained_us": None}
    model_of([*SEEN, make_row(5.0, op="copy", impl="torch"), *(replace(r, op="linear_fc1", **silent) for r in SEEN)])
    out = capsys.readouterr().out
    assert "unknown" not in out
    header, *lines = out.splitlines()
    assert " ".join(header.split()) == "operation implementation format rows with energy latency energy corrected by"
    cells = {line.split()[0]: line.split() for line in lines[:3]}
    assert cells["expert_mlp"][3:5] == [str(len(SEEN))] * 2
    assert cells["expert_mlp"][6] == cells["expert_mlp"][8] == "%"
    assert cells["linear_fc1"][4] == "0"
    assert cells["linear_fc1"][6] == cells["linear_fc1"][8] == "%"  # energy from the power of the other operation
    assert cells["copy"][3:] == ["1", "0", "-", "-", "nothing"]
    assert len({line.index("bfloat16") for line in lines[:3]}) == 1
    assert "90 % of rows left out of the fit are missed by less than this" in out
    assert "-: not measured, or too few rows to leave some out" in out
