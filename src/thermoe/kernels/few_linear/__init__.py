"""Linear layers that share their input, for so few rows that the time is that of reading the weights: one launch."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.few_linear.reference import few_linear_reference
from thermoe.kernels.operands import check_operands

__all__ = ["MOST_ROWS", "few_linear", "few_linear_reference"]

MOST_ROWS = 64
"""Beyond it a library's matrix product is the better choice, and computes."""
MOST_MATRICES = 3


def few_linear(
    x_TC: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] = (),
    *,
    kernel: Literal["cuda", "triton"] | None = None,
) -> Tensor:
    """The products of the same rows with up to three weight matrices, side by side.

    Args:
        x_TC: (T, C) bf16, f16 or float32, contiguous.
        weights: Matrices (N_i, C) of x's dtype, contiguous. On a GPU of capability 9.0 they are read before the launch
            just before this one has ended, so that one must not write them; `x_TC` may come from it.
        biases: (N_i,) or None for each; empty where no matrix has one.
        kernel: What computes up to `MOST_ROWS` rows on a GPU; None: the CUDA C++ kernel where it can be built and takes
            the tensors, the Triton kernel otherwise.

    Returns:
        (T, sum of N_i) in x's dtype, accumulated in float32 and rounded once.

    Raises:
        ConfigError: Shapes, dtypes, devices, strides or numbers that do not fit, or the kernel that was named does not.
    """
    _check(x_TC, weights, biases)
    if kernel not in (None, "cuda", "triton"):
        raise ConfigError(f"kernel {kernel!r}: choose cuda or triton, or leave the choice open")
    if not x_TC.is_cuda or not x_TC.numel() or x_TC.shape[0] > MOST_ROWS:
        return few_linear_reference(x_TC, weights, biases)
    from thermoe.kernels.few_linear import cuda

    reason = "another was named" if kernel == "triton" else cuda.refusal(x_TC, weights)
    if reason is None:
        out_TN = x_TC.new_empty(x_TC.shape[0], sum(weight.shape[0] for weight in weights))
        cuda.run(x_TC, weights, biases, out_TN)
        return out_TN
    if kernel == "cuda":
        raise ConfigError(f"the CUDA kernel cannot take {reason}; leave the choice of the kernel open")
    from thermoe.kernels.few_linear.triton import few_linear_triton

    return few_linear_triton(x_TC, weights, biases)


def _check(x_TC: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    if not 1 <= len(weights) <= MOST_MATRICES or (biases and len(biases) != len(weights)):
        raise ConfigError(
            f"{len(weights)} matrices and {len(biases)} biases: needed 1 to {MOST_MATRICES}, a bias or None for each"
        )
    if x_TC.ndim != 2 or any(w.ndim != 2 or w.shape[1] != x_TC.shape[1] for w in weights):
        shapes = [tuple(w.shape) for w in weights]
        raise ConfigError(f"rows of shape {tuple(x_TC.shape)} for matrices of shapes {shapes}: needed (T, C), (N, C)")
    for weight, bias in zip(weights, biases, strict=False):
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ConfigError(f"a bias of shape {tuple(bias.shape)} for a matrix of {tuple(weight.shape)}")
    parts = [x_TC, *weights, *(bias for bias in biases if bias is not None)]
    check_operands("rows, matrices and biases", parts)
    if not all(part.is_contiguous() for part in parts):
        raise ConfigError(
            "rows, matrices and biases need contiguous memory, one of them has strides: call contiguous()"
        )
