import json
import subprocess

import pandas as pd
import pytest
from profiling_cases import make_case

from thermoe import cli
from thermoe.errors import ConfigError, CostError
from thermoe.profiling.command import Profile
from thermoe.profiling.external import ProfilerUnusableError
from thermoe.profiling.kernel_tables import KERNEL_RUNNERS, find_runner, profile_kernels, refuse_useless_runner


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


@pytest.mark.parametrize(
    ("runner", "said"),
    [
        ("nsys", "no executable nsys: install NVIDIA Nsight Systems"),
        ("ncu", "no executable ncu: install NVIDIA Nsight Compute"),
        ("torch", "runner torch gives the kernels of a GPU, and this is a cpu"),
    ],
)
def test_a_profiler_that_can_do_nothing_here_is_one_line_before_the_first_case(
    tmp_path, monkeypatch, capsys, runner, said
):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "x.parquet"
    assert cli.main(["profile", "--device", "cpu", "--runner", runner, "--ops", "copy", "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_an_installed_profiler_needs_a_gpu_too(tmp_path, monkeypatch):
    program = tmp_path / "ncu"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="gives the kernels of a GPU"):
        refuse_useless_runner("ncu", tmp_path / "x.parquet", "cpu")
    refuse_useless_runner("ncu", tmp_path / "x.parquet", "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="writes its table with pandas, pyarrow"):
        refuse_useless_runner("ncu", tmp_path / "x.parquet", "cuda")


def test_a_profiler_that_turns_out_to_be_of_no_use_ends_the_run(tmp_path, monkeypatch):
    calls = []

    def forbidden(script, arguments, python):
        calls.append(script)
        raise ProfilerUnusableError("ncu may not read the counters")

    monkeypatch.setattr("thermoe.profiling.kernel_tables.find_runner", lambda name: forbidden)
    cases = [make_case(), make_case(distinct_experts=6)]
    with pytest.raises(ProfilerUnusableError, match="may not read"):
        profile_kernels(
            cases, "ncu", tmp_path / "x.parquet", minutes=None, device="cpu", report=lambda done, line: None
        )
    assert len(calls) == 1


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
