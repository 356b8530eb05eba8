"""A residual sum and the RMS norm of it in one launch, for the few rows of a decode step."""

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.add_norm.reference import add_norm_reference
from thermoe.kernels.operands import check_operands

__all__ = ["add_norm", "add_norm_reference"]

MAX_WIDTH = 1 << 15
"""Elements of a row that one program holds."""


def add_norm(x_TD: Tensor, added_TD: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of two tensors, rounded to their dtype, and its RMS norm, computed in float32 and rounded once.

    Args:
        x_TD: (T, D) floating point, contiguous.
        added_TD: (T, D) like it; None where there is nothing to add.
        weight_D: (D,) of the norm.
        eps: Added to the mean square (arXiv 1910.07467).

    Returns:
        The sum (`x_TD` itself where nothing was added) and its norm, both (T, D) in x's dtype.

    Raises:
        ConfigError: Shapes, dtypes, devices, strides or an eps that do not fit.
    """
    given = [x_TD] if added_TD is None else [x_TD, added_TD]
    if x_TD.ndim != 2 or weight_D.shape != x_TD.shape[1:] or any(t.shape != x_TD.shape for t in given):
        shapes = [tuple(t.shape) for t in (*given, weight_D)]
        raise ConfigError(f"rows and norm weight of shapes {shapes}: needed (T, D), (T, D) and (D,)")
    check_operands("rows and norm weight", (*given, weight_D))
    if not all(t.is_contiguous() for t in (*given, weight_D)):
        raise ConfigError("rows and norm weight need contiguous memory, one of them has strides: call contiguous()")
    if not eps >= 0:
        raise ConfigError(f"eps = {eps} under a root: needed 0 or more")
    if not x_TD.is_cuda or not x_TD.numel() or x_TD.shape[1] > MAX_WIDTH:
        return add_norm_reference(x_TD, added_TD, weight_D, eps)
    from thermoe.kernels.add_norm.triton import add_norm_triton

    out = None if added_TD is None else torch.empty_like(x_TD), torch.empty_like(x_TD)
    return add_norm_triton(x_TD, added_TD, weight_D, eps, out)
