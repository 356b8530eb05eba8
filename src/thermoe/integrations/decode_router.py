"""Routers of one position in two launches: the logits, and the choice with its weights.

Shapes: T tokens, D model width, E experts, K experts per token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from thermoe.errors import UnsupportedModelError
from thermoe.integrations.decode_probe import agree
from thermoe.integrations.experts import EXPERTS_IMPLEMENTATION
from thermoe.integrations.families import Family
from thermoe.integrations.hooks import RouterHooks, router_fields
from thermoe.integrations.inspect import find_routers
from thermoe.kernels.few_linear import few_linear
from thermoe.kernels.route import is_fused, route_logits
from thermoe.runtime.knobs import DeviceKnobs
from thermoe.types import RoutingKnobs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Router:
    """One router: what it returns, by structure, and how it scores."""

    module: Any
    family: Family
    output: tuple[Any, ...]
    fields: tuple[int, int, int]


class RouterFusion:
    """The routers of a model that two launches stand for.

    Args:
        model: A model of Transformers.
        hooks: Thermoe's, where it is attached: while they route, the model's own choice is not made.
    """

    def __init__(self, model: Any, hooks: RouterHooks | None = None) -> None:
        self._config, self._hooks = getattr(model, "config", None), hooks
        self.routers: list[_Router] = []
        try:
            found = find_routers(model)
        except UnsupportedModelError:
            return
        self._top_k = found.shape.top_k
        neutral = RoutingKnobs.neutral(1, found.shape.num_experts, self._top_k)
        device = next(found.modules[0].parameters()).device
        self._knobs = DeviceKnobs(neutral, device).layer(0, union=False)
        probed = (self._probed(module, found.family, found.shape.num_experts) for module in found.modules)
        self.routers = [router for router in probed if router is not None]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the fused forwards in, and take them out again."""
        for router in self.routers:
            router.module.__dict__["forward"] = partial(self._forward, router, router.module.forward)
        try:
            yield
        finally:
            for router in self.routers:
                router.module.__dict__.pop("forward")

    @torch.no_grad()
    def _probed(self, module: Any, family: Family, num_experts: int) -> _Router | None:
        """None for a router that does something else."""
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if family.scoring is None or not isinstance(weight, Tensor) or weight.ndim != 2 or "forward" in vars(module):
            return None
        x_TD = torch.linspace(-2.0, 3.0, 5 * weight.shape[1], device=weight.device).view(5, -1).sin().to(weight.dtype)
        output = module.forward(x_TD)
        fields = router_fields(output, num_experts)
        router = _Router(module=module, family=family, output=tuple(output), fields=fields)
        logits_TE = linear(x_TD, weight, bias)
        fused = self._chosen(router, logits_TE)
        own_logits_TE, own_weights_TK = output[fields[0]], output[fields[1]].sort(dim=-1).values
        same = agree(own_logits_TE, logits_TE) and agree(own_weights_TK, fused[1].sort(dim=-1).values)
        return router if same else None

    def _chosen(self, router: _Router, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and float32 weights (T, K) of the model's own choice."""
        family, module = router.family, router.module
        assert family.scoring is not None, "routers without scores that the kernel knows are left alone"
        routing = route_logits(
            logits_TE,
            self._knobs,
            top_k=self._top_k,
            scoring=family.scoring(module),
            renormalise=family.renormalises(module),
            scale=family.scale(module),
        ).routing
        return routing.ids_TK, routing.weights_TK

    def _forward(self, router: _Router, own: Any, hidden_states: Tensor) -> Any:
        module, fields = router.module, router.fields
        steered = self._hooks is not None and self._hooks.active
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1]).contiguous()
        logits_TE = few_linear(x_TD, [module.weight], [getattr(module, "bias", None)])
        if not steered:
            ids_TK, weights_TK = self._chosen(router, logits_TE)
        elif is_fused(logits_TE, self._top_k, router.family.scoring(module), 1):  # type: ignore[misc]
            ids_TK = torch.empty(len(x_TD), self._top_k, dtype=torch.long, device=x_TD.device)  # the hooks fill both in
            weights_TK = torch.empty(len(x_TD), self._top_k, device=x_TD.device)
        else:
            return own(hidden_states)
        output = list(router.output)
        if getattr(self._config, "_experts_implementation", None) != EXPERTS_IMPLEMENTATION:
            weights_TK = weights_TK.to(output[fields[1]].dtype)
        for field, value in zip(fields, (logits_TE, weights_TK, ids_TK), strict=True):
            output[field] = value
        return tuple(output)
