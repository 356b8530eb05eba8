"""The kernels under the name `thermoe`: every family against Transformers' own loop over experts."""

import copy

import pytest
import torch
from tiny_models import NAMES, tiny_model, token_ids

from thermoe.integrations import experts as implementation
from thermoe.integrations.experts import register_experts
from thermoe.integrations.experts_held import dense_weights, expert_blocks, extra_bytes
from thermoe.integrations.experts_report import experts_report
from thermoe.kernels.expert_mlp import DenseMatrices


@pytest.fixture
def fused_on_cpu(monkeypatch):
    """Have the kernels' reference take the place of the kernels, and count its calls."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return expert_mlp(*args, **kwargs)

    expert_mlp = implementation.expert_mlp
    monkeypatch.setattr(implementation, "FUSED_DEVICES", {"cpu"})
    monkeypatch.setattr(implementation, "expert_mlp", counted)
    return calls


@pytest.fixture
def model():
    """A copy of the tiny model that a test may change."""
    return lambda name: copy.deepcopy(tiny_model(name))


def logits(model, ids, name):
    before = model.config._experts_implementation
    model.set_experts_implementation(name)
    try:
        with torch.no_grad():
            return model(ids).logits
    finally:
        model.set_experts_implementation(before)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_goes_through_the_kernels(name, model, fused_on_cpu):
    tiny, ids = model(name), token_ids(3, 7)
    own = logits(tiny, ids, "eager")
    fused = logits(tiny, ids, register_experts())
    assert fused_on_cpu == [(21, 32)] * len(expert_blocks(tiny))
    torch.testing.assert_close(fused, own, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_changed_weight_is_seen(name, model, fused_on_cpu):
    tiny, ids = model(name), token_ids(2, 5)
    before = logits(tiny, ids, register_experts())
    block = next(iter(expert_blocks(tiny).values()))
    with torch.no_grad():
        block.down_proj.mul_(-3.0)
    in_place = logits(tiny, ids, "thermoe")
    torch.testing.assert_close(in_place, logits(tiny, ids, "eager"), atol=2e-6, rtol=1e-5)
    block.gate_up_proj = torch.nn.Parameter(block.gate_up_proj.detach().flip(0).contiguous())
    replaced = logits(tiny, ids, "thermoe")
    torch.testing.assert_close(replaced, logits(tiny, ids, "eager"), atol=2e-6, rtol=1e-5)
    assert not torch.allclose(before, in_place, atol=1e-3)
    assert not torch.allclose(in_place, replaced, atol=1e-3)


def test_weights_are_views_and_a_rearranged_copy_is_counted(model, fused_on_cpu):
    for name, copied in (("mixtral", False), ("gpt_oss", True)):
        for block in expert_blocks(model(name)).values():
            first, reason = dense_weights(block)
            assert reason is None
            assert dense_weights(block)[0] is first
            assert isinstance(first.fc1, DenseMatrices)
            assert (first.fc1.weight_ENC.data_ptr() == block.gate_up_proj.data_ptr()) != copied
            both = block.gate_up_proj.numel() + block.down_proj.numel()
            assert extra_bytes(block) == (4 * both if copied else 0)


def test_a_copy_of_the_model_carries_no_weights_of_the_first(model, fused_on_cpu):
    tiny, ids = model("gpt_oss"), token_ids(2, 4)
    own = logits(tiny, ids, register_experts())
    again = copy.deepcopy(tiny)
    assert all(extra_bytes(block) == 0 for block in expert_blocks(again).values())
    assert torch.equal(logits(again, ids, "thermoe"), own)
    assert set(again.state_dict()) == set(tiny.state_dict())


def test_training_falls_back_and_gets_the_gradients_of_the_library(model, fused_on_cpu):
    gradients = []
    for name in ("eager", register_experts()):
        tiny = model("qwen3_moe")
        tiny.set_experts_implementation(name)
        tiny(token_ids(2, 5)).logits.square().mean().backward()
        gradients.append({k: p.grad for k, p in tiny.named_parameters()})
    assert not fused_on_cpu
    for key, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], wanted, atol=1e-6, rtol=1e-4)


def test_tokens_of_another_dtype_than_the_weights_fall_back_with_the_reason(model, fused_on_cpu):
    tiny = model("olmoe").bfloat16()
    tiny.set_experts_implementation(register_experts())
    block = next(iter(expert_blocks(tiny).values()))
    x_TD, ids_TK, weights_TK = torch.randn(5, 32), torch.randint(0, 8, (5, 3)), torch.rand(5, 3)
    with torch.no_grad():
        done = block(x_TD, ids_TK, weights_TK)  # as autocast hands tokens on
        assert not fused_on_cpu
        fused = block(x_TD.bfloat16(), ids_TK, weights_TK)
    assert len(fused_on_cpu) == 1
    torch.testing.assert_close(done, fused.float(), atol=2e-3, rtol=2e-2)
    assert "float32 for weights of torch.bfloat16" in implementation.why_not_fused(block, x_TD)


def test_an_activation_that_is_not_known_falls_back_with_the_reason(model, fused_on_cpu):
    tiny, ids = model("mixtral"), token_ids(2, 5)
    for block in expert_blocks(tiny).values():
        block.act_fn = torch.nn.Hardswish()
    own = logits(tiny, ids, "eager")
    torch.testing.assert_close(logits(tiny, ids, register_experts()), own, atol=2e-6, rtol=1e-5)
    assert not fused_on_cpu
    tiny.set_experts_implementation("thermoe")
    assert all("Hardswish" in e.reason for e in experts_report(tiny))


def test_the_report_says_what_computes_and_why(model, fused_on_cpu, monkeypatch):
    tiny = model("gpt_oss")
    assert {e.computed_by for e in experts_report(tiny)} == {tiny.config._experts_implementation}
    tiny.set_experts_implementation(register_experts())
    fused = experts_report(tiny)
    assert [(e.computed_by, e.reason) for e in fused] == [("fused", None)] * 2
    assert all(e.extra_bytes > 0 for e in fused)
    monkeypatch.setattr(implementation, "FUSED_DEVICES", {"cuda"})
    assert all(e.computed_by == "grouped_mm" and "cpu" in e.reason for e in experts_report(tiny))


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_torch_compile_takes_the_experts_without_a_break(name, model, fused_on_cpu):
    tiny = model(name)
    tiny.set_experts_implementation(register_experts())
    block = next(iter(expert_blocks(tiny).values()))
    x_TD, ids_TK = torch.randn(5, 32), torch.randint(0, 8, (5, 3))
    weights_TK = torch.rand(5, 3)
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            eager = block(x_TD, ids_TK, weights_TK)
            compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(compiled(x_TD, ids_TK, weights_TK), eager)
            block.down_proj.mul_(2.0)
            if name == "qwen3_moe":  # views: no call outside is needed
                torch.testing.assert_close(compiled(x_TD, ids_TK, weights_TK), 2 * eager)
    finally:
        torch._dynamo.reset()
