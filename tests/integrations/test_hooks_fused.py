"""The hooks' way through the fused routing, taken on a CPU: it has to give what the reference gives."""

import pytest
import torch
from recording import attached, shape_of, union_knobs
from tiny_models import NAMES, routers, tiny_model, token_ids

from thermoe.integrations import hooks as hooks_module
from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.families import FAMILIES
from thermoe.kernels.route.fused import scores


def forward(model, knobs, scope):
    """Weights and ids of every layer, counted figures, and those of the last forward."""
    with attached(model, knobs, scope) as (hooks, recording):
        with torch.no_grad():
            model(token_ids(5, 7))
        return [calls[0].final[1:] for calls in recording.calls], hooks.counters.drain(), hooks.counters.last_forward()


@pytest.mark.parametrize("scope", [UnionScope.POSITIONS, UnionScope.FORWARD])
@pytest.mark.parametrize("name", NAMES)
def test_fused_routing_decides_and_counts_as_the_reference(name, scope, monkeypatch):
    model, asked = tiny_model(name), []
    knobs = union_knobs(shape_of(model), price=0.4)
    finals, statistics, last = forward(model, knobs, scope)
    monkeypatch.setattr(hooks_module, "is_fused", lambda *sizes: asked.append(sizes) or True)
    fused_finals, fused_statistics, fused_last = forward(model, knobs, scope)
    assert bool(asked) == (model.config.model_type != "phimoe")
    for (weights, ids), (fused_weights, fused_ids) in zip(finals, fused_finals, strict=True):
        assert torch.equal(fused_ids, ids)
        torch.testing.assert_close(fused_weights, weights, rtol=1e-6, atol=0.0)
    for field in ("tokens_per_expert", "loads_per_expert", "gate_mass_kept", "changed_slots"):
        torch.testing.assert_close(getattr(fused_statistics, field), getattr(statistics, field), rtol=1e-6, atol=1e-6)
    assert (fused_statistics.num_groups, fused_statistics.num_tokens) == (statistics.num_groups, statistics.num_tokens)
    for fused_figure, figure in zip(fused_last, last, strict=True):
        torch.testing.assert_close(fused_figure, figure, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_fused_kernel_is_told_the_familys_own_scores(name):
    model = tiny_model(name)
    _, family = FAMILIES[model.config.model_type]
    if family.scoring is None:
        assert family.picks_in_turn
        return
    for router in routers(model):
        logits_TE = torch.randn(9, 8, generator=torch.Generator().manual_seed(1))
        for got, want in zip(scores(logits_TE, family.scoring(router)), family.scores(router, logits_TE), strict=True):
            assert torch.equal(got, want)


def test_a_router_that_runs_outside_a_forward_is_not_counted(monkeypatch):
    model = tiny_model("mixtral")
    monkeypatch.setattr(hooks_module, "is_fused", lambda *sizes: True)
    with attached(model, union_knobs(shape_of(model))) as (hooks, _):
        with torch.no_grad():
            routers(model)[0](torch.randn(3, 32))
        assert hooks.counters.drain().num_tokens == 0
