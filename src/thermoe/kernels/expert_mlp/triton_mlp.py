# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - Triton takes pointers and tensors, which have no Python types
"""The two products of an expert as kernels, for a few tokens (no plan) and for many (tiles from a dispatch plan).

Shapes: S = T * K slots (slot = token * K + k), E experts, D model width, I expert width, M rows and N tokens of a tile.
A few tokens: a program finds the slots of its expert among the ids by itself and walks over them in tiles of N.
Many tokens: a program is a tile of at most N consecutive places of the plan; tiles sharing weights are neighbours.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

from thermoe.kernels.expert_mlp.triton_activation import activate
from thermoe.kernels.expert_mlp.triton_product import (
    DENSE,
    FP8_BLOCKS,
    PLANES,
    dense_product,
    fp8_product,
    planes_product,
)
from thermoe.kernels.expert_mlp.triton_slots import own_slots, pick_slots, planned_tile


@triton.jit
def _read_at(
    BITS: tl.constexpr, x_ptr, x_rows, high_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr, expert, num_experts, rows,
    NESTED: tl.constexpr, GROUP: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    STAGES: tl.constexpr, SCALE_IN: tl.constexpr, OPERAND: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The product of an expert in bit planes, read at BITS bits."""
    CHUNKS: tl.constexpr = (C + 127) // 128
    G: tl.constexpr = (C + GROUP - 1) // GROUP
    ZEROS: tl.constexpr = zero_ptr is not None
    precision: tl.constexpr = BITS // 4 if NESTED else 0
    groups = (expert + precision * num_experts) * (R * G)
    high_ptr += expert * (R * CHUNKS * 32)
    second_ptr, third_ptr, zeros_ptr = high_ptr, high_ptr, scale_ptr
    if BITS >= 4:
        second_ptr = middle_ptr + expert * (R * CHUNKS * 32)
    if BITS == 8:
        third_ptr = low_ptr + expert * (R * CHUNKS * 64)
    if ZEROS:
        zeros_ptr = zero_ptr
    return planes_product(
        x_ptr, x_rows, high_ptr, second_ptr, third_ptr, scale_ptr + groups, zeros_ptr + groups, rows, BITS, ZEROS,
        GROUP, R, C, M, N, STAGES, SCALE_IN, OPERAND, ASM)  # fmt: skip


@triton.jit
def _expert_product(
    x_ptr, x_rows, w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr, bits_ptr, expert, num_experts, rows,
    FORMAT: tl.constexpr, MAX_BITS: tl.constexpr, NESTED: tl.constexpr, GROUP: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    SCALE_IN: tl.constexpr, OPERAND: tl.constexpr, ASM: tl.constexpr, EIGHT: tl.constexpr,
):  # fmt: skip
    """(M, N) float32 products of `rows` of an expert's (R, C) matrix with rows of x."""
    if FORMAT == DENSE:
        out = dense_product(x_ptr, x_rows, w_ptr + expert * (R * C), rows, C, M, N, BLOCK_K, STAGES, OPERAND)
    elif FORMAT == PLANES:
        bits = MAX_BITS
        if NESTED and bits_ptr is not None:
            bits = tl.load(bits_ptr + expert)
        if MAX_BITS == 8 and bits >= 8:
            out = _read_at(
                8, x_ptr, x_rows, w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr, expert, num_experts, rows, NESTED,
                GROUP, R, C, M, N, STAGES, SCALE_IN, OPERAND, ASM)  # fmt: skip
        elif MAX_BITS >= 4 and bits >= 4:
            out = _read_at(
                4, x_ptr, x_rows, w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr, expert, num_experts, rows, NESTED,
                GROUP, R, C, M, N, STAGES, SCALE_IN, OPERAND, ASM)  # fmt: skip
        else:
            out = _read_at(
                2, x_ptr, x_rows, w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr, expert, num_experts, rows, NESTED,
                GROUP, R, C, M, N, STAGES, SCALE_IN, OPERAND, ASM)  # fmt: skip
    else:
        BLOCKS: tl.constexpr = FORMAT == FP8_BLOCKS
        scales = expert * (((R + 127) // 128) * ((C + 127) // 128) if BLOCKS else R)
        out = fp8_product(
            x_ptr, x_rows, w_ptr + expert * (R * C), scale_ptr + scales, rows, BLOCKS, C, M, N, BLOCK_K, STAGES,
            SCALE_IN, OPERAND, ASM, EIGHT)  # fmt: skip
    return out


@triton.jit
def _tile(
    source_ptr, source_scale_ptr, source_rows, target_ptr, target_rows, valid, w_ptr, middle_ptr, low_ptr, scale_ptr,
    zero_ptr, bits_ptr, bias_ptr, expert, num_experts, block, ACTIVATION: tl.constexpr, PAIR: tl.constexpr,
    FORMAT: tl.constexpr, MAX_BITS: tl.constexpr, NESTED: tl.constexpr, GROUP: tl.constexpr, OUT: tl.constexpr,
    C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    SCALE_IN: tl.constexpr, OPERAND: tl.constexpr, ASM: tl.constexpr, EIGHT: tl.constexpr,
):  # fmt: skip
    """M rows of a matrix times N rows of the source, with bias and activation, to rows of the target.

    PAIR: a tile holds 8 gate rows, their 8 up rows, 8 gate rows, …: both of a pair lie in one thread's registers.
    """
    WIDTH: tl.constexpr = M // 2 if PAIR else M  # columns of the target
    R: tl.constexpr = 2 * OUT if PAIR else OUT
    m = tl.arange(0, M)
    if PAIR:
        rows = tl.minimum(block * WIDTH + m // 16 * 8 + m % 8, OUT - 1) + m // 8 % 2 * OUT
    else:
        rows = tl.minimum(block * WIDTH + m, OUT - 1)
    out = _expert_product(
        source_ptr, source_rows, w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr, bits_ptr, expert, num_experts, rows,
        FORMAT, MAX_BITS, NESTED, GROUP, R, C, M, N, BLOCK_K, STAGES, SCALE_IN, OPERAND, ASM, EIGHT)  # fmt: skip
    if EIGHT:
        out *= tl.load(source_scale_ptr + source_rows)[None, :]
    if bias_ptr is not None:
        out += tl.load(bias_ptr + expert * R + rows)[:, None]
    if PAIR:
        pairs = tl.permute(tl.reshape(out, (M // 16, 2, 8, N)), (0, 2, 3, 1))
        gate, up = tl.split(tl.reshape(pairs, (WIDTH, N, 2)))
        out = activate(gate, up, ACTIVATION)
    elif ACTIVATION != "none":
        out = activate(out, out, ACTIVATION)
    column = block * WIDTH + tl.arange(0, WIDTH)
    target_ptrs = target_ptr + target_rows[:, None] * OUT + column[None, :]
    tl.store(target_ptrs, tl.trans(out.to(target_ptr.dtype.element_ty)), mask=valid[:, None] & (column < OUT)[None, :])


@triton.jit
def few_tokens_kernel(
    source_ptr, target_ptr, ids_ptr, weights_ptr, w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr, bits_ptr, bias_ptr,
    num_slots, num_experts, K: tl.constexpr, FIRST: tl.constexpr, ACTIVATION: tl.constexpr, PAIR: tl.constexpr,
    FORMAT: tl.constexpr, MAX_BITS: tl.constexpr, NESTED: tl.constexpr, GROUP: tl.constexpr, OUT: tl.constexpr,
    C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    SCALE_IN: tl.constexpr, OPERAND: tl.constexpr, ASM: tl.constexpr, BY_SLOT: tl.constexpr, BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (block of rows, expert or slot). FIRST: rows of the source are tokens; otherwise they are slots."""
    if PDL and FIRST:
        tl_cuda.gdc_wait()
        tl_cuda.gdc_launch_dependents()
    expert, rank, count = own_slots(ids_ptr, weights_ptr, num_slots, num_experts, tl.program_id(1), BY_SLOT, BLOCK_S)
    if PDL and not FIRST:  # the ids were there before the first product started
        tl_cuda.gdc_wait()
        tl_cuda.gdc_launch_dependents()
    for first in range(0, count, N):
        slots = pick_slots(rank, first, count, BLOCK_S, N).to(tl.int64)
        valid = first + tl.arange(0, N) < count
        _tile(
            source_ptr, source_ptr, slots // K if FIRST else slots, target_ptr, slots, valid, w_ptr, middle_ptr,
            low_ptr, scale_ptr, zero_ptr, bits_ptr, bias_ptr, expert, num_experts, tl.program_id(0), ACTIVATION, PAIR,
            FORMAT, MAX_BITS, NESTED, GROUP, OUT, C, M, N, BLOCK_K, STAGES, SCALE_IN, OPERAND, ASM,
            False)  # fmt: skip


@triton.jit
def _planned(
    source_ptr, source_scale_ptr, target_ptr, slot_ptr, w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr, bits_ptr,
    bias_ptr, expert, num_experts, first, left, block, K: tl.constexpr, FIRST: tl.constexpr, ACTIVATION: tl.constexpr,
    PAIR: tl.constexpr, FORMAT: tl.constexpr, MAX_BITS: tl.constexpr, NESTED: tl.constexpr, GROUP: tl.constexpr,
    OUT: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    SCALE_IN: tl.constexpr, OPERAND: tl.constexpr, ASM: tl.constexpr, EIGHT: tl.constexpr,
):  # fmt: skip
    n = tl.arange(0, N)
    places = (first + tl.minimum(n, left - 1)).to(tl.int64)
    slots = tl.load(slot_ptr + places).to(tl.int64)
    _tile(
        source_ptr, source_scale_ptr, slots // K if FIRST else places, target_ptr, places if FIRST else slots, n < left,
        w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr, bits_ptr, bias_ptr, expert.to(tl.int64), num_experts, block,
        ACTIVATION, PAIR, FORMAT, MAX_BITS, NESTED, GROUP, OUT, C, M, N, BLOCK_K, STAGES, SCALE_IN, OPERAND, ASM,
        EIGHT)  # fmt: skip


@triton.jit
def many_tokens_kernel(
    source_ptr, source_scale_ptr, target_ptr, slot_ptr, offsets_ptr, w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr,
    bits_ptr, bias_ptr, num_experts, K: tl.constexpr, FIRST: tl.constexpr, ACTIVATION: tl.constexpr,
    PAIR: tl.constexpr, FORMAT: tl.constexpr, MAX_BITS: tl.constexpr, NESTED: tl.constexpr, GROUP: tl.constexpr,
    OUT: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, SCALE_IN: tl.constexpr, OPERAND: tl.constexpr, ASM: tl.constexpr, EIGHT: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Program = tile of the plan; the last tile of an expert is done at width TAIL where it holds no more tokens."""
    WIDTH: tl.constexpr = M // 2 if PAIR else M
    row_blocks: tl.constexpr = (OUT + WIDTH - 1) // WIDTH
    expert, first, left, block = planned_tile(
        offsets_ptr, num_experts, tl.program_id(0), row_blocks, BLOCK_E, N)  # fmt: skip
    if expert < num_experts:
        if left > TAIL:
            _planned(
                source_ptr, source_scale_ptr, target_ptr, slot_ptr, w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr,
                bits_ptr, bias_ptr, expert, num_experts, first, left, block, K, FIRST, ACTIVATION, PAIR, FORMAT,
                MAX_BITS, NESTED, GROUP, OUT, C, M, N, BLOCK_K, STAGES, SCALE_IN, OPERAND, ASM, EIGHT)  # fmt: skip
        elif TAIL > 0:
            _planned(
                source_ptr, source_scale_ptr, target_ptr, slot_ptr, w_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr,
                bits_ptr, bias_ptr, expert, num_experts, first, left, block, K, FIRST, ACTIVATION, PAIR, FORMAT,
                MAX_BITS, NESTED, GROUP, OUT, C, M, TAIL, BLOCK_K, STAGES, SCALE_IN, OPERAND, ASM, EIGHT)  # fmt: skip
