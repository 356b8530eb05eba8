# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Residual sum and RMS norm: one program a row; with a small matrix behind, one program for a few of its outputs.

Shapes: T rows, D elements of a row, N outputs of the matrix.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from thermoe.kernels.few_linear.prefetch import ahead_arguments, bring_ahead

_BRINGERS = 116
"""Programs beside those of 16 rows that bring weights: together one for each processor of an H200."""
_OUTPUTS = 2
"""Outputs of a program that multiplies: few, since each reads all rows."""


@triton.jit
def _add_norm_kernel(
    x_ptr, added_ptr, weight_ptr, sum_ptr, norm_ptr, eps, T, n0, n1, n2, lines0, lines1, lines2,
    D: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if row >= T:  # programs that only bring weights
        bring_ahead(n0, n1, n2, lines0, lines1, lines2, row - T, tl.num_programs(0) - T, AHEAD, 512)
        return
    at = row.to(tl.int64) * D
    d = tl.arange(0, BLOCK)
    inside = d < D
    x = tl.load(x_ptr + at + d, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        added = tl.load(added_ptr + at + d, mask=inside, other=0.0)
        x = (x.to(tl.float32) + added.to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + at + d, x, mask=inside)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / D + eps)
    tl.store(norm_ptr + at + d, (wide * scale * weight).to(x.dtype), mask=inside)


@triton.jit
def _add_norm_project_kernel(
    x_ptr, added_ptr, weight_ptr, matrix_ptr, sum_ptr, norm_ptr, out_ptr, eps, T, N,
    D: tl.constexpr, ADDS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    rows, inside = (t < T)[:, None], (d < D)[None, :]
    at = t.to(tl.int64)[:, None] * D + d[None, :]
    x = tl.load(x_ptr + at, mask=rows & inside, other=0.0)
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    mine = (t % programs == program)[:, None]  # rows whose sum and norm this program writes
    if ADDS:
        added = tl.load(added_ptr + at, mask=rows & inside, other=0.0)
        x = (x.to(tl.float32) + added.to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + at, x, mask=rows & inside & mine)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / D + eps)
    norm = (wide * scale[:, None] * weight[None, :]).to(x.dtype)
    tl.store(norm_ptr + at, norm, mask=rows & inside & mine)
    for i in tl.static_range(OUTPUTS):
        n = program * OUTPUTS + i
        there = tl.minimum(tl.maximum(N - n, 0), 1)
        line = tl.load(matrix_ptr + n.to(tl.int64) * D + d, mask=d < D * there, other=0.0).to(tl.float32)
        product = tl.sum(norm.to(tl.float32) * line[None, :], axis=1)
        tl.store(out_ptr + t * N + n, product.to(out_ptr.dtype.element_ty), mask=t < T * there)


def add_norm_triton(
    x_TD: Tensor,
    added_TD: Tensor | None,
    weight_D: Tensor,
    eps: float,
    out: tuple[Tensor | None, Tensor],
    ahead: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Same contract as `add_norm_reference`; `out`: contiguous tensors for the sum and the norm."""
    num_rows, width = x_TD.shape
    sum_TD, norm_TD = out
    adds, block = added_TD is not None, triton.next_power_of_2(width)
    if num_rows:
        _add_norm_kernel[(num_rows + (_BRINGERS if ahead else 0),)](
            x_TD, added_TD if adds else x_TD, weight_D, sum_TD if adds else norm_TD, norm_TD, eps, num_rows,
            *ahead_arguments(ahead, x_TD),
            D=width, ADDS=adds, BLOCK=block, AHEAD=len(ahead), num_warps=_warps(block),
        )  # fmt: skip
    return (sum_TD if adds else x_TD), norm_TD


def add_norm_project_triton(
    x_TD: Tensor,
    added_TD: Tensor | None,
    weight_D: Tensor,
    eps: float,
    matrix_ND: Tensor,
    out: tuple[Tensor | None, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as `add_norm_project_reference`; `out`: contiguous tensors for sum, norm and products."""
    (num_rows, width), num_outputs = x_TD.shape, matrix_ND.shape[0]
    sum_TD, norm_TD, out_TN = out
    adds, block_d = added_TD is not None, triton.next_power_of_2(width)
    block_t = min(triton.next_power_of_2(max(num_rows, 1)), 16)
    if num_rows:
        _add_norm_project_kernel[(triton.cdiv(num_outputs, _OUTPUTS), triton.cdiv(num_rows, block_t))](
            x_TD, added_TD if adds else x_TD, weight_D, matrix_ND, sum_TD if adds else norm_TD, norm_TD, out_TN, eps,
            num_rows, num_outputs, D=width, ADDS=adds, BLOCK_T=block_t, BLOCK_D=block_d, OUTPUTS=_OUTPUTS,
            num_warps=16 if block_t * block_d >= 16384 else 4,
        )  # fmt: skip
    return (sum_TD if adds else x_TD), norm_TD, out_TN


def _warps(block: int) -> int:
    return min(max(block // 256, 1), 16)
