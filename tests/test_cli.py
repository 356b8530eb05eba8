"""The command line: exit codes, one-line errors, light help."""

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.resources import files

import pytest

import thermoe
import thermoe.types
from thermoe import cli, doctor
from thermoe.errors import ConfigError, TelemetryError


@dataclass(frozen=True)
class Fail:
    """Fail in a chosen way.

    Attributes:
        how: Which exception.
        times: How often.
    """

    how: str = "no"
    times: int = 1

    def execute(self) -> int:
        """Raise, or return the exit code of a failed check."""
        failures = {
            "config": ConfigError("k0 = 9: needs\n at most top_k = 8"),
            "interrupt": KeyboardInterrupt(),
            "full": OSError(errno.ENOSPC, "No space left on device", "/far/x.parquet"),
            "missing": FileNotFoundError(errno.ENOENT, "No such file or directory", "text.txt"),
            "pipe": BrokenPipeError(),
            "bug": ZeroDivisionError("ours"),
        }
        if self.how in failures:
            raise failures[self.how]
        return 1


@pytest.fixture
def fail_command(monkeypatch):
    entry = cli.Entry(__name__, "Fail", "fail in a chosen way")
    monkeypatch.setitem(cli.COMMANDS, "fail", entry)
    monkeypatch.setitem(cli.COMMANDS, "group fail", entry)
    monkeypatch.setattr(cli, "_silence_stdout", lambda: None)


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("no", 1, ""),
        ("config", 2, "thermoe: error: k0 = 9: needs at most top_k = 8\n"),
        ("interrupt", 130, "thermoe: interrupted\n"),
        (
            "full",
            2,
            "thermoe: error: No space left on device: /far/x.parquet; free some space or choose another folder\n",
        ),
        ("missing", 2, "thermoe: error: No such file or directory: text.txt\n"),
        ("pipe", 141, ""),
    ],
)
@pytest.mark.usefixtures("fail_command")
def test_each_failure_has_its_exit_code_and_at_most_one_line(how, code, said, capsys):
    assert cli.main(["fail", "--how", how]) == code
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("fail_command")
def test_a_bug_of_ours_is_not_dressed_up_as_the_users_mistake():
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail", "--how", "bug"])


@pytest.mark.parametrize("arguments", [["fail", "--nonsense"], ["fail", "--times", "often"], ["group", "fail", "--x"]])
@pytest.mark.usefixtures("fail_command")
def test_wrong_options_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("fail_command")
def test_options_after_a_two_word_command_reach_it():
    assert cli.main(["group", "fail"]) == 1


@pytest.mark.parametrize("arguments", [["nonsense"], ["group"], ["group", "nonsense"], ["--nonsense"]])
@pytest.mark.usefixtures("fail_command")
def test_an_unknown_command_names_the_known_ones(arguments, capsys):
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert "group fail" in err
    assert err.count("\n") == 1


def test_nothing_typed_shows_the_commands_and_fails(capsys):
    assert cli.main([]) == 2
    assert "doctor" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"thermoe {thermoe.__version__}\n"


def test_names_that_a_terminal_cannot_show_are_escaped(tmp_path):
    costs = files("thermoe.cost.data") / "h200.costs.json"
    path = tmp_path / "x.costs.json"
    path.write_text(costs.read_text(encoding="utf-8").replace("NVIDIA H200", "H\\ud800 \\u4e2d"), encoding="utf-8")
    command = [sys.executable, "-m", "thermoe", "costs", "show", str(path)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("H\\ud800 \\u4e2d (driver")


def test_help_lists_every_command_in_under_a_second():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "thermoe", "--help"], capture_output=True, text=True, check=True)
    took_s = time.perf_counter() - start
    assert [name for name in cli.COMMANDS if name not in done.stdout] == []
    assert took_s < 1.0


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_explains_its_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert f"thermoe {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("installed", "verdict"),
    [
        (None, "missing"),
        ("2.10.9", "too old"),
        ("2.11.0", "ok"),
        ("2.13.0+cpu", "ok"),
        ("2.14.0a0", "newer than tested"),
        ("3.0", "newer than tested"),
        ("2.9.1", "too old"),
    ],
)
def test_versions_are_compared_as_numbers(installed, verdict):
    assert doctor.judge_version("torch", installed)["verdict"] == verdict


def test_doctor_without_nvml_says_why_and_exits_with_0(monkeypatch, capsys):
    def no_driver(index):
        raise TelemetryError("NVML library not found: install the NVIDIA driver")

    monkeypatch.setattr("thermoe.telemetry.nvml.NvmlSource", no_driver)
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nvml"] == {"sensors": {}, "why": "NVML library not found: install the NVIDIA driver"}
    assert found["versions"]["torch"]["verdict"] == "ok"
    assert {"mixtral", "qwen3_moe", "gpt_oss"} <= set(found["families"])


@pytest.mark.parametrize("found", ["NVRTC", None])
def test_doctor_says_what_builds_cuda_kernels(monkeypatch, capsys, found):
    monkeypatch.setattr("thermoe.kernels.cuda_build.compiler_name", lambda: found)
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compiler"] == found
    assert cli.main(["doctor"]) == 0
    assert (found or "Triton's kernels") in " ".join(capsys.readouterr().out.split())


def test_doctor_tells_a_silent_sensor_from_one_that_reads_zero(monkeypatch, capsys):
    class Card:
        def __init__(self, index):
            assert index == 0

        def read(self):
            return thermoe.types.SysState(
                time_s=1.0, wall_time_s=2.0, source="nvml:0", kind=thermoe.types.Kind.MEASURED, gpu_util=0.0
            )

    monkeypatch.setattr("thermoe.telemetry.nvml.NvmlSource", Card)
    assert cli.main(["doctor"]) == 0
    rows = {line.split()[1]: line.split()[3] for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert rows["gpu_util"] == "0"
    assert rows["fan_speed"] == "silent"


@pytest.fixture
def recorded_log(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("time_s,power_w,fan_speed\n0.0,101.5,\n0.1,102.5,\n0.2,103.5,\n", encoding="utf-8")
    return log


def test_monitor_plays_a_log_to_its_end(recorded_log, capsys):
    assert cli.main(["monitor", "--telemetry", f"replay:{recorded_log}", "--interval-s", "0.001"]) == 0
    out = capsys.readouterr().out
    assert "replayed" in out
    assert "103.50" in out


def test_monitor_once_shows_the_first_reading_and_silence_as_silence(recorded_log, capsys):
    assert cli.main(["monitor", "--telemetry", f"replay:{recorded_log}", "--once"]) == 0
    rows = {line.split()[1]: line.split()[3] for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert rows["power_w"] == "101.50"
    assert rows["fan_speed"] == "silent"


def test_monitor_of_the_twin_says_simulated_and_stops_in_time(capsys):
    start = time.perf_counter()
    assert cli.main(["monitor", "--telemetry", "simulated", "--seconds", "0.3", "--interval-s", "0.1"]) == 0
    assert 0.3 <= time.perf_counter() - start < 3.0
    assert "(simulated)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--telemetry", "rubbish"],
        ["--telemetry", "replay:/nowhere/log.csv"],
        ["--seconds", "0"],
        ["--interval-s", "nan"],
        ["--interval-s", "inf"],
    ],
)
def test_monitor_refuses_bad_options_in_one_line(options, capsys):
    assert cli.main(["monitor", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("thermoe: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    ["fit", "costs merge", "costs plot", "costs report", "costs parts", "costs show", "costs predict", "report"],
)
def test_files_to_read_are_shown_without_brackets_in_brackets(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*words.split(), "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "FILE" in told or "DIR" in told
    assert "[[" not in told
    assert "[{None}" not in told
    assert "(default: )" not in told.split("options")[0]
