"""The hooks beside other users of the same model."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from recording import attached, shape_of, union_knobs
from tiny_models import NAMES, routers, tiny_model, token_ids
from torch import nn
from transformers import MixtralForSequenceClassification

from thermoe.errors import ConfigError
from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.hooks import RouterHooks
from thermoe.types import RoutingKnobs


def test_the_decoder_is_found_inside_a_wrapper() -> None:
    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inside, self.config = model, model.config

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.inside.model(ids).last_hidden_state  # past the language-model head

    model = tiny_model("mixtral")
    hooks = RouterHooks(Wrapper(model), scope=UnionScope.POSITIONS)
    try:
        Wrapper(model)(token_ids(4, 5))
        assert hooks.counters.drain().num_groups == 5
    finally:
        hooks.remove()


def test_other_heads_are_supported() -> None:
    config = copy.deepcopy(tiny_model("mixtral").config)
    model = MixtralForSequenceClassification(config).eval()
    with attached(model) as (hooks, _):
        model(token_ids(4, 5))
        assert hooks.counters.drain().num_tokens == 20


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_captured_router_logits_are_the_models_own(name: str) -> None:
    model, ids = copy.deepcopy(tiny_model(name)), token_ids(4, 1)
    with torch.no_grad(), attached(model, union_knobs(shape_of(model))) as (_, recording):
        captured = model(ids, output_router_logits=True).router_logits
    assert torch.equal(captured[0], recording.calls[0][0].own[0])


def test_a_layer_run_again_for_its_gradient_is_not_counted_again() -> None:
    model = copy.deepcopy(tiny_model("qwen3_moe"))
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)()
    model.train()
    knobs = union_knobs(shape_of(model), k0=1, price=0.3)
    with attached(model, knobs, UnionScope.POSITIONS) as (hooks, recording):
        logits = model(token_ids(4, 5), use_cache=False).logits
        # Squared, since an expanded gradient is more than the grouped product takes.
        (logits**2).mean().backward()
        assert hooks.counters.drain().num_tokens == 20
    assert len(recording.calls[0]) == 2  # forward and recomputation
    assert torch.equal(recording.calls[0][0].final[2], recording.calls[0][1].final[2])
    router = model.model.layers[1].mlp.gate
    assert router.weight.grad.abs().sum() > 0


def test_a_router_called_by_hand_is_one_batch_and_not_counted() -> None:
    model = tiny_model("qwen3_moe")
    with attached(model, union_knobs(shape_of(model)), UnionScope.POSITIONS) as (hooks, recording):
        with torch.no_grad():
            model(token_ids(4, 5))
            hooks.counters.drain()
            model.model.layers[0].mlp.gate(torch.randn(7, 32))
        assert hooks.counters.drain().num_tokens == 0
    logits, _, _ = recording.calls[0][1].own
    assert set(recording.calls[0][1].final[2].flatten().tolist()) == set(logits.argmax(-1).tolist())


def test_new_knobs_act_from_the_next_forward() -> None:
    model, ids = tiny_model("mixtral"), token_ids(6, 1)
    with torch.no_grad():
        bare = model(ids).logits
        with attached(model) as (hooks, _):
            for k0, distinct_below in ((1, 99), (2, 99), (1, 99)):
                hooks.set_knobs(union_knobs(hooks.shape, k0=k0))
                changed = model(ids).logits
                assert torch.allclose(changed, bare, atol=1e-6) == (k0 == 2)
                assert hooks.counters.last_forward()[0].max() < distinct_below
            hooks.set_knobs(None)
            assert torch.equal(model(ids).logits, bare)


def test_knobs_of_another_shape_are_refused_and_change_nothing() -> None:
    model, ids = tiny_model("mixtral"), token_ids(6, 1)
    with attached(model) as (hooks, _), torch.no_grad():
        bare = model(ids).logits
        with pytest.raises(ConfigError, match="knobs for"):
            hooks.set_knobs(RoutingKnobs.neutral(3, 8, 2))
        assert torch.equal(model(ids).logits, bare)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_models_keep_their_choice_and_dtype_under_neutral_knobs(name: str) -> None:
    model = copy.deepcopy(tiny_model(name)).bfloat16()
    shape = shape_of(model)
    knobs = RoutingKnobs.neutral(shape.num_layers, shape.num_experts, shape.top_k)
    with attached(model, knobs) as (_, recording), torch.no_grad():
        model(token_ids(5, 7))
    call = recording.calls[0][0]
    (_, own_weights, own_ids), (_, weights, ids) = call.own, call.final
    assert weights.dtype is own_weights.dtype
    own, final = own_weights.float().sort(-1), weights.float().sort(-1)
    torch.testing.assert_close(final.values, own.values, rtol=2**-7, atol=0.0)
    untied = call.own[0].float().sort(-1).values.diff(dim=-1).abs().amin(-1) > 0
    assert untied.any()
    assert torch.equal(ids.sort(-1).values[untied], own_ids.sort(-1).values[untied])


def test_inference_mode_and_no_grad_mix() -> None:
    model, ids = tiny_model("mixtral"), token_ids(3, 4)
    with torch.inference_mode():
        hooks = RouterHooks(model)
        model(ids)
    try:
        with torch.no_grad():
            model(ids)
        assert hooks.counters.drain().num_tokens == 24
    finally:
        hooks.remove()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "granitemoe"])
def test_chosen_gates_that_underflow_still_sum_to_one(name: str) -> None:
    """A router so sure of one expert that float32 holds no gate of the others, and that expert barred."""
    model, ids = copy.deepcopy(tiny_model(name)), token_ids(4, 3)
    shape = shape_of(model)
    with torch.no_grad():
        for parameter in (p for router in routers(model) for p in router.parameters()):
            parameter.mul_(1e5)
    allowed = np.tile(np.arange(shape.num_experts) < shape.top_k, (shape.num_layers, 1))
    neutral = RoutingKnobs.neutral(shape.num_layers, shape.num_experts, shape.top_k)
    with attached(model, replace(neutral, allowed=allowed)) as (_, recording), torch.no_grad():
        model(ids)
    logits_TE, weights_TK, ids_TK = recording.calls[0][0].final
    assert (logits_TE.float().softmax(-1).gather(1, ids_TK).sum(-1) == 0).any()
    torch.testing.assert_close(weights_TK.sum(-1), torch.ones(len(ids_TK)))
