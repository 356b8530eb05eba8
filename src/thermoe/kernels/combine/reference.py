"""Weighted sum of the outputs of a token's experts, in plain PyTorch.

Shapes: T tokens, K slots per token, N = T * K slots (slot = token * K + k), E experts, D model width.
"""

import torch
from torch import Tensor


def combine_reference(
    y_ND: Tensor, weights_TK: Tensor, ids_TK: Tensor, num_experts: int, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(T, D) of `dtype`: slots with an id outside 0..E-1 or a weight of 0 are never read, whatever lies there."""
    kept_TK1 = ((ids_TK >= 0) & (ids_TK < num_experts) & (weights_TK != 0)).unsqueeze(-1)
    y_TKD = y_ND.reshape(*weights_TK.shape, y_ND.shape[1]).to(dtype)
    weighted_TKD = y_TKD * weights_TK.to(dtype).unsqueeze(-1)
    return weighted_TKD.where(kept_TK1, 0.0).sum(dim=1)
