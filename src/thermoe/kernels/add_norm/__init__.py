"""A residual sum and its RMS norm in one launch, for the few rows of a decode step; with a router's logits too."""

from collections.abc import Sequence

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.add_norm.reference import add_norm_project_reference, add_norm_reference

__all__ = ["add_norm", "add_norm_project", "add_norm_project_reference", "add_norm_reference"]

MAX_WIDTH = 1 << 15
"""Elements of a row that one program holds."""
MAX_PROJECTED_WIDTH = 1 << 12
"""Elements of a row where a program holds sixteen."""


def add_norm(
    x_TD: Tensor, added_TD: Tensor | None, weight_D: Tensor, eps: float, *, ahead: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """The sum of two tensors, rounded to their dtype, and its RMS norm, computed in float32 and rounded once.

    Args:
        x_TD: (T, D) floating point, contiguous.
        added_TD: (T, D) like it; None where there is nothing to add.
        weight_D: (D,) of the norm.
        eps: Added to the mean square (arXiv 1910.07467).
        ahead: Up to three contiguous matrices that the next launch reads: on a GPU this one brings them to the L2
            cache.

    Returns:
        The sum (`x_TD` itself where nothing was added) and its norm, both (T, D) in x's dtype.

    Raises:
        ConfigError: Shapes, dtypes or strides that do not fit.
    """
    _check(x_TD, added_TD, weight_D)
    if not x_TD.is_cuda or x_TD.shape[1] > MAX_WIDTH:
        return add_norm_reference(x_TD, added_TD, weight_D, eps)
    from thermoe.kernels.add_norm.triton import add_norm_triton

    out = None if added_TD is None else torch.empty_like(x_TD), torch.empty_like(x_TD)
    return add_norm_triton(x_TD, added_TD, weight_D, eps, out, ahead)


def add_norm_project(
    x_TD: Tensor, added_TD: Tensor | None, weight_D: Tensor, eps: float, matrix_ND: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`add_norm`, and the product of the norm with a matrix of few rows, such as a router's.

    Args:
        x_TD, added_TD, weight_D, eps: As for `add_norm`.
        matrix_ND: (N, D) of the same dtype, contiguous.

    Returns:
        Sum and norm, and (T, N) the products, accumulated in float32; all in x's dtype.

    Raises:
        ConfigError: Shapes, dtypes or strides that do not fit.
    """
    _check(x_TD, added_TD, weight_D)
    if matrix_ND.ndim != 2 or matrix_ND.shape[1:] != x_TD.shape[1:]:
        raise ConfigError(f"a matrix of shape {tuple(matrix_ND.shape)} for rows of {tuple(x_TD.shape)}: needed (N, D)")
    if matrix_ND.dtype != x_TD.dtype or not matrix_ND.is_contiguous():
        raise ConfigError("rows and matrix need one dtype and contiguous memory: convert them, call contiguous()")
    if not x_TD.is_cuda or x_TD.shape[1] > MAX_PROJECTED_WIDTH:
        return add_norm_project_reference(x_TD, added_TD, weight_D, eps, matrix_ND)
    from thermoe.kernels.add_norm.triton import add_norm_project_triton

    sum_TD = None if added_TD is None else torch.empty_like(x_TD)
    out = sum_TD, torch.empty_like(x_TD), x_TD.new_empty(x_TD.shape[0], matrix_ND.shape[0])
    return add_norm_project_triton(x_TD, added_TD, weight_D, eps, matrix_ND, out)


def _check(x_TD: Tensor, added_TD: Tensor | None, weight_D: Tensor) -> None:
    given = [x_TD] if added_TD is None else [x_TD, added_TD]
    if x_TD.ndim != 2 or weight_D.shape != x_TD.shape[1:] or any(t.shape != x_TD.shape for t in given):
        shapes = [tuple(t.shape) for t in (*given, weight_D)]
        raise ConfigError(f"rows and norm weight of shapes {shapes}: needed (T, D), (T, D) and (D,)")
    if any(t.dtype != x_TD.dtype or not t.is_contiguous() for t in (*given, weight_D)):
        raise ConfigError("rows and norm weight need one dtype and contiguous memory: convert them, call contiguous()")
