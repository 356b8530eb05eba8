"""Every example is a configuration that is accepted, and the smallest one runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from thermoe import cli
from thermoe.analysis.load import RunFolder
from thermoe.commands.demo import demo_config
from thermoe.demo import calibration_path, calibration_text_path, demo_model_path
from thermoe.experiments import calibration
from thermoe.experiments.choices import STRATEGY_NAMES
from thermoe.experiments.config import RunConfig
from thermoe.experiments.run import run_experiment
from thermoe.integrations import calibrate
from thermoe.types import RoutingStrategy

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_accepted_and_says_the_same_when_resolved(path):
    import tomllib

    config = RunConfig.from_toml(path)
    assert RunConfig.from_mapping(tomllib.loads(config.to_toml())).to_toml() == config.to_toml()


def test_the_example_of_tensors_runs(tmp_path, quiet):
    (path,) = [p for p in EXAMPLES if p.stem == "tensors"]
    config = replace(RunConfig.from_toml(path), samples_per_workload=1, d_model=32, inter_size=32, num_layers=2)
    tables = RunFolder(run_experiment(config, tmp_path / "run", quiet)).tables
    assert len(tables["batches"]) == 4 * 4 * 2
    assert tables["batches"]["nll_sum"].isna().all()


def test_on_tensors_every_strategy_but_the_calibrated_one_acts_without_settings(tmp_path, quiet):
    names = ("baseline", "kernel_aware", "kernel_aware_ttha", "opportunistic", "gate_mass", "expert_skipping", "top_p")
    config = RunConfig(strategies=names, workloads=("standard",), samples_per_workload=2, num_experts=32, top_k=4)
    tables = RunFolder(run_experiment(config, tmp_path / "run", quiet)).tables
    distinct = tables["batches"].groupby("strategy")["distinct_experts_mean"].mean()
    assert (distinct.drop("baseline") < distinct["baseline"] - 0.2).all(), distinct


def test_the_demo_runs_every_strategy_on_texts_the_model_has_not_seen():
    config = demo_config(max_tokens=100)
    assert set(config.strategies) == set(RoutingStrategy)
    assert str(calibration_text_path()) not in config.text
    assert config.priced_as == "qwen3-30b-a3b"


def test_the_shipped_calibration_is_of_the_shipped_model_and_of_the_present_policies():
    shipped = calibration.read(calibration_path())
    sizes = json.loads((demo_model_path() / "config.json").read_text())
    assert shipped.sensitivity.shape == (sizes["num_hidden_layers"], sizes["num_local_experts"])
    assert shipped.model_type == sizes["model_type"]
    assert shipped.batch_size == demo_config(max_tokens=100).batch_size
    assert shipped.num_tokens == RunConfig().calibration_tokens
    assert [p.value for p in shipped.priced()] == pytest.approx(calibrate.PRICES)
    assert shipped.value_power == calibrate.VALUE_POWER
    assert calibration_path().stat().st_size < 50_000


def test_the_demo_needs_no_calibration_pass_and_ends_with_a_report(tmp_path, monkeypatch, capsys):
    def not_now(*args, **kwargs):
        raise AssertionError("calibrated")

    monkeypatch.setattr(calibration, "calibrate", not_now)
    out = tmp_path / "demo"
    assert cli.main(["demo", "--max-tokens", "48", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert [name for name in STRATEGY_NAMES if f"│ {name} " not in said] == []
    assert f"report: {out / 'report.html'}" in said
    assert (out / "report.html").is_file()
    assert json.loads((out / "calibration.json").read_text()) == json.loads(calibration_path().read_text())
