"""What a run tells while it goes on: a bar on a terminal, now and then a line on stderr elsewhere."""

import io
import re

import pytest
from rich.console import Console

from thermoe import cli
from thermoe.experiments import progress
from thermoe.experiments.progress import PlainLines, RunProgress, telling


class Clock:
    now_s = 100.0

    def monotonic(self):
        return self.now_s

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def errors(capsys):
    return capsys.readouterr().err.splitlines()


def test_no_line_comes_soon_after_another_or_after_the_beginning(clock, capsys):
    lines = PlainLines()
    for second in range(23):
        clock.now_s = 100.0 + second
        lines.say(f"second {second}")
    assert errors(capsys) == [f"thermoe: second {second}" for second in (5, 10, 15, 20)]


def test_a_long_batch_is_told_while_it_runs_and_the_rest_is_estimated(clock, capsys):
    with RunProgress(Console(file=io.StringIO()), total=5, done=1) as told:
        told.begin("words", 3, "top_p", 0)
        clock.now_s += 6.0
        told.tick()
        clock.now_s += 4.0
        told.finish(2000)
        told.begin("words", 3, "top_p", 1)
        told.tick()
        clock.now_s += 2.0
        told.tick()
    assert errors(capsys) == [
        "thermoe: 1 of 5 batches; now words top_p seed 3 batch 0",
        "thermoe: 2 of 5 batches, 167 tokens/s, 36 s left; now words top_p seed 3 batch 1",
    ]


def test_a_terminal_gets_the_bar_and_no_lines_and_a_quiet_console_nothing(clock, capsys):
    for console in (Console(file=io.StringIO(), force_terminal=True), Console(file=io.StringIO(), quiet=True)):
        with RunProgress(console, total=2, done=0) as told, telling(console, "calibrating") as say:
            told.begin("words", 0, "baseline", 0)
            clock.now_s += 60.0
            told.tick()
            say("layer 1")
            told.finish(10)
        assert ("words baseline" in console.file.getvalue()) == console.is_terminal
        assert errors(capsys) == []


def test_what_comes_before_the_batches_is_told_too(clock, capsys):
    with telling(Console(file=io.StringIO()), "calibrating") as say:
        say("at once")
        clock.now_s += 7.0
        say("sensitivities")
    assert errors(capsys) == ["thermoe: calibrating: sensitivities"]


def test_a_run_without_a_terminal_tells_on_stderr_and_keeps_stdout_for_results(
    tmp_path, tiny_model, tiny_text, capsys, monkeypatch
):
    options = ["--model", str(tiny_model), "--text", str(tiny_text), "--max-tokens", "80", "--batch-size", "2"]
    options += ["--block-size", "16", "--strategies", "baseline,top_p", "--no-report", "--experts", "int4"]
    assert cli.main(["run", *options, "--out", str(tmp_path / "short")]) == 0
    assert errors(capsys) == []  # it was over before there was anything to tell
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    assert cli.main(["run", *options, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert [line for line in lines if "experts of layer" in line] == [
        f"thermoe: quantising: experts of layer {layer} of 2 as int4" for layer in (1, 2)
    ]
    batches = [line for line in lines if " of 6 batches" in line]
    assert len(batches) >= 6
    assert len(batches) + 2 == len(lines)
    assert re.fullmatch(
        r"thermoe: 5 of 6 batches, [\d,]+ tokens/s, \d+ s left; now .*words .* seed 0 batch 2", lines[-1]
    )
    assert "batches" not in said.out
