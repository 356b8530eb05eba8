"""Residual sum and RMS norm in plain PyTorch."""

from torch import Tensor


def add_norm_reference(x_TD: Tensor, added_TD: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(T, D) sum rounded to the dtype of `x_TD`, and its norm in float32, rounded once."""
    sum_TD = x_TD if added_TD is None else x_TD + added_TD
    wide_TD = sum_TD.float()
    scale_T1 = (wide_TD.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return sum_TD, (wide_TD * scale_T1 * weight_D.float()).to(x_TD.dtype)
