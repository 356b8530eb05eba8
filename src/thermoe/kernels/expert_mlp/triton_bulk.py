# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - Triton takes pointers and tensors, which have no Python types
"""The two products of an expert for many tokens, with operands brought by the bulk copy engine (capability 9.0).

Weights come by tensor descriptor, and so do the hidden values, which lie in the order of the plan; tokens of the first
product are gathered by pointers. Gate and up rows are two products that share the tokens in shared memory, so that an
expert's activation needs no exchange between threads.

Shapes: S = T * K slots, E experts, N tokens of a tile, WIDTH outputs of a tile, C columns (inputs), OUT outputs.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

from thermoe.kernels.expert_mlp.triton_activation import activate
from thermoe.kernels.expert_mlp.triton_slots import planned_tile


@triton.jit
def _bulk_product(
    w_desc, x_desc, x_ptr, x_rows, w_row, x_row, GATHER: tl.constexpr, PAIR: tl.constexpr, OUT: tl.constexpr,
    C: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """(WIDTH, N) float32 products with the rows from `w_row` on and, if PAIR, with those OUT rows further."""
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + x_rows[None, :] * C + k[:, None]
    gate = tl.zeros((WIDTH, N), tl.float32)
    up = gate
    for start in tl.range(0, C, BLOCK_K, num_stages=STAGES):
        if not GATHER:
            x = tl.trans(x_desc.load([x_row, start]))
        elif C % BLOCK_K == 0:
            x = tl.load(x_ptrs)
        else:
            x = tl.load(x_ptrs, mask=(k < C - start)[:, None], other=0.0)
        x = x.to(OPERAND)
        gate = tl.dot(w_desc.load([w_row, start]).to(OPERAND), x, gate, input_precision="ieee")
        if PAIR:
            up = tl.dot(w_desc.load([w_row + OUT, start]).to(OPERAND), x, up, input_precision="ieee")
        x_ptrs += BLOCK_K
    return gate, up


@triton.jit
def _scaled_rows(out, scale_ptr, bias_ptr, rows, inside):
    if scale_ptr is not None:
        out *= tl.load(scale_ptr + rows, mask=inside, other=0.0)[:, None]
    if bias_ptr is not None:
        out += tl.load(bias_ptr + rows, mask=inside, other=0.0)[:, None]
    return out


@triton.jit
def _bulk_tile(
    w_desc, x_desc, x_ptr, x_scale_ptr, target_ptr, slot_ptr, scale_ptr, bias_ptr, expert, first, left, block,
    K: tl.constexpr, FIRST: tl.constexpr, GATHER: tl.constexpr, ACTIVATION: tl.constexpr, PAIR: tl.constexpr,
    OUT: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """N places of the plan from `first` on, of which `left` belong to the expert, times WIDTH outputs."""
    n = tl.arange(0, N)
    places = first + tl.minimum(n, left - 1)
    slots = tl.load(slot_ptr + places).to(tl.int64)
    x_rows = slots // K if FIRST else places.to(tl.int64)
    R: tl.constexpr = 2 * OUT if PAIR else OUT
    w_row = expert * R + block * WIDTH
    gate, up = _bulk_product(
        w_desc, x_desc, x_ptr, x_rows, w_row, first, GATHER, PAIR, OUT, C, WIDTH, N, BLOCK_K, STAGES,
        OPERAND)  # fmt: skip
    column = block * WIDTH + tl.arange(0, WIDTH)
    inside = column < OUT
    rows = expert * R + column
    if x_scale_ptr is not None:
        x_scale_N = tl.load(x_scale_ptr + x_rows)[None, :]
        gate *= x_scale_N
        up *= x_scale_N
    gate = _scaled_rows(gate, scale_ptr, bias_ptr, rows, inside)
    if PAIR:
        up = _scaled_rows(up, scale_ptr, bias_ptr, rows + OUT, inside)
    if ACTIVATION != "none":
        gate = activate(gate, up, ACTIVATION)
    target_rows = places.to(tl.int64) if FIRST else slots
    target_ptrs = target_ptr + target_rows[:, None] * OUT + column[None, :]
    out = tl.trans(gate.to(target_ptr.dtype.element_ty))
    tl.store(target_ptrs, out, mask=(n < left)[:, None] & inside[None, :])


@triton.jit
def bulk_tokens_kernel(
    w_desc, x_desc, x_ptr, x_scale_ptr, target_ptr, slot_ptr, offsets_ptr, scale_ptr, bias_ptr, num_experts,
    K: tl.constexpr, FIRST: tl.constexpr, ACTIVATION: tl.constexpr, PAIR: tl.constexpr, OUT: tl.constexpr,
    C: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, OPERAND: tl.constexpr, BLOCK_E: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program = tile of the plan, at width TAIL where the expert's last tile holds no more tokens."""
    if PDL:
        tl_cuda.gdc_wait()
        tl_cuda.gdc_launch_dependents()
    row_blocks: tl.constexpr = (OUT + WIDTH - 1) // WIDTH
    expert, first, left, block = planned_tile(offsets_ptr, num_experts, tl.program_id(0), row_blocks, BLOCK_E, N)
    if expert < num_experts:
        if left > TAIL:
            _bulk_tile(
                w_desc, x_desc, x_ptr, x_scale_ptr, target_ptr, slot_ptr, scale_ptr, bias_ptr, expert, first, left,
                block, K, FIRST, FIRST, ACTIVATION, PAIR, OUT, C, WIDTH, N, BLOCK_K, STAGES, OPERAND)  # fmt: skip
        elif TAIL > 0:  # the descriptor of x has tiles of N rows: narrow ones go by pointers
            _bulk_tile(
                w_desc, x_desc, x_ptr, x_scale_ptr, target_ptr, slot_ptr, scale_ptr, bias_ptr, expert, first, left,
                block, K, FIRST, True, ACTIVATION, PAIR, OUT, C, WIDTH, TAIL, BLOCK_K, STAGES, OPERAND)  # fmt: skip
