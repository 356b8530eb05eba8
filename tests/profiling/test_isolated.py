import ast
import subprocess
import sys

import pytest
from profiling_cases import make_case

from thermoe.errors import CostError
from thermoe.profiling.in_process import Protocol
from thermoe.profiling.isolated import measure_isolated, repeat, run_script, write_script

QUICK = Protocol(rounds=3, min_steps=1, max_steps=1, cache_bytes=1.0)


def test_a_script_holds_its_case_and_nothing_of_this_machine(tmp_path):
    case = make_case(load="zipf")
    script = write_script(case, tmp_path / "case.py")
    tree = ast.parse(script.read_text())
    (values,) = [ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)]
    assert type(case).from_dict(values) == case
    assert str(tmp_path) not in script.read_text()


def test_a_script_runs_alone(tmp_path):
    script = write_script(make_case(), tmp_path / "case.py")
    command = [sys.executable, str(script), "--device", "cpu", "--repeats", "3"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_case_measured_in_its_own_process_becomes_a_row():
    row = measure_isolated("cpu", QUICK, "2026-01-01T00:00:00Z")(make_case())
    assert row.case_key == make_case().key
    assert row.latency_us > 0
    assert row.occasion == "2026-01-01T00:00:00Z"


def test_a_process_that_fails_is_one_error_with_its_last_words():
    with pytest.raises(CostError, match=r"ended with 1: (.|\n)*no implementation magic"):
        measure_isolated("cpu", QUICK, "")(make_case(impl="magic"))


def test_a_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr("thermoe.profiling.isolated.TIMEOUT_S", 0.05)
    with pytest.raises(CostError, match="did not end"):
        measure_isolated("cpu", QUICK, "")(make_case())


def test_a_script_measures_with_the_usual_protocol_of_a_cpu(capsys):
    assert run_script(make_case().as_dict(), ["--device", "cpu"]) == 0
    assert " us\n" in capsys.readouterr().out


def test_every_repeat_stands_in_a_range_that_profilers_see():
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        repeat(make_case(), "cpu", 4)
    assert {e.key: e.count for e in seen.key_averages()}["thermoe::expert_mlp"] == 4
