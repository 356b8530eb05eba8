"""Runs whose experts are held in fewer bits: of a model, and of the self-contained block."""

import json
import tomllib

import numpy as np
import pandas as pd
import pytest
import torch

from thermoe import cli
from thermoe.experiments import choices
from thermoe.experiments.block_runner import BlockRunner
from thermoe.experts import ExpertFormat, quantize
from thermoe.integrations.experts_held import expert_blocks, quantised_experts
from thermoe.integrations.experts_quantised import EXPERT_FORMATS
from thermoe.types import MoEShape

SMALL = ["--max-tokens", "80", "--batch-size", "2", "--block-size", "16", "--no-report"]


def run(out, *options):
    assert cli.main(["run", *map(str, options), "--out", str(out)]) == 0
    return pd.read_parquet(out / "batches.parquet")


def test_the_formats_offered_are_those_that_are_made():
    assert choices.EXPERT_FORMATS == EXPERT_FORMATS
    assert {f for formats in choices.EXPERT_TYPES.values() for f in formats} <= set(ExpertFormat)


def test_a_run_computes_with_the_quantised_copy_prices_it_and_says_so(
    tmp_path, tiny_model, tiny_text, capsys, monkeypatch
):
    from transformers import AutoModelForCausalLM

    from thermoe.experiments import tasks

    loaded = []
    real = tasks.load_model
    monkeypatch.setattr(tasks, "load_model", lambda *a: loaded.append(real(*a)) or loaded[-1])
    options = ["--model", tiny_model, "--text", tiny_text, *SMALL, "--strategies", "baseline,opportunistic"]
    own = run(tmp_path / "own", *options)
    batches = run(tmp_path / "int2", *options, "--experts", "int2")

    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for block in expert_blocks(plain).values():
        for weight in (block.gate_up_proj, block.down_proj):
            weight.data = quantize(weight.detach(), 2).weights()
    tokens = loaded[0][1].encode(tiny_text.read_text()[:80], add_special_tokens=False)
    rows = torch.tensor(tokens).view(2, 40)
    with torch.no_grad():
        logits = plain(rows[:, :16]).logits.double()
    nll = -logits.log_softmax(-1).gather(-1, rows[:, 1:17].unsqueeze(-1)).sum()
    first = batches[(batches["strategy"] == "baseline") & (batches["batch_index"] == 0)]
    assert first["nll_sum"].item() == pytest.approx(float(nll), rel=1e-4)
    assert not np.isclose(own["nll_sum"].iloc[0], first["nll_sum"].item(), rtol=1e-3)

    assert set(batches["bits_mean"]) == {2.0}
    assert set(own["bits_mean"]) == {16.0}
    baseline = [table[table["strategy"] == "baseline"] for table in (batches, own)]
    assert baseline[0]["energy_j"].sum() < 0.7 * baseline[1]["energy_j"].sum()
    assert baseline[0]["predicted_energy_j"].sum() < 0.7 * baseline[1]["predicted_energy_j"].sum()
    assert json.loads((tmp_path / "int2" / "env.json").read_text())["experts"] == "int2"
    assert json.loads((tmp_path / "own" / "env.json").read_text())["experts"] is None
    assert tomllib.loads((tmp_path / "int2" / "config.toml").read_text())["experts"] == "int2"
    assert "experts int2" in capsys.readouterr().out
    assert all(quantised_experts(block) is None for block in expert_blocks(loaded[1][0]).values())


def test_a_target_that_only_few_bits_can_meet_is_met_by_prediction(tmp_path, tiny_model, tiny_text, capsys):
    options = ["--model", tiny_model, "--text", tiny_text, *SMALL, "--strategies", "kernel_aware_ttha"]
    options += ["--calibration-tokens", "300", "--calibration-text", tiny_text, "--energy-budget-j-per-token", "1.3"]
    assert cli.main(["run", *map(str, options), "--out", str(tmp_path / "own")]) == 2
    assert "1.3 J/token was asked for" in capsys.readouterr().err
    run(tmp_path / "int2", *options, "--experts", "int2")


def test_a_resumed_run_quantises_again(tmp_path, tiny_model, tiny_text, monkeypatch):
    from thermoe.experiments.store import RunStore

    options = ["--model", tiny_model, "--text", tiny_text, *SMALL, "--strategies", "baseline", "--experts", "bank4"]
    whole = run(tmp_path / "whole", *options)

    real, done = RunStore.append, []

    def interrupted(self, key, tables):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(key)
        real(self, key, tables)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "append", interrupted)
        assert cli.main(["run", *map(str, options), "--out", str(tmp_path / "cut")]) == 130
    assert cli.main(["run", "--resume", str(tmp_path / "cut"), "--no-report"]) == 0
    resumed = pd.read_parquet(tmp_path / "cut" / "batches.parquet")
    for column in ("nll_sum", "energy_j", "bits_mean"):
        assert resumed[column].tolist() == whole[column].tolist()
    assert set(resumed["bits_mean"]) == {4.0}


@pytest.mark.parametrize(
    ("expert_type", "bits", "formats"),
    [
        ("simple", 16.0, ["dense"] * 5),
        ("quantized", 4.0, ["int4"] * 5),
        ("mixed", (16 + 8 + 4 + 2 + 16) / 5, ["dense", "int8", "int4", "int2", "dense"]),
    ],
)
def test_experts_of_the_block(tmp_path, expert_type, bits, formats):
    shape = MoEShape(num_layers=2, hidden_size=32, inter_size=16, num_experts=5, top_k=2)
    runner = BlockRunner(shape, seed=1, device="cpu", expert_type=expert_type)
    assert [list(block.moe.formats) for block in runner.stack.blocks] == [formats] * 2
    assert runner.bits == bits
    options = ["--d-model", "32", "--inter-size", "16", "--num-experts", "5", "--num-layers", "2"]
    options += ["--workloads", "small_batch", "--samples-per-workload", "2", "--no-report"]
    batches = run(tmp_path / "run", *options, "--expert-type", expert_type)
    assert set(batches["bits_mean"]) == {bits}
    assert json.loads((tmp_path / "run" / "env.json").read_text())["experts"] == expert_type


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--expert-type", "int4"], ["int4", "simple, quantized, mixed"]),
        (["--experts", "int4"], ["experts int4", "expert_type"]),
        (["--model", "m", "--text", "t", "--experts", "int5"], ["int5", "int2, int4"]),
        (["--model", "m", "--text", "t", "--expert-type", "mixed"], ["expert_type mixed", "experts"]),
    ],
)
def test_what_does_not_belong_together_is_one_line(tmp_path, capsys, options, said):
    assert cli.main(["run", *options, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert [word for word in said if word not in err] == []
    assert not (tmp_path / "run").exists()


def test_experts_that_the_kernels_do_not_know_are_one_line(tmp_path, tiny_model, tiny_text, capsys):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    options = ["--model", str(folder), "--text", str(tiny_text), *SMALL, "--experts", "int4"]
    assert cli.main(["run", *options, "--strategies", "baseline", "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "ReLU" in err
    assert not (tmp_path / "run").exists()
