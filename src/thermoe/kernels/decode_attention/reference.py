"""Attention of one new position in plain PyTorch.

Shapes: B sequences, H query heads, G key heads, R query heads of a key head, L positions, W width of a head.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from thermoe.kernels.decode_attention import HeadNorms


def decode_attention_reference(
    qkv_BN: Tensor,
    cos_BW: Tensor,
    sin_BW: Tensor,
    keys_BGLW: Tensor,
    values_BGLW: Tensor,
    place_1: Tensor,
    mask_BL: Tensor,
    *,
    num_heads: int,
    scale: float,
    norms: "HeadNorms | None" = None,
) -> Tensor:
    """(B, H W); writes the new position into the cache."""
    batch, groups, length, width = keys_BGLW.shape
    heads = qkv_BN.view(batch, -1, width)
    query, key, value = heads.split([num_heads, groups, groups], dim=1)
    if norms is not None:
        query, key = (_normed(x, weight, norms.eps) for x, weight in ((query, norms.query_W), (key, norms.key_W)))
    query, key = (_turned(x, cos_BW, sin_BW) for x in (query, key))
    keys_BGLW.index_copy_(2, place_1, key.unsqueeze(2))
    values_BGLW.index_copy_(2, place_1, value.unsqueeze(2))
    query_BGRW = query.reshape(batch, groups, -1, width).float()
    added_BL = mask_BL.float().clamp(min=-1e30)  # as the kernels: a row that sees nothing gives numbers, not NaN
    scores = query_BGRW @ keys_BGLW.float().transpose(2, 3) * scale + added_BL[:, None, None]
    seen_L = torch.arange(length, device=place_1.device) <= place_1
    shares = scores.masked_fill(~seen_L, float("-inf")).softmax(dim=-1)
    values = values_BGLW.float().masked_fill(~seen_L[:, None], 0.0)  # what was never written may be anything
    return (shares @ values).to(qkv_BN.dtype).reshape(batch, -1)


def _normed(x: Tensor, weight_W: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt() * weight_W.float()).to(x.dtype)


def _turned(x: Tensor, cos_BW: Tensor, sin_BW: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos_BW.float().unsqueeze(1), sin_BW.float().unsqueeze(1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
