"""Routers of one position in one launch, or in two: the logits, and the choice with its weights.

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
from thermoe.kernels.route import RouterRows, is_fused, route_logits, route_rows
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
    """The routers of a model that one launch, or two, stand for.

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
        routing = route_logits(logits_TE, self._knobs, **self._options(router)).routing
        own_logits_TE, own_weights_TK = output[fields[0]], output[fields[1]].sort(dim=-1).values
        same = agree(own_logits_TE, logits_TE) and agree(own_weights_TK, routing.weights_TK.sort(dim=-1).values)
        return router if same else None

    def _options(self, router: _Router) -> dict[str, Any]:
        """Of the model's own choice."""
        family, module = router.family, router.module
        assert family.scoring is not None, "routers without scores that the kernel knows are left alone"
        return {
            "top_k": self._top_k,
            "scoring": family.scoring(module),
            "renormalise": family.renormalises(module),
            "scale": family.scale(module),
        }

    def _forward(self, router: _Router, own: Any, hidden_states: Tensor) -> Any:
        module, fields = router.module, router.fields
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1]).contiguous()
        rows = RouterRows(x_TD=x_TD, weight_ED=module.weight, bias_E=getattr(module, "bias", None))
        if self._hooks is None or not self._hooks.active:
            logits_TE, fused = route_rows(rows, self._knobs, **self._options(router))
            ids_TK, weights_TK = fused.routing.ids_TK, fused.routing.weights_TK
        else:
            logits_TE = x_TD.new_empty(len(x_TD), module.weight.shape[0])  # the hooks fill all three in
            if not is_fused(logits_TE, self._top_k, router.family.scoring(module), 1):  # type: ignore[misc]
                return own(hidden_states)
            ids_TK = torch.empty(len(x_TD), self._top_k, dtype=torch.long, device=x_TD.device)
            weights_TK = torch.empty(len(x_TD), self._top_k, device=x_TD.device)
            self._hooks.rows = rows
        output = list(router.output)
        if getattr(self._config, "_experts_implementation", None) != EXPERTS_IMPLEMENTATION:
            weights_TK = weights_TK.to(output[fields[1]].dtype)
        for field, value in zip(fields, (logits_TE, weights_TK, ids_TK), strict=True):
            output[field] = value
        return tuple(output)
