"""The nested bank: one set of codes read at three precisions, kept experts beside it, and files."""

import json
import os
from pathlib import Path

import pytest
import torch
from expert_inputs import correlated_rows, heavy_weights, output_error
from torch import nn

from thermoe.errors import ConfigError, DataError, UnsupportedModelError
from thermoe.experts import (
    ExpertBank,
    ExpertKind,
    Moments,
    MomentWatch,
    SimpleExpert,
    dense_experts,
    experts_of,
    load_bank,
    quantize,
    save_bank,
)
from thermoe.kernels.expert_mlp import Activation, dequantize, expert_mlp_reference, unpack

BESIDE = Path(__file__).resolve().parents[2].parent / "shared"
MODEL = Path(os.environ.get("THERMOE_SHARED", BESIDE)) / "reference_moe"


def layer(experts=4, d_model=96, inter_size=40, *, bias=False, activation=Activation.SWIGLU):
    rows = 2 * inter_size if activation.gated else inter_size
    generator = torch.Generator().manual_seed(8)
    return dense_experts(
        heavy_weights(experts, rows, d_model, seed=1),
        heavy_weights(experts, d_model, inter_size, seed=2),
        activation=activation,
        bias1_EN=torch.randn(experts, rows, generator=generator) if bias else None,
        bias2_ED=torch.randn(experts, d_model, generator=generator) if bias else None,
    )


def routed(tokens, experts, top_k, d_model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights_TK, ids_TK = torch.rand(tokens, experts, generator=generator).topk(top_k, dim=-1)
    return correlated_rows(tokens, d_model, seed=seed), ids_TK, weights_TK


@pytest.mark.parametrize("calibrated", [False, True])
def test_lower_precisions_are_the_highest_bits_of_the_codes(calibrated):
    dense = layer()
    moments = Moments(dense)
    moments.add(*routed(200, 4, 2, 96))
    bank = ExpertBank.from_weights(dense, group_size=32, moments=moments if calibrated else None)
    for name in ("fc1", "fc2"):
        matrices = bank.matrices(name)
        codes = unpack(matrices.planes, matrices.columns)
        for p, bits in enumerate((2, 4, 8)):
            scale_ENG = matrices.scale_PEGN[p].float().transpose(1, 2)
            scale = scale_ENG.repeat_interleave(32, dim=-1)[..., : matrices.columns]
            want = ((codes >> (8 - bits)).float() - (2**bits - 1) / 2) * scale
            torch.testing.assert_close(bank.dense(name, bits), want, rtol=0, atol=0)
        weight = dense.fc1.weight_ENC if name == "fc1" else dense.fc2.weight_ENC
        errors = [float((bank.dense(name, bits) - weight).norm() / weight.norm()) for bits in (2, 4, 8)]
        assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
        assert errors[0] < 0.6


@pytest.mark.parametrize("activation", [Activation.SWIGLU, Activation.RELU])
def test_forward_reads_each_expert_at_its_bits(activation):
    dense = layer(bias=True, activation=activation)
    bank = ExpertBank.from_weights(dense, group_size=32, keep_bf16=[3, 1])
    bank.set_bits([2, 16, 4, 16])
    x, ids, weights = routed(9, 4, 2, 96)
    fc1, fc2 = bank.dense("fc1"), bank.dense("fc2")
    for kept in (1, 3):
        assert torch.equal(fc1[kept], dense.fc1.weight_ENC[kept].bfloat16().float())
    held = dense_experts(fc1, fc2, activation=activation, bias1_EN=dense.bias1_EN, bias2_ED=dense.bias2_ED)
    want = expert_mlp_reference(x, ids, weights, held)
    got = bank(x, ids, weights)
    # The kept experts compute in bf16, whose rounding is 2**-9.
    torch.testing.assert_close(got.double(), want, rtol=0, atol=0.02 * float(want.abs().max()))
    bank.set_bits([2, 8, 4, 2])
    held = dense_experts(
        bank.dense("fc1"), bank.dense("fc2"), activation=activation, bias1_EN=dense.bias1_EN, bias2_ED=dense.bias2_ED
    )
    torch.testing.assert_close(
        bank(x, ids, weights).double(), expert_mlp_reference(x, ids, weights, held), rtol=1e-4, atol=1e-5
    )


def test_ids_outside_the_layer_stay_outside():
    bank = ExpertBank.from_weights(layer(), group_size=32, keep_bf16=[0])
    ids = torch.tensor([[0, 3], [-1, 4], [1, 99]])
    inside, kept = bank.split(ids)
    assert inside.tolist() == [[-1, 3], [-1, 4], [1, 99]]
    assert kept.tolist() == [[0, -1], [-1, -1], [-1, -1]]
    bank.set_bits(4)
    assert bank.split(ids)[1].tolist() == [[-1, -1]] * 3


def test_bytes_in_memory_and_bytes_read():
    bank = ExpertBank.from_weights(layer(4, 256, 128), group_size=128)
    weights, scales = 256 * 256 + 256 * 128, 2 * (256 * 2 + 256 * 1)
    assert [bank.bytes_read(b) for b in (2, 4, 8)] == [weights * b // 8 + scales for b in (2, 4, 8)]
    assert bank.bytes_read(16) == 2 * weights
    small = 4 * (4 + 4)  # precision and place of each expert
    assert bank.num_bytes == 4 * (weights + 3 * scales) + small
    kept = ExpertBank.from_weights(layer(4, 256, 128), group_size=128, keep_bf16=[2])
    assert kept.num_bytes == bank.num_bytes + 2 * weights
    assert kept.kept == [2]


def test_saved_and_loaded(tmp_path):
    bank = ExpertBank.from_weights(layer(bias=True), group_size=32, keep_bf16=[2, 0])
    bank.set_bits([2, 4, 16, 8])
    save_bank(bank, tmp_path / "layer.safetensors")
    again = load_bank(tmp_path / "layer.safetensors")
    assert again.state_dict().keys() == bank.state_dict().keys()
    x, ids, weights = routed(5, 4, 2, 96)
    assert torch.equal(again(x, ids, weights), bank(x, ids, weights))
    assert again.num_bytes == bank.num_bytes


def test_files_that_are_no_banks_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(DataError, match="does not exist"):
        load_bank(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no bank")
    with pytest.raises(DataError, match="cannot be read"):
        load_bank(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(DataError, match="no expert bank"):
        load_bank(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, str(tmp_path / "former.safetensors"), {"thermoe.expert_bank": '{"version": 1}'})
    with pytest.raises(DataError, match="of version 1, needed 2"):
        load_bank(tmp_path / "former.safetensors")
    described = {"version": 2, "activation": "swiglu", "group_size": 32, "columns": {"fc1": 1, "fc2": 1}}
    save_file({"a": torch.zeros(1)}, str(tmp_path / "part.safetensors"), {"thermoe.expert_bank": json.dumps(described)})
    with pytest.raises(DataError, match="fc1_plane0"):
        load_bank(tmp_path / "part.safetensors")


def test_what_a_bank_cannot_be_is_refused():
    dense = layer()
    bank = ExpertBank.from_weights(dense, group_size=32)
    with pytest.raises(ConfigError, match="keep in bf16"):
        ExpertBank.from_weights(dense, group_size=32, keep_bf16=[4])
    with pytest.raises(ConfigError, match=r"16 bits for experts \[1\]"):
        bank.set_bits([2, 16, 4, 8])
    with pytest.raises(ConfigError, match="bits 3"):
        bank.set_bits(3)
    with pytest.raises(ConfigError, match="each of 4 experts"):
        bank.set_bits([2, 4])
    with pytest.raises(ConfigError, match="dense weights"):
        ExpertBank.from_weights(bank.weights())
    with pytest.raises(ConfigError, match="one precision"):
        ExpertBank(bank.matrices("fc1"), quantize(dense.fc2.weight_ENC, 4, group_size=32).matrices())
    with pytest.raises(ConfigError, match="model width"):
        dense_experts(torch.zeros(2, 6, 8), torch.zeros(2, 8, 4))
    with pytest.raises(ConfigError, match="no token"):
        Moments(dense).fc1_moment()


def test_moments_are_the_sums_of_gated_inputs():
    dense = layer(3, 10, 6, bias=True)
    x, ids, weights = routed(20, 3, 2, 10)
    moments = Moments(dense)
    moments.add(x[:7], ids[:7], weights[:7])
    moments.add(x[7:], ids[7:], weights[7:])
    want1, want2 = torch.zeros(3, 10, 10).double(), torch.zeros(3, 6, 6).double()
    for t in range(20):
        for k in range(2):
            e, gate, row = int(ids[t, k]), float(weights[t, k]), x[t].double()
            first = dense.fc1.weight_ENC[e].double() @ row + dense.bias1_EN[e].double()
            hidden = first[:6] / (1 + torch.exp(-first[:6])) * first[6:]
            want1[e] += gate**2 * torch.outer(row, row)
            want2[e] += gate**2 * torch.outer(hidden, hidden)
    torch.testing.assert_close(moments.fc1_EDD.double(), want1, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments.fc2_EII.double(), want2, rtol=1e-4, atol=1e-4)
    assert int(moments.rows_E.sum()) == 40


def tiny_block(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "intermediate_size": 24, "moe_intermediate_size": 24, "head_dim": 16}
    extra = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
    if name == "gpt_oss":
        extra.pop("num_experts")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, **sizes, **extra), experts_implementation="eager"
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    block = next(m for n, m in model.named_modules() if n.endswith(("mlp.experts", "moe.experts")))
    return model, block


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_blocks_of_transformers_give_the_same_output_as_their_fused_weights(name):
    _, block = tiny_block(name)
    x, ids, weights = routed(6, 4, 2, 32)
    with torch.no_grad():
        want = block(x, ids, weights)
    got = expert_mlp_reference(x, ids, weights, experts_of(block))
    torch.testing.assert_close(got.float(), want, rtol=1e-4, atol=1e-5)
    assert float(want.abs().max()) > 0.1


def test_a_watch_sees_what_passes_and_leaves_the_model_alone():
    model, block = tiny_block("qwen3_moe")
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        before = model(ids).logits
        with MomentWatch({"layer": block}) as watch:
            watched = model(ids).logits
        after = model(ids).logits
    assert torch.equal(before, watched)
    assert torch.equal(before, after)
    moments = watch.moments["layer"]
    assert int(moments.rows_E.sum()) == 40
    bank = ExpertBank.from_module(block, group_size=32, moments=moments)
    x, chosen, weights = routed(6, 4, 2, 32)
    with torch.no_grad():
        want = block(x, chosen, weights)
    rough = ExpertBank.from_module(block, group_size=32)
    rough.set_bits(2)
    errors = [float((b(x, chosen, weights) - want).norm() / want.norm()) for b in (bank, rough)]
    assert errors[0] < 0.1 < errors[1]


def test_lists_of_plain_experts_make_a_bank():
    experts = nn.ModuleList(SimpleExpert(32, 16, kind=ExpertKind.RELU) for _ in range(3))
    dense = experts_of(experts)
    assert dense.activation is Activation.RELU
    x, ids, weights = routed(4, 3, 1, 32)
    with torch.no_grad():
        want = torch.cat(
            [experts[int(i)](row[None]) * w for row, i, w in zip(x, ids[:, 0], weights[:, 0], strict=True)]
        )
    torch.testing.assert_close(expert_mlp_reference(x, ids, weights, dense).float(), want, rtol=1e-4, atol=1e-5)


def test_blocks_that_compute_something_else_are_refused():
    _, block = tiny_block("gpt_oss")
    block.alpha = 1.0
    with pytest.raises(UnsupportedModelError, match=r"slope 1\.0"):
        experts_of(block)
    with pytest.raises(UnsupportedModelError, match="no fused gate_up_proj"):
        experts_of(nn.Linear(2, 2))
    mixed = nn.ModuleList([SimpleExpert(4, 2), SimpleExpert(4, 2, kind=ExpertKind.RELU)])
    with pytest.raises(UnsupportedModelError, match="2 kinds"):
        experts_of(mixed)
    _, other = tiny_block("qwen3_moe")
    other.act_fn = nn.Tanh()
    with pytest.raises(UnsupportedModelError, match="Tanh"):
        experts_of(other)


@pytest.mark.skipif(not (MODEL / "config.json").is_file(), reason="the trained model is not here")
def test_on_trained_weights_int2_of_the_bank_loses_far_less_than_truncated_int4():
    """Eight trained experts; inputs with the spread of the router's, half of them held out."""
    from safetensors import safe_open

    index = json.loads((MODEL / "model.safetensors.index.json").read_text())["weight_map"]
    names = [f"model.layers.2.mlp.experts.{e}.up_proj.weight" for e in range(8)]
    found = []
    for name in names:
        with safe_open(str(MODEL / index[name]), framework="pt") as file:
            found.append(file.get_tensor(name).float())
    weight = torch.stack(found)
    seen, new = correlated_rows(1500, 384, seed=1), correlated_rows(500, 384, seed=2)
    moment = (seen.T @ seen).expand(8, -1, -1)
    plain4 = quantize(weight, 4, group_size=64, moment_ECC=moment)
    bank = quantize(weight, (2, 4, 8), group_size=64, moment_ECC=moment)
    scale4 = plain4.scale_PENG[0].float().repeat_interleave(64, dim=-1)
    truncated = ((plain4.code_ENC >> 2).float() - 1.5) * 4 * scale4
    assert output_error(weight, bank.weights(2), new) < 0.5 * output_error(weight, truncated, new)
    assert output_error(weight, bank.weights(4), new) < 1.6 * output_error(weight, plain4.weights(), new)
    read = torch.full((8,), 4, dtype=torch.int32)
    torch.testing.assert_close(dequantize(bank.matrices(), read), bank.weights(4), rtol=0, atol=0)
