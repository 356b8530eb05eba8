"""Rotary position embedding in plain PyTorch."""

import torch
from torch import Tensor


def rotary_reference(q_BHSW: Tensor, k_BGSW: Tensor, cos_BSW: Tensor, sin_BSW: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated queries and keys, computed in float32 and rounded once."""
    cos, sin = cos_BSW.float().unsqueeze(1), sin_BSW.float().unsqueeze(1)
    return _rotated(q_BHSW, cos, sin), _rotated(k_BGSW, cos, sin)


def _rotated(x_BHSW: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x_BHSW.float()
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x_BHSW.dtype).contiguous()
