from dataclasses import replace

import pytest
from cost_rows import KEY, make_row

from thermoe.commands.costs_parts import CostsParts
from thermoe.commands.costs_plot import CostsPlot
from thermoe.cost.command import CostsEval, Fit
from thermoe.cost.database import CostDatabase
from thermoe.cost.database_command import CostsShow
from thermoe.cost.diff_command import CostsDiff
from thermoe.errors import ConfigError, DataError


def test_a_model_judged_on_another_gpu_says_so(tmp_path, capsys):
    here, there, model = (tmp_path / name for name in ("a.costs.json", "b.costs.json", "m.json"))
    CostDatabase([make_row(100.0)]).save(here)
    CostDatabase([make_row(100.0, device=replace(KEY, gpu="Other GPU"))]).save(there)
    Fit(tables=(here,), out=model).execute()
    capsys.readouterr()
    assert CostsEval(model=model, table=here).execute() == 0
    assert "was fitted on" not in capsys.readouterr().err
    assert CostsEval(model=model, table=there).execute() == 0
    said = capsys.readouterr().err
    assert "was fitted on Test GPU" in said
    assert "flatter" not in said


def test_a_fit_does_not_write_over_its_database(tmp_path):
    costs = tmp_path / "a.costs.json"
    CostDatabase([make_row(100.0)]).save(costs)
    with pytest.raises(ConfigError, match="would be lost"):
        Fit(tables=(costs,), out=costs).execute()
    assert len(CostDatabase.load(costs)) == 1


def test_rows_that_only_show_that_a_case_runs_are_called_so_by_every_command(tmp_path, capsys):
    smoke, both = tmp_path / "s.costs.json", tmp_path / "b.costs.json"
    row = make_row(100.0, occasion="smoke 2026-11-22T07:51:05Z")
    CostDatabase([row]).save(smoke)
    CostDatabase([row, make_row(90.0)]).save(both)
    commands = (
        Fit(tables=(smoke,), out=tmp_path / "m.json"),
        CostsParts(databases=(smoke,)),
        CostsPlot(databases=(smoke,), out=tmp_path / "p.png"),
        CostsDiff(old=smoke, new=both),
    )
    for command in commands:
        with pytest.raises(DataError, match="all 1 rows show only that their case runs: measure without --smoke"):
            command.execute()
    CostsShow(database=both).execute()
    lines = [line for line in capsys.readouterr().out.splitlines() if " us, - (" in line]
    assert sorted("(smoke)" in line for line in lines) == [False, True]


def test_no_row_with_an_energy_is_said(tmp_path, capsys):
    costs = tmp_path / "a.costs.json"
    CostDatabase([make_row(100.0, energy_mj=None, energy_integrated_mj=None, power_w=None)]).save(costs)
    assert CostsShow(database=costs, energy=True).execute() == 0
    assert "none of 1 rows has an energy" in capsys.readouterr().out


def test_paths_may_be_strings(tmp_path):
    CostDatabase([make_row(100.0)]).save(str(tmp_path / "a.costs.json"))
    assert len(CostDatabase.load(str(tmp_path / "a.costs.json"))) == 1
    with pytest.raises(DataError, match="cannot be read"):
        CostDatabase.load("nope")
