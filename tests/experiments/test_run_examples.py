"""Every example is a configuration that is accepted, and the smallest one runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from thermoe.analysis.load import RunFolder
from thermoe.experiments.config import RunConfig
from thermoe.experiments.run import run_experiment

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
    from thermoe.commands.demo import demo_config
    from thermoe.demo import calibration_text_path
    from thermoe.types import RoutingStrategy

    config = demo_config(max_tokens=100)
    assert set(config.strategies) == set(RoutingStrategy)
    assert str(calibration_text_path()) not in config.text
    assert config.priced_as == "qwen3-30b-a3b"
