"""Whether modules of a model compute what the fused operations of a decode step do: tried on a few numbers.

Shapes: B sequences, D model width, W width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
_POSITIONS = 4


def agree(own: Tensor, other: Tensor) -> bool:
    """Whether two results are the same up to rounding."""
    tolerance = TOLERANCE.get(own.dtype, 0.0)
    return own.shape == other.shape and torch.allclose(own, other.to(own.dtype), atol=tolerance, rtol=tolerance)


@torch.no_grad()
def is_rms_norm(module: Any) -> bool:
    """Whether a module is an RMS norm over a last dimension, by name, parts and result."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or not epsilon:
        return False
    if weight.ndim != 1 or weight.dtype not in TOLERANCE or "forward" in module.__dict__:
        return False
    x = torch.linspace(-2.0, 3.0, 2 * weight.numel(), device=weight.device).to(weight.dtype).view(2, -1)
    return agree(module(x), rms_norm(x, weight.shape, weight, epsilon))


@torch.no_grad()
def composes_as_usual(layer: Any) -> bool:
    """Whether a layer is x + attention(norm(x)), and that plus mlp(norm of it), with nothing in between."""
    norms = layer.input_layernorm, layer.post_attention_layernorm
    weight = norms[0].weight
    x = torch.linspace(-1.0, 2.0, 2 * weight.numel(), device=weight.device).to(weight.dtype).view(2, 1, -1)
    attention = _stand_in(layer.self_attn, lambda *args, **named: (2.0 * _first(args, named), None))
    with attention, _stand_in(getattr(layer, "mlp", None), lambda *args, **named: 3.0 * _first(args, named)):
        try:
            own = layer(x, attention_mask=None, position_embeddings=(x, x), past_key_values=None)
        except (AttributeError, RuntimeError, TypeError, ValueError):  # it takes something else
            return False
    middle = x + 2.0 * norms[0](x)
    return isinstance(own, Tensor) and agree(own, middle + 3.0 * norms[1](middle))


@torch.no_grad()
def same_attention(parts: Any, num_layers: int) -> bool:
    """Whether the fused attention gives the module's own outputs at two positions in a row.

    Args:
        parts: The `AttentionParts` of a module.
        num_layers: Layers of the model, as its cache counts them.
    """
    from thermoe.integrations.decode_cache import shared_cache

    module, width = parts.module, getattr(parts.module, "head_dim", 0)
    weight = module.q_proj.weight
    device, dtype = weight.device, weight.dtype
    if not width or width % 2 or dtype not in TOLERANCE:
        return False
    angle = torch.linspace(0.1, 3.0, width // 2, device=device)
    caches = [shared_cache(num_layers, _POSITIONS) for _ in range(2)]
    for position in range(2):
        x = torch.linspace(-2.0, 1.0 + position, 3 * weight.shape[1], device=device).to(dtype).view(3, 1, -1).sin()
        turn = torch.cat([angle, angle])[None, None] * position
        place = turn.cos().to(dtype), turn.sin().to(dtype)
        mask = torch.zeros(3, 1, 1, _POSITIONS, dtype=dtype, device=device)
        mask[..., position + 1 :] = torch.finfo(dtype).min
        mask[1, ..., :position] = torch.finfo(dtype).min
        try:
            own = module(x, attention_mask=mask, position_embeddings=place, past_key_values=caches[0])[0]
            layer = caches[1].layers[module.layer_idx]
            if not layer.is_initialized:
                layer.lazy_initialization(*_empty_heads(module, x))
            other = parts(x.flatten(0, 1), place, layer, mask)
        except (AttributeError, RuntimeError, TypeError, ValueError):  # it takes something else
            return False
        if not agree(own.flatten(0, 1), other):
            return False
        for cache in caches:
            cache.layers[module.layer_idx].cumulative_length.fill_(position + 1)
    return True


def _empty_heads(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    groups = module.k_proj.out_features // module.head_dim
    heads = x.new_zeros(x.shape[0], groups, 1, module.head_dim)
    return heads, heads


def _first(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else named["hidden_states"]
    return found


@contextmanager
def _stand_in(module: nn.Module | None, forward: Any) -> Iterator[None]:
    """While it is open, a module computes something else."""
    if module is None:
        yield
        return
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__.pop("forward")
        if before is not None:
            module.__dict__["forward"] = before
