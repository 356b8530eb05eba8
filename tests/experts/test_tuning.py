"""Scales tuned on a whole model, and the benchmark that judges bits, both on a tiny model."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import thermoe.demo
from thermoe.errors import ConfigError
from thermoe.experts import quantize, tune_scales
from thermoe.experts.tuning import divergence

DEMO = Path(thermoe.demo.__file__).parent


@pytest.fixture(scope="module")
def model():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=4096,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=24,
        moe_intermediate_size=24,
        num_experts=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


NAMES = [f"model.layers.0.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj")]


def test_tuned_scales_predict_more_like_the_model_and_leave_other_precisions_alone(model):
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in NAMES}
    held = {name: quantize(before[name], (2, 4, 8), group_size=32) for name in NAMES}
    batches = [torch.randint(4096, (4, 16), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    tuned = tune_scales(model, held, batches, steps=30, rate=0.01)
    new = torch.randint(4096, (8, 16), generator=torch.Generator().manual_seed(99))

    def loss(matrices):
        with torch.no_grad():
            return float(divergence(model, {name: m.weights(2) for name, m in matrices.items()}, new))

    assert loss(tuned) < 0.9 * loss(held)
    for name in NAMES:
        assert torch.equal(tuned[name].code_ENC, held[name].code_ENC)
        assert torch.equal(tuned[name].scale_PENG[1:], held[name].scale_PENG[1:])
        assert not torch.equal(tuned[name].scale_PENG[0], held[name].scale_PENG[0])
        assert torch.equal(parameters[name], before[name])
        assert parameters[name].requires_grad
    again = tune_scales(model, held, batches, steps=30, rate=0.01)
    assert all(torch.equal(again[name].scale_PENG, tuned[name].scale_PENG) for name in NAMES)


def test_what_cannot_be_tuned_is_refused(model):
    weight = dict(model.named_parameters())[NAMES[0]].detach()
    matrix = quantize(weight, 4, group_size=32)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ConfigError, match="0 batches"):
        tune_scales(model, {NAMES[0]: matrix}, [], bits=4)
    with pytest.raises(ConfigError, match="scales of 2 bits"):
        tune_scales(model, {NAMES[0]: matrix}, [ids], bits=2)
    with pytest.raises(ConfigError, match="no parameter elsewhere"):
        tune_scales(model, {"elsewhere": matrix}, [ids], bits=4)
    with pytest.raises(ConfigError, match="no parameter"):
        tune_scales(model, {NAMES[1]: matrix}, [ids], bits=4)
    for wrong in ({"steps": 0}, {"steps": 1.5}, {"rate": 100.0}, {"rate": float("nan")}, {"rate": 0.0}):
        with pytest.raises(ConfigError, match="needs a step or more"):
            tune_scales(model, {NAMES[0]: matrix}, [ids], bits=4, **wrong)


def test_the_benchmark_judges_every_variant(model, tmp_path, capsys, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    main = importlib.import_module("benchmarks.bits").main
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(tmp_path / "model")
    texts = [str(DEMO / "text" / f"heldout_{name}.txt") for name in ("king_james_bible", "us_inaugural_addresses")]
    out = tmp_path / "bits.json"
    options = ["--calibration-text", str(DEMO / "text" / "calibration.txt"), "--calibration-tokens", "512"]
    options += [
        "--tokens",
        "512",
        "--own-tokens",
        "256",
        "--group",
        "32",
        "--tuning-steps",
        "2",
        "--experts",
        "grouped_mm",
        "--out",
        str(out),
    ]
    assert main(["--model", str(tmp_path / "model"), "--text", *texts, *options]) == 0
    result = json.loads(out.read_text())
    mean = result["mean_of_texts"]
    assert abs(mean["bank int8"]["perplexity_change_pct"]) < abs(mean["bank int2"]["perplexity_change_pct"])
    assert {"nearest 8 int8", "compensated 3 int3", "fp8 by row", "bank tuned int2"} <= mean.keys()
    for row in mean.values():
        low, high = row["perplexity_change_pct_90"]
        assert low <= row["perplexity_change_pct"] <= high
    assert result["texts"]["heldout_king_james_bible"]["blocks"] == 16
    assert "bank int2 over truncated (least error)" in result["nested_bank"]
    assert "mean" in capsys.readouterr().out
