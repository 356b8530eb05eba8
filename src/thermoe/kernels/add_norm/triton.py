# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Residual sum and RMS norm: one program a row.

Shapes: T rows, D elements of a row.
"""

import triton
import triton.language as tl
from torch import Tensor

from thermoe.kernels.overlap import launches_overlap


@triton.jit
def _add_norm_kernel(
    x_ptr, added_ptr, weight_ptr, sum_ptr, norm_ptr, eps,
    D: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * D
    d = tl.arange(0, BLOCK)
    inside = d < D
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(x_ptr + at + d, mask=inside, other=0.0)
    if ADDS:
        added = tl.load(added_ptr + at + d, mask=inside, other=0.0)
        x = (x.to(tl.float32) + added.to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + at + d, x, mask=inside)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / D + eps)
    tl.store(norm_ptr + at + d, (wide * scale * weight).to(x.dtype), mask=inside)


def add_norm_triton(
    x_TD: Tensor,
    added_TD: Tensor | None,
    weight_D: Tensor,
    eps: float,
    out: tuple[Tensor | None, Tensor],
    overlaps: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Same contract as `add_norm_reference`.

    `out`: contiguous tensors for the sum and the norm; `overlaps`: whether it begins before the launch before it has
    ended, None where the GPU can.
    """
    overlaps = launches_overlap(x_TD) if overlaps is None else overlaps
    num_rows, width = x_TD.shape
    sum_TD, norm_TD = out
    adds, block = added_TD is not None, triton.next_power_of_2(width)
    if num_rows:
        _add_norm_kernel[(num_rows,)](
            x_TD, added_TD if adds else x_TD, weight_D, sum_TD if adds else norm_TD, norm_TD, eps,
            D=width, ADDS=adds, BLOCK=block, OVERLAPS=overlaps,
            num_warps=min(max(block // 256, 1), 16), launch_pdl=overlaps,
        )  # fmt: skip
    return (sum_TD if adds else x_TD), norm_TD
