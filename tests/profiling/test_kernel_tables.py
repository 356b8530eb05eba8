import json
import subprocess

import pandas as pd
import pytest
from profiling_cases import make_case

from thermoe.errors import ConfigError, CostError
from thermoe.profiling.command import Profile
from thermoe.profiling.kernel_tables import KERNEL_RUNNERS, find_runner, profile_kernels


def stand_in(script, arguments, python):
    """Takes a script as a profiler would, and refuses one case."""
    subprocess.run([python, "-m", "py_compile", str(script)], check=True)
    assert arguments == ["--repeats", "20", "--device", "cpu"]
    if "'routed_rows': 21" in script.read_text():
        raise CostError("nsys ended with 1: no room")
    return pd.DataFrame({"kernel_name": ["a", "b"], "op_type": "expert_mlp", "energy_j": [0.5, None], "power_w": None})


def test_kernels_of_all_cases_come_with_their_case_and_failures_with_their_words(tmp_path, monkeypatch):
    monkeypatch.setattr("thermoe.profiling.kernel_tables.find_runner", lambda name: stand_in)
    out, lines = tmp_path / "kernels.parquet", []
    cases = [make_case(), make_case(routed_rows=21), make_case(distinct_experts=6)]
    result = profile_kernels(
        cases, "nsys", out, minutes=None, device="cpu", report=lambda done, line: lines.append((done, line))
    )
    assert (result.measured, result.failed, result.left) == (2, 1, 0)
    table = pd.read_parquet(out)
    assert table["case_distinct_experts"].tolist() == [5, 5, 6, 6]
    assert table["kernel_name"].tolist() == ["a", "b", "a", "b"]
    assert table["power_w"].isna().all()
    (failure,) = json.loads((tmp_path / "kernels.failures.json").read_text())
    assert failure["message"] == "nsys ended with 1: no room"
    assert [done for done, _ in lines] == [1, 2, 3]


def test_time_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr("thermoe.profiling.kernel_tables.find_runner", lambda name: stand_in)
    out = tmp_path / "kernels.parquet"
    result = profile_kernels([make_case()], "nsys", out, minutes=-1.0, device="cpu", report=lambda done, line: None)
    assert result.left == 1


def test_every_runner_is_there_and_others_are_refused():
    assert all(callable(find_runner(name)) for name in KERNEL_RUNNERS)
    with pytest.raises(ConfigError, match="choose from nsys, ncu, torch"):
        find_runner("gprof")


def test_a_table_of_kernels_needs_a_parquet_file(tmp_path):
    with pytest.raises(ConfigError, match="parquet"):
        Profile(out=tmp_path / "x.costs.json", ops=("copy",), device="cpu", runner="nsys").execute()


def test_where_the_profiler_is_missing_each_case_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Profile(out=tmp_path / "x.parquet", ops=("copy",), device="cpu", runner="nsys").execute() == 1
    assert "no executable nsys" in capsys.readouterr().err


def test_an_interrupt_keeps_what_was_found_and_old_failures_go(tmp_path, monkeypatch):
    calls = []

    def interrupted(script, arguments, python):
        calls.append(script)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return stand_in(script, arguments, python)

    monkeypatch.setattr("thermoe.profiling.kernel_tables.find_runner", lambda name: interrupted)
    out = tmp_path / "kernels.parquet"
    (tmp_path / "kernels.failures.json").write_text("[]")
    cases = [make_case(), make_case(distinct_experts=6)]
    with pytest.raises(KeyboardInterrupt):
        profile_kernels(cases, "nsys", out, minutes=None, device="cpu", report=lambda done, line: None)
    assert len(pd.read_parquet(out)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["kernels.parquet"]
