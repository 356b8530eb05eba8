import io

import pandas as pd
import pytest
from synthetic_run import EVERYTHING, Plan, write_run

from thermoe.analysis import tables
from thermoe.analysis.load import load_runs
from thermoe.analysis.tables import Column, Table, escape_latex
from thermoe.analysis.view import RunView


@pytest.fixture(scope="module")
def view(run_dir):
    return RunView.of(load_runs([run_dir])[0])


def test_latex_makes_every_special_character_literal():
    assert escape_latex(r"a_b & 50% of $5 #1 {x} ~ ^ \y") == (
        r"a\_b \& 50\% of \$5 \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}y"
    )


def test_a_latex_table_has_one_line_a_row_and_as_many_cells_as_columns():
    columns = [Column("name", "name_of & all"), Column("x", "x [%]", "{:.1f}", ends=True)]
    rows = [
        {"name": "50%", "x": 1.0, "x_low": 0.5, "x_high": 2.0},
        {"name": "b\nc", "x": None, "x_low": 1, "x_high": 2},
    ]
    text = Table("t", "T", "a note\nin two lines", columns, rows).latex()
    assert text.splitlines() == [
        "% a note in two lines",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"name\_of \& all & x {[}\%{]} \\",
        r"\midrule",
        r"50\% & 1.0 {[}0.5, 2.0{]} \\",
        r"b c & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_csv_keeps_full_precision_and_leaves_unknowns_empty(view):
    table = tables.headline([view])
    frame = pd.read_csv(io.StringIO(table.csv()))
    expected = view.figures_of("code", "kernel_aware")
    row = frame[(frame["workload"] == "code") & (frame["strategy"] == "kernel_aware")].iloc[0]
    assert row["energy_j_per_token"] == pytest.approx(expected["energy_j_per_token"]["value"], rel=1e-15)
    assert row["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-15)
    assert row["kind"] == "simulated"
    assert pd.isna(frame[frame["strategy"] == "baseline"]["energy_saved_pct"]).all()


def test_every_table_says_kind_and_pricing(view):
    for make in tables.ALL:
        table = make([view])
        assert "simulated, priced as qwen3-30b-a3b" in table.note
        assert "kind" in [column.key for column in table.columns]


def test_savings_have_the_sign_of_savings(view):
    rows = {(r["workload"], r["strategy"]): r for r in tables.headline([view]).rows}
    base, cheap = rows["prose", "baseline"], rows["prose", "kernel_aware_ttha"]
    expected = 100 * (1 - cheap["energy_j_per_token"] / base["energy_j_per_token"])
    assert cheap["energy_saved_pct"] == pytest.approx(expected)
    assert cheap["energy_saved_pct_low"] < expected < cheap["energy_saved_pct_high"]


def test_energy_estimates_show_how_far_they_disagree(view):
    row = tables.energy_estimates([view]).rows[0]
    assert row["disagreement_pct"] == pytest.approx(1.0)
    assert row["prediction_error_pct"] == pytest.approx(-3.0)


def test_a_run_of_nulls_gives_tables_of_dashes(tmp_path):
    run = write_run(tmp_path / "run", Plan(nulls=EVERYTHING, num_batches=1, num_steps=2, samples=1))
    view = RunView.of(load_runs([run])[0])
    assert {cell for cells in tables.headline([view]).cells for cell in cells[2:]} == {"–"}
    assert tables.tests([view]).rows == []


def test_limits_have_a_column_where_there_are_any(tmp_path, view):
    assert "limits" not in [column.heading for column in tables.headline([view]).columns]
    run = write_run(tmp_path / "run", Plan(num_batches=2, num_steps=4))
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text("power_budget_w = 20\n" + config)
    limited = RunView.of(load_runs([run])[0])
    table = tables.headline([limited])
    cells = {row[1]: row[-1] for row in table.cells if row[0] == "prose"}
    assert table.columns[-1].heading == "limits"
    assert cells["baseline"] == "–"
    assert cells["kernel_aware_ttha"].endswith("> 20 W")
    both = tables.headline([view, limited])
    assert {row[-1] for row in both.cells if row[0] == view.label} == {"–"}
