"""Databases that come with the package are found by their bare name, unless a file of that name is there."""

import json
from pathlib import Path

import pytest
from cost_rows import make_row

from thermoe.cli import main
from thermoe.cost.database import CostDatabase
from thermoe.cost.shipped import SHIPPED, shipped_databases


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["h200", "h200.costs.json"])
def test_a_bare_name_is_the_shipped_database(name):
    shipped = CostDatabase.load(shipped_databases()[SHIPPED])
    assert CostDatabase.load(name).rows == CostDatabase.load(Path(name)).rows == shipped.rows


def test_a_local_file_comes_first(capsys):
    CostDatabase([make_row(100.0)]).save("h200.costs.json")
    assert len(CostDatabase.load("h200.costs.json")) == 1
    assert len(CostDatabase.load("h200")) > 1  # no file of that name


@pytest.mark.parametrize("path", ["./no/h200", "h100", "/h200.costs.json", "h200.json", "h200.costs"])
def test_only_a_bare_name_is_one(path, capsys):
    assert main(["costs", "show", path]) == 2
    told = capsys.readouterr().err
    assert "cannot be read (No such file or directory)" in told
    assert "thermoe costs show lists the shipped ones" in told


@pytest.mark.parametrize(
    "words",
    [
        ["costs", "show", "h200"],
        ["costs", "diff", "h200", "h200.costs.json"],
        ["costs", "merge", "h200", "--out", "m.costs.json"],
        ["costs", "plot", "h200", "--out", "p.svg"],
        ["costs", "report", "h200", "--out", "p.html"],
        ["costs", "predict", "h200", "--gpu", "b200", "--out", "b.costs.json"],
        ["fit", "h200", "--out", "m.json"],
    ],
)
def test_every_command_takes_it(words, capsys):
    assert main(words) == 0, capsys.readouterr().err


def test_show_without_a_database_lists_them_with_their_paths(capsys):
    assert main(["costs", "show"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("h200:")]
    path = shipped_databases()[SHIPPED]
    assert path.is_file()
    assert str(path) in line
    assert f"{len(CostDatabase.load(path))} rows" in line
    assert "NVIDIA H200" in line
    assert main(["costs", "show", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"name": "h200", "path": str(path), "gpus": ["NVIDIA H200"], "rows": len(CostDatabase.load(path))}


def test_filters_want_a_database(capsys):
    assert main(["costs", "show", "--ops", "gemm"]) == 2
    assert "no database was named" in capsys.readouterr().err
