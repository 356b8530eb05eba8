"""A checkpoint whose weights are not all there never runs: what is missing would be random."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from thermoe import cli
from thermoe.errors import ConfigError
from thermoe.experiments.models import load_model


def without(tiny_model, folder, *tensors):
    """A copy of the tiny model that lacks these tensors."""
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    for name in tensors:
        del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "tensor", ["model.layers.0.mlp.gate.weight", "model.layers.1.mlp.experts.3.up_proj.weight", "lm_head.weight"]
)
def test_a_missing_tensor_is_one_line_before_anything_is_written(tmp_path, tiny_model, tiny_text, capfd, tensor):
    folder = without(tiny_model, tmp_path / "model", tensor)
    assert cli.main(["run", "--model", str(folder), "--text", str(tiny_text), "--out", str(tmp_path / "r")]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert str(folder) in err
    assert tensor in err or "conversion of the weights" in err
    assert not (tmp_path / "r").exists()


def test_many_missing_tensors_are_counted_and_not_all_listed(tmp_path, tiny_model):
    names = [f"model.layers.{layer}.{norm}.weight" for layer in range(2)
             for norm in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm")]  # fmt: skip
    with pytest.raises(ConfigError, match=r"input_layernorm\.weight.* and 3 more") as stop:
        load_model(str(without(tiny_model, tmp_path / "model", *names)), "cpu")
    assert "\n" not in str(stop.value)


def test_weights_of_another_shape_are_refused(tmp_path, tiny_model):
    folder = without(tiny_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"model cannot be loaded"):
        load_model(str(folder), "cpu")


def test_a_tied_head_is_stored_once_and_not_missing(tmp_path, tiny_model):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "tied"
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model, _ = load_model(str(folder), "cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight
