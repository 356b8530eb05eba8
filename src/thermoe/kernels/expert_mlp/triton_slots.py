# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201 - Triton takes pointers and tensors, which have no Python types
"""Which slots a program works on: found among the ids of a few tokens, or read from a dispatch plan.

Shapes: S = T * K slots (slot = token * K + k), E experts, N tokens of a tile.
"""

import triton
import triton.language as tl


@triton.jit
def own_slots(ids_ptr, weights_ptr, num_slots, num_experts, entry, BY_SLOT: tl.constexpr, BLOCK_S: tl.constexpr):
    """The expert that an entry of the grid stands for, the rank of each slot in it (-1: another's) and their number.

    BY_SLOT: the entry is a slot, and only the first slot of an expert stands for it (fewer programs than experts).
    """
    slots = tl.arange(0, BLOCK_S)
    ids = tl.load(ids_ptr + slots, mask=slots < num_slots, other=-1)
    ids = tl.where(ids < num_experts, ids, -1).to(tl.int32)
    weights = tl.load(weights_ptr + slots, mask=slots < num_slots, other=0.0).to(tl.float32)
    ids = tl.where(weights != 0.0, ids, -1)
    expert = entry
    if BY_SLOT:
        expert = tl.sum(tl.where(slots == entry, ids, 0), 0)
    mine = (ids == expert).to(tl.int32)
    count = tl.sum(mine, 0)
    if BY_SLOT:
        earlier = tl.sum(tl.where(slots < entry, mine, 0), 0)
        count = tl.where(earlier == 0, count, 0)
        count = tl.where(expert < 0, 0, count)
    rank = tl.where(mine > 0, tl.cumsum(mine, 0) - 1, -1)
    return expert.to(tl.int64), rank, count


@triton.jit
def pick_slots(rank, first, count, BLOCK_S: tl.constexpr, N: tl.constexpr):
    """(N,) the slots of ranks first, first + 1, …; the last of them again beyond the end."""
    wanted = tl.minimum(first + tl.arange(0, N), count - 1)
    hits = rank[:, None] == wanted[None, :]
    return tl.sum(tl.where(hits, tl.arange(0, BLOCK_S)[:, None], 0), 0)


@triton.jit
def planned_tile(offsets_ptr, num_experts, program, row_blocks, BLOCK_E: tl.constexpr, N: tl.constexpr):
    """Expert, first place, places left and block of rows of a program; the expert is num_experts past the last."""
    e = tl.arange(0, BLOCK_E)
    start = tl.load(offsets_ptr + e, mask=e < num_experts, other=0)
    stop = tl.load(offsets_ptr + e + 1, mask=e < num_experts, other=0)
    tiles = (stop - start + N - 1) // N
    last = tl.cumsum(tiles * row_blocks, 0)
    expert = tl.sum((last <= program).to(tl.int32), 0)
    own = e == expert
    own_tiles = tl.maximum(tl.sum(tl.where(own, tiles, 0), 0), 1)
    local = program - tl.sum(tl.where(own, last - tiles * row_blocks, 0), 0)
    first = tl.sum(tl.where(own, start, 0), 0) + (local % own_tiles) * N
    left = tl.sum(tl.where(own, stop, 0), 0) - first
    done = program >= tl.max(last, 0)
    return tl.where(done, num_experts, expert), first, left, local // own_tiles
