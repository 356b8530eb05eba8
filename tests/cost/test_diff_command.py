"""Two databases that hold no case in common are told apart in one line, and the command fails."""

from dataclasses import replace

import pytest
from cost_rows import KEY, make_row

from thermoe.cli import main
from thermoe.cost.database import CostDatabase


@pytest.fixture
def differ(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(old, new, *options):
        CostDatabase(old).save("a.costs.json")
        CostDatabase(new).save("b.costs.json")
        code = main(["costs", "diff", "a.costs.json", "b.costs.json", *options])
        told = capsys.readouterr()
        assert not told.out
        (line,) = told.err.splitlines()
        return code, line

    return run


@pytest.mark.parametrize("options", [(), ("--json",), ("--changed",)])
def test_other_operations_and_formats(differ, options):
    old = [make_row(100.0), make_row(100.0, op="copy", impl="torch")]
    new = [make_row(100.0, dtype="int4"), make_row(100.0, op="gemm", impl="torch")]
    code, line = differ(old, new, *options)
    assert code == 2
    assert line.startswith(
        "thermoe: error: a.costs.json and b.costs.json have no case in common; in both: operation exp"
    )
    common, apart = line.split("; not in both: ")
    assert "operation expert_mlp; implementation torch, grouped_mm; format bfloat16; shape D2048" in common
    assert apart == "operation copy (the first alone), gemm (the second alone); format int4 (the second alone)"


def test_the_same_parts_in_other_combinations(differ):
    old = [make_row(100.0, dtype="int4"), make_row(100.0, active_experts=8)]
    new = [make_row(100.0), make_row(100.0, dtype="int4", active_experts=8)]
    code, line = differ(old, new)
    assert code == 2
    assert line.endswith("but no case combines these in the same way")


def test_long_lists_are_cut(differ):
    code, line = differ([make_row(1.0, routed_rows=n) for n in range(40, 50)], [make_row(1.0, routed_rows=50)])
    assert code == 2
    assert "rows 40, 41, 42, 43 and 6 more (the first alone), 50 (the second alone)" in line


def test_nothing_at_all(differ):
    code, line = differ([], [make_row(1.0)])
    assert (code, line) == (2, "thermoe: error: a.costs.json holds no row: there is nothing to compare")


def test_one_gpu_may_still_be_compared_with_one_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = replace(KEY, gpu="Other GPU")
    CostDatabase([make_row(100.0)]).save("a.costs.json")
    CostDatabase([make_row(90.0, device=other)]).save("b.costs.json")
    assert main(["costs", "diff", "a.costs.json", "b.costs.json"]) == 0
    assert "latency -10.0 %" in capsys.readouterr().out
