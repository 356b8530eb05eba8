"""Models that were compiled before the hooks came, and stay in use after they are gone."""

import copy

import pytest
import torch
from recording import shape_of, union_knobs
from tiny_models import tiny_model, token_ids
from transformers import CompileConfig

from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.hooks import RouterHooks


def compiled_layers(model, backend):
    for layer in model.model.layers:
        layer.compile(backend=backend)
    return model


WAYS = {
    "forward": lambda model, backend: torch.compile(model.forward, backend=backend),
    "in place, layer by layer": compiled_layers,
    "as generate does": lambda model, backend: model.get_compiled_call(CompileConfig(backend=backend, mode=None)),
}


@pytest.fixture
def model():
    torch._dynamo.reset()
    yield copy.deepcopy(tiny_model("qwen3_moe"))
    torch._dynamo.reset()


@pytest.mark.parametrize("way", WAYS)
def test_hooks_act_on_a_model_compiled_before_and_are_gone_after(model, way):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    ids, compiled = token_ids(4, 5), WAYS[way](model, backend)
    knobs = union_knobs(shape_of(model), k0=1, price=0.5)

    def logits():
        return compiled(ids, use_cache=False).logits

    with torch.no_grad():
        bare = logits()
        whole = len(graphs)
        assert whole > 0
        hooks = RouterHooks(model, scope=UnionScope.POSITIONS)
        try:
            assert torch.equal(logits(), bare)
            watched = hooks.counters.drain()
            hooks.set_knobs(knobs)
            steered = logits()
            assert (watched.num_tokens, hooks.counters.drain().num_tokens) == (20, 20)
        finally:
            hooks.remove()
        graphs.clear()
        assert torch.equal(logits(), bare)
        assert len(graphs) == whole  # not left in the pieces that the hooks made of it
        assert hooks.counters.drain().num_tokens == 0
        with_hooks = RouterHooks(model, scope=UnionScope.POSITIONS)
        try:
            with_hooks.set_knobs(knobs)
            eager = model(ids, use_cache=False).logits
        finally:
            with_hooks.remove()
    assert not torch.allclose(steered, bare, atol=1e-4)
    torch.testing.assert_close(steered, eager, atol=1e-5, rtol=1e-5)


def test_a_model_compiled_in_one_graph_is_refused_in_words_that_help(model):
    whole = torch.compile(model.forward, backend="eager", fullgraph=True)
    hooks = RouterHooks(model)
    try:
        with torch.no_grad(), pytest.raises(torch._dynamo.exc.Unsupported, match="fullgraph=False"):
            whole(token_ids(1, 3), use_cache=False)
    finally:
        hooks.remove()


def test_nothing_is_dropped_where_nothing_was_compiled(model, monkeypatch):
    monkeypatch.setattr(torch._dynamo, "reset_code_caches", lambda: pytest.fail("dropped"))
    RouterHooks(model).remove()
