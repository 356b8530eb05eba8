"""The routing policies on a trained model and real text, which lie beside the checkout where they are present."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.hooks import RouterHooks
from thermoe.types import RoutingKnobs
from thermoe.workloads import TextBlocks

BESIDE = Path(__file__).resolve().parents[2].parent / "shared"
SHARED = Path(os.environ.get("THERMOE_SHARED", BESIDE))
MODEL, PROSE = SHARED / "reference_moe", SHARED / "text" / "valid_prose.txt"
pytestmark = pytest.mark.skipif(
    not (MODEL / "config.json").is_file() or not PROSE.is_file(), reason="the trained model and its text are not here"
)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def blocks():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return TextBlocks([PROSE], tokenizer, batch_size=16, block_size=512, max_tokens=16 * 513)


def opportunistic(shape, k0):
    layers = np.ones(shape.num_layers)
    neutral = RoutingKnobs.neutral(shape.num_layers, shape.num_experts, shape.top_k)
    return replace(neutral, union=True, price=np.inf * layers, protected_k0=(k0 * layers).astype(np.int64))


def naive_opportunistic(k0, positions):
    """The same policy with Python sets, token by token, as a router hook of its own."""

    def hook(router, args, output):
        logits, weights, ids = output
        probabilities = logits.float().softmax(-1)
        new_ids, new_weights = ids.clone(), weights.clone()
        for position in range(positions):
            tokens = range(position, logits.shape[0], positions)
            loaded = sorted({int(e) for t in tokens for e in ids[t, :k0]})
            for t in tokens:
                best = sorted(loaded, key=lambda e: -float(logits[t, e]))[: ids.shape[1]]
                gates = probabilities[t, best]
                new_ids[t], new_weights[t] = torch.tensor(best), gates / gates.sum()
        return logits, new_weights, new_ids

    return hook


def test_watching_changes_no_bit_and_detaching_leaves_nothing(model, blocks):
    ids = blocks.batch(0).input_ids[:2, :48]
    implementation = model.config._experts_implementation
    parameters = {name: value.clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        bare = model(ids).logits
        hooks = RouterHooks(model)
        attached = model(ids).logits
        hooks.remove()
        after = model(ids).logits
    assert torch.equal(bare, attached)
    assert torch.equal(bare, after)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.config._experts_implementation == implementation
    assert all(torch.equal(parameters[name], value) for name, value in model.named_parameters())


def test_opportunistic_activation_equals_its_definition_token_by_token(model, blocks):
    ids = blocks.batch(0).input_ids[:, :8]
    hooks = RouterHooks(model, scope=UnionScope.POSITIONS)
    hooks.set_knobs(opportunistic(hooks.shape, 4))
    with torch.no_grad():
        ours = model(ids, use_cache=False).logits
    hooks.remove()
    routers = [m for m in model.modules() if type(m).__name__ == "Qwen3MoeTopKRouter"]
    naive = [m.register_forward_hook(naive_opportunistic(4, ids.shape[1])) for m in routers]
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    for handle in naive:
        handle.remove()
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-4)


def test_opportunistic_activation_on_prose(model, blocks):
    """8,192 tokens, k0 = 4; the first 57,344 tokens of this text give 28.1 experts and +0.97 %."""
    batch = blocks.batch(0)
    hooks = RouterHooks(model, scope=UnionScope.POSITIONS)

    def judged(knobs):
        hooks.set_knobs(knobs)
        hooks.counters.drain()
        with torch.no_grad():
            logits = model(batch.input_ids, use_cache=False).logits
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_ids.flatten())
        return float(nll), float(hooks.counters.drain().distinct_experts.mean())

    own, own_experts = judged(None)
    steered, experts = judged(opportunistic(hooks.shape, 4))
    hooks.remove()
    assert own_experts == pytest.approx(40.4, abs=0.2)
    assert experts == pytest.approx(27.7, abs=0.2)
    assert 100 * np.expm1(steered - own) == pytest.approx(1.12, abs=0.1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_while_watched_gives_the_bare_models_tokens(model, blocks, side, use_cache):
    ids = blocks.batch(0).input_ids[:2, :12].clone()
    mask = torch.ones_like(ids)
    padding = slice(0, 3) if side == "left" else slice(9, 12)
    mask[1, padding] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    bare = model.generate(**inputs, use_cache=use_cache)
    hooks = RouterHooks(model)
    watched = model.generate(**inputs, use_cache=use_cache)
    hooks.set_knobs(opportunistic(hooks.shape, 2))
    steered = model.generate(**inputs, use_cache=use_cache)
    hooks.remove()
    assert torch.equal(bare, watched)
    assert steered.shape == bare.shape
