# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Weighted sum of the outputs of a token's experts, in the order of its slots.

Shapes: T tokens, K slots per token, N = T * K slots (slot = token * K + k), E experts, D model width.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

BLOCK_D = 512


@triton.jit
def _combine_kernel(
    y_ptr, weights_ptr, ids_ptr, out_ptr, num_experts, D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl_cuda.gdc_wait()
        tl_cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        expert = tl.load(ids_ptr + token * K + k)
        weight = tl.load(weights_ptr + token * K + k).to(tl.float32)
        width = tl.where(weight != 0.0, D, 0)  # a dropped slot is zero wide
        width = tl.where(expert >= 0, width, 0)
        width = tl.where(expert < num_experts, width, 0)
        y = tl.load(y_ptr + (token * K + k) * D + d, mask=d < width, other=0.0).to(tl.float32)
        total += tl.where(width > 0, weight, 0.0) * y
    tl.store(out_ptr + token * D + d, total.to(out_ptr.dtype.element_ty), mask=d < D)


def combine_triton(
    y_ND: Tensor, weights_TK: Tensor, ids_TK: Tensor, num_experts: int, out_TD: Tensor, *, dependent: bool = False
) -> None:
    """Sum into `out_TD`; contiguous tensors on one device.

    Args:
        y_ND: (N, D) float32, bf16 or f16.
        weights_TK, ids_TK: (T, K).
        num_experts: E.
        out_TD: (T, D), overwritten.
        dependent: whether the launch may overlap the end of the one before (compute capability 9.0 and later).
    """
    num_tokens, top_k = ids_TK.shape
    width = out_TD.shape[1]
    block = min(BLOCK_D, triton.next_power_of_2(width))
    options = {"launch_pdl": True} if dependent else {}
    _combine_kernel[(num_tokens, triton.cdiv(width, block))](
        y_ND, weights_TK, ids_TK, out_TD, num_experts, D=width, K=top_k, BLOCK=block, PDL=dependent, num_warps=4,
        **options)  # fmt: skip
