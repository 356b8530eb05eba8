# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Linear layers side by side: a program computes a few outputs of one matrix for all rows.

Shapes: T rows, C columns, N outputs of a matrix.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from thermoe.kernels.overlap import launches_overlap


class Tiles(NamedTuple):
    """Outputs and columns of a step of a program, its warps and how many steps are on their way."""

    outputs: int
    columns: int
    warps: int
    stages: int


@triton.jit
def _few_linear_kernel(
    x_ptr, w0_ptr, w1_ptr, w2_ptr, b0_ptr, b1_ptr, b2_ptr, y_ptr, T, N0, N1, N2,
    has0, has1, has2, C: tl.constexpr, BIASED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    tiles0, tiles1 = tl.cdiv(N0, BLOCK_N), tl.cdiv(N1, BLOCK_N)
    w_ptr, b_ptr, has, num, first = w0_ptr, b0_ptr, has0, N0, 0
    if tile >= tiles0 + tiles1:
        w_ptr, b_ptr, has, num, first = w2_ptr, b2_ptr, has2, N2, N0 + N1
        tile -= tiles0 + tiles1
    elif tile >= tiles0:
        w_ptr, b_ptr, has, num, first = w1_ptr, b1_ptr, has1, N1, N0
        tile -= tiles0
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_C)
    x_at = x_ptr + t[:, None] * C + c[None, :]
    w_at = w_ptr + n[None, :].to(tl.int64) * C + c[:, None]
    some, rows = (n < num)[None, :], (t < T)[:, None]
    # The first weights are asked for before the launch that makes the rows has ended.
    w = tl.load(w_at, mask=some & (c < C)[:, None], other=0.0)
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(x_at, mask=rows & (c < C)[None, :], other=0.0)
    acc = tl.dot(x, w, input_precision="ieee")
    for begin in tl.range(BLOCK_C, C, BLOCK_C, num_stages=STAGES):
        if C % BLOCK_C == 0:
            x = tl.load(x_at + begin, mask=rows, other=0.0)
            w = tl.load(w_at + begin, mask=some, other=0.0)
        else:
            x = tl.load(x_at + begin, mask=rows & (begin + c < C)[None, :], other=0.0)
            w = tl.load(w_at + begin, mask=some & (begin + c < C)[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    if BIASED:
        acc += tl.load(b_ptr + n, mask=n < num * has, other=0.0).to(tl.float32)[None, :]
    y_at = y_ptr + t[:, None] * (N0 + N1 + N2) + first + n[None, :]
    tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=rows & some)


def tiles_for(num_outputs: int, num_columns: int, num_rows: int) -> Tiles:
    """What a program takes: about one program for each processor of a large GPU, with tens of kB on their way."""
    outputs = 32 if num_outputs >= 4096 else 16
    columns = 256 if num_columns >= 256 and num_rows <= 32 else 128 if num_columns >= 128 else 32
    return Tiles(outputs=outputs, columns=columns, warps=4, stages=4)


def few_linear_triton(
    x_TC: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] = (),
    out: Tensor | None = None,
    tiles: Tiles | None = None,
    overlaps: bool | None = None,
) -> Tensor:
    """Same contract as `few_linear_reference`.

    `out`: a contiguous tensor to write to, a new one if None; `overlaps`: whether it begins before the launch before it
    has ended, None where the GPU can. Weights must be older than that launch.
    """
    num_rows, num_columns = x_TC.shape
    nums = [w.shape[0] for w in weights] + [0] * (3 - len(weights))
    if out is None:
        out = x_TC.new_empty(num_rows, sum(nums))
    if out.numel() == 0:
        return out
    overlaps = launches_overlap(x_TC) if overlaps is None else overlaps
    tiles = tiles or tiles_for(sum(nums), num_columns, num_rows)
    block_t = min(max(triton.next_power_of_2(num_rows), 16), 64)
    matrices = [*weights, *[weights[0]] * (3 - len(weights))]
    offsets = [*biases, *[None] * (3 - len(biases))]
    grid = sum(triton.cdiv(num, tiles.outputs) for num in nums), triton.cdiv(num_rows, block_t)
    _few_linear_kernel[grid](
        x_TC, *matrices, *(x_TC if b is None else b for b in offsets), out, num_rows, *nums,
        *(int(b is not None) for b in offsets), C=num_columns, BIASED=any(b is not None for b in offsets),
        BLOCK_T=block_t, BLOCK_N=tiles.outputs, BLOCK_C=tiles.columns, STAGES=tiles.stages, OVERLAPS=overlaps,
        num_warps=tiles.warps, launch_pdl=overlaps,
    )  # fmt: skip
    return out
