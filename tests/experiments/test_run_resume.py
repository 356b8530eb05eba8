"""A run that was stopped and resumed is the run that was never stopped."""

import pandas as pd
import pytest

from thermoe import cli
from thermoe.analysis.load import RunFolder
from thermoe.experiments.config import RunConfig
from thermoe.experiments.run import resume_experiment, run_experiment
from thermoe.experiments.store import RunStore

CLOCKS = ["wall_s", "started_wall_s", "routing_overhead_s", "adaptation_overhead_s"]


def tables_without_clocks(path):
    tables = RunFolder(path).tables
    return {name: table.drop(columns=CLOCKS, errors="ignore") for name, table in tables.items()}


def text_config(tiny_model, tiny_text):
    return RunConfig(
        model=str(tiny_model),
        text=(str(tiny_text),),
        strategies=("baseline", "opportunistic", "kernel_aware", "kernel_aware_ttha"),
        max_tokens=200,
        batch_size=3,
        block_size=24,
        control_steps=5,
        seeds=(0, 1),
        arrival_rate=150.0,
        power_budget_w=450.0,
        scenario="external_load",
        settings={"kernel_aware": {"reserve": 0.5, "balance_rate": 0.02, "max_quality_loss_pct": 20.0}},
        calibration_text=(str(tiny_text),),
        calibration_tokens=300,
    )


def tensor_config():
    return RunConfig(
        d_model=16, inter_size=16, num_layers=2, num_experts=8, samples_per_workload=3, passes=2, seeds=(0, 1),
        workloads=("standard", "small_batch"), strategies=("baseline", "opportunistic", "top_p"),
    )  # fmt: skip


@pytest.fixture(scope="module", params=["text", "tensors"])
def whole_run(request, tmp_path_factory):
    from rich.console import Console

    if request.param == "text":
        config = text_config(request.getfixturevalue("tiny_model"), request.getfixturevalue("tiny_text"))
    else:
        config = tensor_config()
    path = tmp_path_factory.mktemp(request.param) / "whole"
    run_experiment(config, path, Console(quiet=True))
    return config, path


@pytest.mark.parametrize("stops", [(1,), (5, 9), (2, 3, 13)])
def test_a_resumed_run_has_the_tables_of_one_that_was_never_stopped(whole_run, tmp_path, quiet, monkeypatch, stops):
    config, whole = whole_run
    path = tmp_path / "stopped"
    real = RunStore.append
    calls = iter(range(1000))

    def stops_before(self, key, tables):
        if next(calls) in stops:
            raise KeyboardInterrupt
        real(self, key, tables)

    monkeypatch.setattr(RunStore, "append", stops_before)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, path, quiet)
    for _ in stops[1:]:
        with pytest.raises(KeyboardInterrupt):
            resume_experiment(path, quiet)
    resume_experiment(path, quiet)
    expected, got = tables_without_clocks(whole), tables_without_clocks(path)
    for name in expected:
        pd.testing.assert_frame_equal(got[name], expected[name], check_exact=True, obj=name)
    assert RunFolder(path).is_complete


def test_resuming_a_finished_run_changes_nothing_and_repairs_its_summary(whole_run):
    _, path = whole_run
    before = tables_without_clocks(path)
    assert cli.main(["run", "--resume", str(path), "--no-report"]) == 0
    summary = (path / "summary.json").read_text()
    (path / "summary.json").unlink()
    assert cli.main(["run", "--resume", str(path), "--no-report"]) == 0
    assert (path / "summary.json").read_text() == summary
    for name, table in tables_without_clocks(path).items():
        pd.testing.assert_frame_equal(table, before[name])


def test_an_interrupt_exits_with_130_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    sizes = ["--d-model", "16", "--inter-size", "16", "--num-layers", "1", "--samples-per-workload", "1"]
    sizes += ["--workloads", "small_batch", "--strategies", "baseline,top_p", "--no-report"]
    real = RunStore.append

    def second_fails(self, key, tables):
        if self.finished:
            raise KeyboardInterrupt
        real(self, key, tables)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "append", second_fails)
        assert cli.main(["run", *sizes, "--out", str(out)]) == 130
    assert f"--resume {out}" in capsys.readouterr().err
    assert cli.main(["run", "--resume", str(out), "--no-report"]) == 0
    assert len(RunFolder(out).tables["batches"]) == 2
