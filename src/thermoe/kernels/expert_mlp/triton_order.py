# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Tokens in the order in which the grouped kernel multiplies the columns of a chunk of codes.

Shapes: T tokens, C columns, C' = C rounded up to a multiple of 128.
"""

import triton
import triton.language as tl
from torch import Tensor

CHUNK = tl.constexpr(128)


@triton.jit
def _order_kernel(x_ptr, out_ptr, columns, chunks, CHUNKS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * CHUNKS * CHUNK
    c = start + tl.arange(0, CHUNKS * CHUNK)
    x = tl.load(x_ptr + token * columns + c, mask=c < columns, other=0.0)
    # Column bits: slot / 2, slot & 1, q (2), word, second, odd; codes.cuh says in what order they are positions.
    x = tl.permute(tl.reshape(x, (CHUNKS, 2, 2, 4, 2, 2, 2)), (0, 2, 1, 4, 6, 3, 5))
    tl.store(out_ptr + token * chunks * CHUNK + c, tl.reshape(x, (CHUNKS * CHUNK,)), mask=c < chunks * CHUNK)


def in_code_order(x_TC: Tensor) -> Tensor:
    """(T, C') contiguous; columns past the last are 0."""
    num_tokens, columns = x_TC.shape
    chunks = -(-columns // CHUNK.value)
    out_TC = x_TC.new_empty(num_tokens, chunks * CHUNK.value)
    block = min(16, triton.next_power_of_2(chunks))
    _order_kernel[(num_tokens, triton.cdiv(chunks, block))](x_TC, out_TC, columns, chunks, CHUNKS=block, num_warps=4)
    return out_TC
