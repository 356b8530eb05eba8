"""Captured decode steps on a GPU: the same tokens as uncaptured ones, live knobs, and no wait within a step."""

import copy

import pytest
import torch
from recording import union_knobs
from tiny_models import LAYERS, tiny_model, token_ids

from thermoe.errors import UnsupportedModelError
from thermoe.integrations.decoding import Decoder
from thermoe.integrations.experts import register_experts
from thermoe.integrations.experts_quantised import quantise_experts
from thermoe.integrations.hooks import RouterHooks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
NEW = 16


def on_gpu(name):
    model = copy.deepcopy(tiny_model(name)).cuda()
    model.set_experts_implementation(register_experts())
    return model


@pytest.mark.parametrize("held_as", [None, "bank4"])
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_captured_steps_give_the_tokens_of_uncaptured_ones(name, held_as):
    model, ids = on_gpu(name), token_ids(4, 5)
    quantised = None if held_as is None else quantise_experts(model, held_as, group_size=32)
    captured = Decoder(model)
    tokens = [captured.decode(ids, max_new_tokens=NEW, stop_token_ids=[]) for _ in range(2)]
    assert captured.loop.graphs.num_graphs == 1
    plain = Decoder(model, graph=False).decode(ids, max_new_tokens=NEW, stop_token_ids=[])
    assert torch.equal(tokens[0], plain)
    assert torch.equal(tokens[1], plain)
    if quantised is not None:
        quantised.remove()


def test_a_captured_step_reads_the_knobs_of_now():
    model, ids = on_gpu("qwen3_moe"), token_ids(6, 4)
    hooks, loads = RouterHooks(model), []
    narrow = union_knobs(hooks.shape, allowed=torch.arange(8).lt(3).expand(LAYERS, 8).numpy())
    hooks.set_knobs(union_knobs(hooks.shape))
    decoder = Decoder(model, hooks=hooks)

    def between(num_new):
        loads.append(hooks.counters.drain().loads_per_expert)
        if num_new == 8:
            hooks.set_knobs(narrow)

    try:
        decoder.decode(ids, max_new_tokens=NEW, stop_token_ids=[], between_steps=between)
    finally:
        hooks.remove()
    assert decoder.loop.graphs.num_graphs == 1
    assert all((load[:, 3:].sum(axis=1) > 0).all() for load in loads[1:8])
    assert all((load[:, 3:] == 0).all() and (load.sum(axis=1) > 0).all() for load in loads[8:])


def test_experts_that_need_the_host_are_refused():
    model = on_gpu("qwen3_moe")
    model.set_experts_implementation("eager")
    with pytest.raises(UnsupportedModelError, match="Experts calls aten"):
        Decoder(model).decode(token_ids(2, 3), max_new_tokens=4)
