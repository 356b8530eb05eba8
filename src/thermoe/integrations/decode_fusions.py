"""Fewer and larger operations around the experts of a decode step: routers, and whole layers around their experts where
these are the usual ones, norms and rotary embedding in one launch each elsewhere.

Every replacement is compared with what it stands for before it is used, and stands for it only while a step runs.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from thermoe.integrations.decode_layer import LayerFusion
from thermoe.integrations.decode_probe import agree, is_rms_norm
from thermoe.integrations.decode_router import RouterFusion
from thermoe.integrations.hooks import RouterHooks
from thermoe.kernels.rotary import rotary

_ROTARY = "apply_rotary_pos_emb"


class StepFusions:
    """The replacements that fit a model.

    Args:
        model: A model of Transformers.
        hooks: Thermoe's, where it is attached.

    Attributes:
        norms: Norms that one operation computes.
        rotary_modules: Names of modules of Python whose rotary embedding one kernel computes.
        routers: The routers, and how they are computed.
        layers: The layers, where all can be computed fused.
    """

    def __init__(self, model: nn.Module, hooks: RouterHooks | None = None) -> None:
        self.norms: list[nn.Module] = [module for module in model.modules() if is_rms_norm(module)]
        places = sorted({type(module).__module__ for module in model.modules()})
        self.rotary_modules = [place for place in places if _rotates_halves(getattr(sys.modules[place], _ROTARY, None))]
        self.routers = RouterFusion(model, hooks)
        self.layers = LayerFusion.of(getattr(model, "model", None))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the replacements in, and take them out again."""
        before = {place: getattr(sys.modules[place], _ROTARY) for place in self.rotary_modules}
        for norm in self.norms:
            norm.__dict__["forward"] = partial(_rms_norm, norm)
        for place in self.rotary_modules:
            setattr(sys.modules[place], _ROTARY, partial(_rotary, before[place]))
        try:
            with self.routers.in_place(), nullcontext() if self.layers is None else self.layers.in_place():
                yield
        finally:
            for norm in self.norms:
                norm.__dict__.pop("forward", None)
            for place, function in before.items():
                setattr(sys.modules[place], _ROTARY, function)


def _rms_norm(norm: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotary(own: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    fits = unsqueeze_dim == 1 and cos.shape[-1] == q.shape[-1] and q.stride(-1) == k.stride(-1) == 1
    if not fits:  # only part of a head is turned, for example
        return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
    return rotary(q, k, cos.contiguous(), sin.contiguous())


@torch.no_grad()
def _rotates_halves(function: Callable[..., Any] | None) -> bool:
    """Whether a rotary embedding is the one of Llama: the first half of a head turned with the second."""
    if function is None:
        return False
    x = torch.linspace(-1.0, 1.0, 48).view(2, 3, 1, 8)
    angle = torch.linspace(0.1, 5.0, 8).view(2, 1, 4)
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angle.cos(), angle.sin()))
    try:
        own = function(x, x[:, :2], cos, sin)
    except (RuntimeError, TypeError, ValueError):  # it takes something else
        return False
    wanted = rotary(x, x[:, :2].contiguous(), cos, sin)
    same = isinstance(own, tuple) and len(own) == 2 and all(isinstance(part, Tensor) for part in own)
    return same and all(agree(one, other) for one, other in zip(own, wanted, strict=True))
