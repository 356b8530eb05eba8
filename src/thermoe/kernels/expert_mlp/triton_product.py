# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Rows of one expert's matrix times a tile of tokens, for every format.

The product is transposed, out[rows, tokens] = W[rows, C] x^T[C, tokens]: weights are the operand that may come from
registers, and a tile may hold as few as 16 tokens.

Shapes: M rows of the matrix (any, given by number), N tokens, C columns, G scale groups along them.
"""

import triton
import triton.language as tl

from thermoe.kernels.expert_mlp.triton_codes import fp8_values, odd_codes, scaled

DENSE = tl.constexpr(0)
FP8 = tl.constexpr(1)  # a scale for each row
FP8_BLOCKS = tl.constexpr(2)
PLANES = tl.constexpr(3)


@triton.jit
def _dot(weights, x, accumulator):
    return tl.dot(weights, x, accumulator, input_precision="ieee")


@triton.jit
def dense_product(
    x_ptr, x_rows, w_ptr, rows, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """(M, N) float32 products of bf16, f16 or f32 rows."""
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + x_rows[None, :] * C + k[:, None]
    w_ptrs = w_ptr + rows[:, None] * C + k[None, :]
    accumulator = tl.zeros((M, N), tl.float32)
    for start in tl.range(0, C, BLOCK_K, num_stages=STAGES):
        if C % BLOCK_K == 0:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            inside = k < C - start
            x = tl.load(x_ptrs, mask=inside[:, None], other=0.0)
            w = tl.load(w_ptrs, mask=inside[None, :], other=0.0)
        accumulator = _dot(w.to(OPERAND), x.to(OPERAND), accumulator)
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    return accumulator


@triton.jit
def fp8_product(
    x_ptr, x_rows, w_ptr, scale_ptr, rows, BLOCKS: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr, SCALE_IN: tl.constexpr, OPERAND: tl.constexpr, ASM: tl.constexpr,
    EIGHT: tl.constexpr,
):  # fmt: skip
    """(M, N) float32 products of e4m3 rows, given as bytes.

    EIGHT: the weights are given as e4m3, x is e4m3 too, and its scale is left to the caller. BLOCK_K divides 128.
    """
    k = tl.arange(0, BLOCK_K)
    G: tl.constexpr = (C + 127) // 128
    x_ptrs = x_ptr + x_rows[None, :] * C + k[:, None]
    w_ptrs = w_ptr + rows[:, None] * C + k[None, :]
    scale_ptrs = scale_ptr + (rows // 128 * G if BLOCKS else rows)
    accumulator = tl.zeros((M, N), tl.float32)
    for start in tl.range(0, C, BLOCK_K, num_stages=STAGES):
        if C % BLOCK_K == 0:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            inside = k < C - start
            x = tl.load(x_ptrs, mask=inside[:, None], other=0.0)
            w = tl.load(w_ptrs, mask=inside[None, :], other=0)
        if not EIGHT:
            x = x.to(OPERAND)
            w = fp8_values(w, OPERAND, ASM)
        if not BLOCKS:
            accumulator = _dot(w, x, accumulator)
        else:
            scale_M = tl.load(scale_ptrs + start // 128)
            if SCALE_IN and not EIGHT:
                accumulator = _dot(scaled(w, scale_M, OPERAND, ASM), x, accumulator)
            else:
                accumulator += _dot(w, x, tl.zeros((M, N), tl.float32)) * scale_M[:, None]
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    if not BLOCKS:
        accumulator *= tl.load(scale_ptrs)[:, None]
    return accumulator


@triton.jit
def planes_product(  # noqa: C901 - one branch for each thing that a format may have
    x_ptr, x_rows, high_ptr, middle_ptr, low_ptr, scale_ptr, zero_ptr, rows, BITS: tl.constexpr, ZEROS: tl.constexpr,
    GROUP: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr,
    SCALE_IN: tl.constexpr, OPERAND: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """(M, N) float32 products of rows in bit planes, a chunk of 128 columns at a time.

    Scales multiply the weights (SCALE_IN, and where zeros are given), or the sums over a group of columns.
    """
    CHUNKS: tl.constexpr = (C + 127) // 128
    G: tl.constexpr = (C + GROUP - 1) // GROUP
    SUMS: tl.constexpr = not (SCALE_IN or ZEROS)
    j = tl.arange(0, 32)
    scale_ptrs = scale_ptr + rows
    zero_ptrs = zero_ptr + rows
    two_bit = rows[:, None] * 32 + j[None, :]
    four_bit = two_bit
    x_ptrs = x_ptr + x_rows[None, :] * C + j[:, None]
    accumulator = tl.zeros((M, N), tl.float32)
    part = accumulator
    for chunk in tl.range(0, CHUNKS, num_stages=STAGES):
        high = tl.load(high_ptr + two_bit)
        middle, low = high, high
        if BITS >= 4:
            middle = tl.load(middle_ptr + two_bit)
        if GROUP >= 128:
            scale_M = tl.load(scale_ptrs + chunk // (GROUP // 128) * R).to(tl.float32)
            if ZEROS:
                zero_M = tl.load(zero_ptrs + chunk // (GROUP // 128) * R).to(tl.float32)
        for slot in tl.static_range(4):
            if BITS == 8 and slot % 2 == 0:
                low = tl.load(low_ptr + four_bit + 32 * R * (slot // 2))
            if C % 128 == 0:
                x = tl.load(x_ptrs + 32 * slot)
            else:
                x = tl.load(x_ptrs + 32 * slot, mask=(j < C - chunk * 128 - 32 * slot)[:, None], other=0.0)
            if GROUP < 128 and (slot * 32) % GROUP == 0:
                group = tl.minimum(chunk * (128 // GROUP) + slot * 32 // GROUP, G - 1)
                scale_M = tl.load(scale_ptrs + group * R).to(tl.float32)
                if ZEROS:
                    zero_M = tl.load(zero_ptrs + group * R).to(tl.float32)
            values = odd_codes(high, middle, low, slot, BITS, OPERAND, ASM)
            if SUMS:
                part = _dot(values, x.to(OPERAND), part)
                if (slot * 32 + 32) % min(GROUP, 128) == 0:
                    accumulator += part * (0.5 * scale_M)[:, None]  # odd codes count half steps
                    part = tl.zeros((M, N), tl.float32)
            else:
                if ZEROS:
                    offset_M = 2 * zero_M - (2**BITS - 1)
                    values = ((values.to(tl.float32) - offset_M[:, None]) * (0.5 * scale_M)[:, None]).to(OPERAND)
                else:
                    values = scaled(values, 0.5 * scale_M, OPERAND, ASM)
                accumulator = _dot(values, x.to(OPERAND), accumulator)
        two_bit += 32 * R
        four_bit += 64 * R
        x_ptrs += 128
    return accumulator
