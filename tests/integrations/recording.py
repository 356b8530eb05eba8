"""What routers returned before and after the hooks under test, and what their families should have returned."""

import contextlib
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from tiny_models import routers
from torch import nn

from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.hooks import RouterHooks, router_fields
from thermoe.types import RoutingKnobs


@dataclass
class Call:
    """One router in one forward: its input and its (logits, weights, ids), own and final."""

    hidden: torch.Tensor
    own: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    final: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None


@dataclass
class Recording:
    """Per layer, the calls in order."""

    calls: list[list[Call]]
    live: list[torch.Tensor | None] = field(default_factory=list)


def fields_of(output, num_experts: int):
    return tuple(output[i].detach().clone() for i in router_fields(output, num_experts))


@contextlib.contextmanager
def attached(model: nn.Module, knobs: RoutingKnobs | None = None, scope: UnionScope = UnionScope.DECODE):
    """The hooks on a model, with recorders before and after them; all gone at the end."""
    modules = routers(model)
    recording = Recording([[] for _ in modules])
    handles = []
    for layer, module in enumerate(modules):

        def before(router, args, output, layer=layer):
            fields = fields_of(output, router.num_experts)
            recording.calls[layer].append(Call(args[0].detach().reshape(fields[0].shape[0], -1), fields))

        handles.append(module.register_forward_hook(before))
    hooks = RouterHooks(model, scope=scope)
    hooks.set_knobs(knobs)
    for layer, module in enumerate(modules):

        def after(router, args, output, layer=layer):
            recording.calls[layer][-1].final = fields_of(output, router.num_experts)
            if layer == 0:
                recording.live.append(hooks.context.live_T)

        handles.append(module.register_forward_hook(after))
    try:
        yield hooks, recording
    finally:
        hooks.remove()
        for handle in handles:
            handle.remove()


def union_knobs(hooks_shape, k0: int = 1, price: float = np.inf, **changes) -> RoutingKnobs:
    layers = hooks_shape.num_layers
    neutral = RoutingKnobs.neutral(layers, hooks_shape.num_experts, hooks_shape.top_k)
    values = {"union": True, "price": np.full(layers, price), "protected_k0": np.full(layers, k0)}
    return replace(neutral, **(values | changes))


def shape_of(model: nn.Module):
    hooks = RouterHooks(model)
    hooks.remove()
    return hooks.shape


def ranked_own_ids(router: nn.Module, call: Call) -> torch.Tensor:
    """The router's own choice, best first by the family's ranking (some return it unsorted)."""
    logits, _, ids = call.own
    scores = logits.float()
    if hasattr(router, "e_score_correction_bias"):
        scores = scores.sigmoid() + router.e_score_correction_bias
    order = scores.gather(1, ids).argsort(dim=-1, descending=True)
    return ids.gather(1, order)


def dense(ids: torch.Tensor, weights: torch.Tensor, num_experts: int) -> torch.Tensor:
    """(T, E) weights by expert; dropped slots repeat an expert with weight 0."""
    return torch.zeros(ids.shape[0], num_experts).scatter_add_(1, ids, weights.float())


def own_router_over(router: nn.Module, hidden: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """(T, E) weights that the family's own router gives with all logits but the usable ones at -inf."""
    linear = torch.nn.functional.linear

    def masked_linear(*args, **kwargs):
        return linear(*args, **kwargs).masked_fill(~usable, float("-inf"))

    torch.nn.functional.linear = masked_linear
    try:
        output = type(router).forward(router, hidden)
    finally:
        torch.nn.functional.linear = linear
    _, weights, ids = fields_of(output, router.num_experts)
    return dense(ids, weights, router.num_experts)


def expected_weights(router: nn.Module, call: Call, loaded: torch.Tensor) -> torch.Tensor:
    """(T, E) weights the family gives to the experts that were finally chosen."""
    logits = call.own[0].float()
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, call.final[2], value=True)
    name = type(router).__name__
    if name.startswith(("Mixtral", "Qwen3", "GptOss", "Granite")):
        return own_router_over(router, call.hidden, chosen)
    if name.startswith("Phimoe"):
        passed_over = ~chosen & (logits > logits.masked_fill(~chosen, torch.inf).amin(-1, keepdim=True))
        return own_router_over(router, call.hidden, loaded & ~passed_over) * chosen
    if name.startswith(("Qwen2", "Olmoe", "DeepseekV2")):
        assert not getattr(router, "norm_topk_prob", False)
        return logits.softmax(-1) * chosen * getattr(router, "routed_scaling_factor", 1.0)
    gates = logits.sigmoid() * chosen
    assert router.norm_topk_prob
    return gates / gates.sum(-1, keepdim=True) * router.routed_scaling_factor
