"""Attention of one position without copies of the keys and values for every query head.

Shapes: B sequences, H query heads, G key heads, L positions of the cache, W width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

DECODE_ATTENTION = "thermoe_decode"
_UNKNOWN = ("position_bias", "softcap", "cache")


@contextmanager
def grouped_heads(model: Any) -> Iterator[None]:
    """While it is open, one-position forwards of a model with `sdpa` attention read every key once.

    Transformers before 5.23, and torch.compile with any version, give each query head its own copy of the cache:
    with 8 query heads to a key head, 17 times the traffic.
    """
    config = model.config
    if config._attn_implementation != "sdpa":
        yield
        return
    _register()
    config._attn_implementation = DECODE_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


@contextmanager
def capturable_masks() -> Iterator[None]:
    """While it is open, masks of `eager` attention are made by operations that a graph can hold."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    before = MASKS._local_mapping.get("eager")
    MASKS["eager"] = additive_mask
    try:
        yield
    finally:
        del MASKS["eager"]
        if before is not None:
            MASKS["eager"] = before


def additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor:
    """(B, 1, S, L) zeros where a token may look and the lowest number elsewhere: made once for all layers.

    Transformers before 5.23 makes such masks with a number copied from the host, which no graph can hold.
    """
    from transformers.masking_utils import sdpa_mask

    kwargs["allow_is_causal_skip"] = False
    seen = sdpa_mask(*args, **kwargs)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(B, 1, H, W) for queries (B, H, 1, W) and keys and values (B, G, L, W): the signature of the interface.

    The query heads that share a key head stand as so many positions of one head, all under the one mask. What only
    some models ask for goes to Transformers' own function.
    """
    if query.shape[2] != 1 or any(kwargs.get(name) is not None for name in _UNKNOWN):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        own: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return own
    batch_size, num_heads, _, width = query.shape
    grouped = query.reshape(batch_size, key.shape[1], num_heads // key.shape[1], width)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch_size, 1, num_heads, value.shape[-1]), None


def _register() -> None:
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(DECODE_ATTENTION, decode_attention)
    AttentionMaskInterface.register(DECODE_ATTENTION, additive_mask)
