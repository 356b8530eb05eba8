# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - Triton takes pointers and tensors, which have no Python types
"""The dispatch plan in Triton: one launch for few slots, two for any number, always in the same order.

Few slots: one program for each expert reads all ids, so that no program waits for another. Many slots: a
launch counts the experts of each block of slots, a second one places the block behind those before it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_FEW_SLOTS = 8192
_MAX_BLOCKS = 256
_EXPERTS_AT_ONCE = 8192  # elements of the (slots, experts) tile of one step


@triton.jit
def groups_of(ids_ptr, weights_ptr, slot, num_slots, num_experts):
    """Expert of each slot; `num_experts` for a dropped slot, one more beyond the last slot."""
    real = slot < num_slots
    ids = tl.load(ids_ptr + slot, mask=real, other=-1)
    ids = tl.where((ids >= 0) & (ids < num_experts), ids, num_experts).to(tl.int32)
    weights = tl.load(weights_ptr + slot, mask=real, other=0.0).to(tl.float32)
    return tl.where(real, tl.where(weights != 0.0, ids, num_experts), num_experts + 1)


@triton.jit
def _few_kernel(ids_ptr, weights_ptr, slot_ptr, offsets_ptr, num_slots, num_experts, BLOCK: tl.constexpr):
    expert = tl.program_id(0)  # the last one places the dropped slots
    before = 0
    for start in range(0, num_slots, BLOCK):
        group = groups_of(ids_ptr, weights_ptr, start + tl.arange(0, BLOCK), num_slots, num_experts)
        before += tl.sum((group < expert).to(tl.int32), axis=0)
    tl.store(offsets_ptr + expert, before)
    for start in range(0, num_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        group = groups_of(ids_ptr, weights_ptr, slot, num_slots, num_experts)
        mine = (group == expert).to(tl.int32)
        tl.store(slot_ptr + before + tl.cumsum(mine, axis=0) - 1, slot, mask=mine != 0)
        before += tl.sum(mine, axis=0)


@triton.jit
def _count_kernel(
    ids_ptr, weights_ptr, counts_ptr, num_slots, num_experts, steps, STEP: tl.constexpr, BLOCK_E: tl.constexpr
):
    block = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    count = tl.zeros((BLOCK_E,), tl.int32)
    for i in range(steps):
        slot = (block * steps + i) * STEP + tl.arange(0, STEP)
        group = groups_of(ids_ptr, weights_ptr, slot, num_slots, num_experts)
        count += tl.sum((group[:, None] == e[None, :]).to(tl.int32), axis=0)
    tl.store(counts_ptr + block * BLOCK_E + e, count)


@triton.jit
def counts_before(counts_ptr, block, num_blocks, BLOCK_E: tl.constexpr, ROWS: tl.constexpr):
    """(E,) counts of the blocks before this one, and of all blocks."""
    e = tl.arange(0, BLOCK_E)
    before = tl.zeros((BLOCK_E,), tl.int32)
    total = tl.zeros((BLOCK_E,), tl.int32)
    for start in range(0, num_blocks, ROWS):
        row = start + tl.arange(0, ROWS)
        there = (row < num_blocks)[:, None] & (e >= 0)[None, :]
        counts = tl.load(counts_ptr + row[:, None] * BLOCK_E + e[None, :], mask=there, other=0)
        total += tl.sum(counts, axis=0)
        before += tl.sum(tl.where((row < block)[:, None], counts, 0), axis=0)
    return before, total


@triton.jit
def place_block(
    ids_ptr, weights_ptr, slot_ptr, counts_ptr, offsets_ptr, num_slots, num_experts, num_blocks, steps,
    STEP: tl.constexpr, BLOCK_E: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write this block's slots behind those of the blocks before it; returns the (E + 1 or more,) totals."""
    block = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    before, total = counts_before(counts_ptr, block, num_blocks, BLOCK_E, ROWS)
    offsets = tl.cumsum(total, axis=0) - total
    if block == 0:
        tl.store(offsets_ptr + e, offsets, mask=e <= num_experts)
    next_free = offsets + before
    for i in range(steps):
        slot = (block * steps + i) * STEP + tl.arange(0, STEP)
        group = groups_of(ids_ptr, weights_ptr, slot, num_slots, num_experts)
        mine = (group[:, None] == e[None, :]).to(tl.int32)
        place = tl.sum(mine * (next_free[None, :] + tl.cumsum(mine, axis=0) - 1), axis=1)
        tl.store(slot_ptr + place, slot, mask=slot < num_slots)
        next_free += tl.sum(mine, axis=0)
    return total


@triton.jit
def _place_kernel(
    ids_ptr, weights_ptr, slot_ptr, counts_ptr, offsets_ptr, num_slots, num_experts, num_blocks, steps,
    STEP: tl.constexpr, BLOCK_E: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    place_block(
        ids_ptr, weights_ptr, slot_ptr, counts_ptr, offsets_ptr, num_slots, num_experts, num_blocks, steps,
        STEP, BLOCK_E, ROWS,
    )  # fmt: skip


def dispatch_plan_triton(ids_TK: Tensor, weights_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """`slot_N` and `offsets_E1` of the plan; same contract as `dispatch_plan`."""
    ids_TK, weights_TK, num_slots = ids_TK.contiguous(), weights_TK.contiguous(), ids_TK.numel()
    slot_N = torch.empty(num_slots, dtype=torch.int32, device=ids_TK.device)
    offsets_E1 = torch.empty(num_experts + 1, dtype=torch.int32, device=ids_TK.device)
    if num_slots <= _FEW_SLOTS:
        block = min(1024, triton.next_power_of_2(max(num_slots, 32)))
        grid = (num_experts + 1,)
        _few_kernel[grid](ids_TK, weights_TK, slot_N, offsets_E1, num_slots, num_experts, BLOCK=block, num_warps=4)
        return slot_N, offsets_E1
    place_many(ids_TK, weights_TK, slot_N, offsets_E1)
    return slot_N, offsets_E1


def place_many(ids_TK: Tensor, weights_TK: Tensor, slot_N: Tensor, offsets_E1: Tensor) -> None:
    """The two launches for many slots, into given tensors."""
    num_slots, num_experts = slot_N.shape[0], offsets_E1.shape[0] - 1
    # A place for the dropped slots and one beyond, which a step past the last slot counts into nothing.
    block_e = triton.next_power_of_2(num_experts + 1)
    step = max(16, min(128, _EXPERTS_AT_ONCE // block_e))
    steps = triton.cdiv(num_slots, step * _MAX_BLOCKS)
    num_blocks = triton.cdiv(num_slots, step * steps)
    counts = torch.empty((num_blocks, block_e), dtype=torch.int32, device=slot_N.device)
    sizes = {"STEP": step, "BLOCK_E": block_e, "num_warps": 4}
    _count_kernel[(num_blocks,)](ids_TK, weights_TK, counts, num_slots, num_experts, steps, **sizes)
    _place_kernel[(num_blocks,)](
        ids_TK, weights_TK, slot_N, counts, offsets_E1, num_slots, num_experts, num_blocks, steps, ROWS=16, **sizes
    )
