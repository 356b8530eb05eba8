# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Rows to e4m3 with a scale each, for the matrix units that multiply eight bits by eight.

Shapes: R rows, C columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = tl.constexpr(448.0)


@triton.jit
def _quantize_kernel(x_ptr, code_ptr, scale_ptr, C: tl.constexpr, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    x = tl.load(x_ptr + row * C + c, mask=c < C, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-30) / LARGEST
    tl.store(code_ptr + row * C + c, (x / scale).to(tl.float8e4nv), mask=c < C)
    tl.store(scale_ptr + row, scale)


def quantize_rows(x_RC: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C) e4m3 codes and (R,) float32 scales, the largest magnitude of a row at 448."""
    rows, columns = x_RC.shape
    code_RC = torch.empty_like(x_RC, dtype=torch.float8_e4m3fn)
    scale_R = x_RC.new_empty(rows, dtype=torch.float32)
    _quantize_kernel[(rows,)](x_RC, code_RC, scale_R, C=columns, BLOCK_C=triton.next_power_of_2(columns), num_warps=4)
    return code_RC, scale_R
