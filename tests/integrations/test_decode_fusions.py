"""Operations that stand in around the experts while a step runs: the same results, and nothing left behind."""

import copy
import sys

import pytest
import torch
from recording import attached, shape_of, union_knobs
from tiny_models import NAMES, tiny_model, token_ids

from thermoe.integrations import decode_layer, decode_router
from thermoe.integrations.decode_attention import DECODE_ATTENTION, decode_attention, grouped_heads
from thermoe.integrations.decode_cache import shared_cache
from thermoe.integrations.decode_fusions import StepFusions
from thermoe.integrations.decoding import Decoder, TransformersSteps

ROTARY = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe"}
WHOLE_LAYERS = {"mixtral", "qwen2_moe", "qwen3_moe"}  # as they run; of glm4_moe only part of a head is turned


def place_of(model):
    return sys.modules[type(model).__module__]


@pytest.mark.parametrize("name", NAMES)
def test_fused_steps_give_the_logits_of_the_models_own(name):
    model, ids = tiny_model(name), token_ids(3, 6)
    mask, logits = torch.ones(3, 64, dtype=torch.long), []
    mask[0, :2] = 0
    own_forward = [module.forward for module in model.modules()]
    own_rotary = getattr(place_of(model), "apply_rotary_pos_emb", None)
    with torch.no_grad():
        for fuse in (True, False):
            steps = TransformersSteps(model, max_length=64, fuse=fuse)
            steps.prefill(ids, mask[:, :6])
            logits.extend(steps.step(ids[:, :1], torch.full((3, 1), position), mask) for position in (6, 7))
    for fused, own in zip(logits[:2], logits[2:], strict=True):
        torch.testing.assert_close(fused, own, atol=3e-6, rtol=1e-4)
    assert [module.forward for module in model.modules()] == own_forward
    assert getattr(place_of(model), "apply_rotary_pos_emb", None) is own_rotary
    assert model.config._attn_implementation != DECODE_ATTENTION


@pytest.mark.parametrize("name", NAMES)
def test_every_norm_is_found_and_the_usual_rotary_embedding(name):
    model = tiny_model(name)
    fusions = StepFusions(model)
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert fusions.norms == norms
    if name in ROTARY:
        assert fusions.rotary_modules == [type(model).__module__]
    if name.startswith("deepseek"):
        assert fusions.rotary_modules in ([], [type(model).__module__])
    with fusions.in_place():
        assert all("forward" in norm.__dict__ for norm in norms)


@pytest.mark.parametrize("name", NAMES)
def test_whole_layers_and_routers_are_fused_where_they_are_the_usual_ones(name, monkeypatch):
    model, ids, calls = tiny_model(name), token_ids(3, 6), []
    fusions = StepFusions(model)
    assert len(fusions.routers.routers) == (0 if name == "phimoe" else 2)  # the sparsemixer picks in turn
    own = decode_layer.decode_attention
    monkeypatch.setattr(decode_layer, "decode_attention", lambda *args, **named: calls.append(1) or own(*args, **named))
    Decoder(model).decode(ids, max_new_tokens=4)
    probes = len(calls) - 3 * 2 * (name in WHOLE_LAYERS)  # steps behind the prompt, layers
    assert probes == (2 * 2 if name in WHOLE_LAYERS | {"glm4_moe"} else 0)


@pytest.mark.parametrize("change", ["hook", "bias", "scale", "block"])
def test_layers_with_something_in_between_are_left_alone(change):
    model = copy.deepcopy(tiny_model("qwen3_moe"))
    layer = model.model.layers[1]
    if change == "hook":  # somebody looks at what goes into a projection
        layer.self_attn.q_proj.register_forward_pre_hook(lambda module, args: None)
    elif change == "bias":

        class Odd(torch.nn.Linear):
            def forward(self, x):
                return super().forward(x) + 1

        layer.self_attn.v_proj.__class__ = Odd
    elif change == "scale":

        class Tempered(type(layer.self_attn)):
            def forward(self, *args, **named):
                out, weights = super().forward(*args, **named)
                return 1.5 * out, weights

        layer.self_attn.__class__ = Tempered
    else:

        class Scaled(type(layer)):
            def forward(self, *args, **named):
                return 0.5 * super().forward(*args, **named)

        layer.__class__ = Scaled
    assert StepFusions(model).layers is None
    assert StepFusions(tiny_model("qwen3_moe")).layers is not None


def test_what_computes_something_else_is_left_alone(monkeypatch):
    model = copy.deepcopy(tiny_model("qwen3_moe"))
    odd = model.model.norm

    class OffsetRMSNorm(type(odd)):
        def forward(self, hidden_states):
            return super().forward(hidden_states) + hidden_states

    odd.__class__ = OffsetRMSNorm
    monkeypatch.setattr(place_of(model), "apply_rotary_pos_emb", lambda q, k, cos, sin, unsqueeze_dim=1: (q, k))
    fusions = StepFusions(model)
    assert odd not in fusions.norms
    assert len(fusions.norms) == 2 * (2 + 2)
    assert fusions.rotary_modules == []


def test_tokens_without_fusions_are_the_same():
    model, ids = tiny_model("qwen3_moe"), token_ids(3, 5)
    fused, own = (Decoder(model, fuse=fuse).decode(ids, max_new_tokens=9) for fuse in (True, False))
    assert torch.equal(fused, own)


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "olmoe"])
def test_a_steered_router_leaves_its_logits_to_the_hooks(name, monkeypatch):
    model, ids = tiny_model(name), token_ids(3, 5)
    knobs = union_knobs(shape_of(model), price=0.4)

    def decoded():
        with attached(model, knobs) as (hooks, _):
            tokens = Decoder(model, hooks=hooks).decode(ids, max_new_tokens=9)
            assert hooks.rows is None
            return tokens, hooks.counters.drain()

    tokens, counted = decoded()
    asked = []
    monkeypatch.setattr(decode_router, "is_fused", lambda *sizes: asked.append(sizes) or True)
    fused_tokens, fused_counted = decoded()
    assert asked
    assert torch.equal(fused_tokens, tokens)
    assert torch.equal(torch.tensor(fused_counted.tokens_per_expert), torch.tensor(counted.tokens_per_expert))


def test_an_error_in_a_step_takes_everything_out_again():
    model = tiny_model("mixtral")

    def fail():
        with grouped_heads(model), StepFusions(model).in_place():
            assert model.config._attn_implementation == DECODE_ATTENTION
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_attention_over_shared_heads_by_hand():
    q, k, v = torch.randn(2, 6, 1, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 7)
    mask = torch.zeros(2, 1, 1, 5)
    mask[0, ..., 3:] = torch.finfo(torch.float32).min
    out, _ = decode_attention(torch.nn.Module(), q, k, v, mask, scaling=0.3)
    assert out.shape == (2, 1, 6, 7)
    for b in range(2):
        for head in range(6):
            scores = 0.3 * (k[b, head // 2] @ q[b, head, 0]) + mask[b, 0, 0]
            torch.testing.assert_close(out[b, 0, head], scores.softmax(0) @ v[b, head // 2])


def test_the_cache_writes_in_order_in_every_layer():
    cache = shared_cache(3, 8)
    parts = [torch.randn(2, 1, num, 4) for num in (3, 1, 1)]
    for part in parts:
        for layer in range(3):
            keys, values = cache.update(part + layer, -part, layer)
    wanted = torch.cat(parts, dim=2)
    assert int(cache.get_seq_length()) == 5
    assert torch.equal(keys[:, :, :5], wanted + 2)
    assert torch.equal(values[:, :, :5], -wanted)
    assert not keys[:, :, 5:].any()
    cache.reset()
    assert int(cache.get_seq_length()) == 0
    assert len({layer.cumulative_length.data_ptr() for layer in cache.layers}) == 1
