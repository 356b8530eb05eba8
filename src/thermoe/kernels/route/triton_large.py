# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Routing of one batch that is too large for one program: vote, choose, place.

Shapes: T tokens in B blocks of `steps` tiles of R, E experts, K slots per token. The blocks vote on the batch's set,
then choose in it, then place their slots behind those of the blocks before them: three launches, two without a union.
"""

import triton
import triton.language as tl

from thermoe.kernels.dispatch.triton import place_block
from thermoe.kernels.route.triton import BARRED, add_tally, live_rows, scored, tallied, write_slots
from thermoe.kernels.route.triton_parts import batch_votes, loaded_set, pick_slots, used_tile


@triton.jit(do_not_specialize=["num_rows", "steps"])
def vote_kernel(
    logits_ptr, knob_ptr, correction_ptr, live_ptr, votes_ptr, values_ptr, stride, num_rows, num_experts, steps,
    SIGMOID: tl.constexpr, CORRECTED: tl.constexpr, GROUPS: tl.constexpr, KEPT_GROUPS: tl.constexpr,
    HAS_LIVE: tl.constexpr, TOP_K: tl.constexpr, R: tl.constexpr, E: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """What each block says of each expert: (B, E) votes and values."""
    block, e_E, k_K = tl.program_id(0), tl.arange(0, E), tl.arange(0, K)
    scalar_ptr = knob_ptr + 3 * num_experts
    valued = (tl.load(scalar_ptr) < float("inf")) | (tl.load(scalar_ptr + 3) > 0)
    protected_E, value_E = tl.zeros((E,), tl.int32), tl.zeros((E,), tl.float32)
    for i in range(steps):
        row_R = (block * steps + i) * R + tl.arange(0, R)
        real_R = row_R < num_rows
        live_R = live_rows(live_ptr, row_R, real_R, HAS_LIVE)
        _, gates_RE, score_RE, _, _, _, _ = scored(
            logits_ptr, knob_ptr, correction_ptr, stride, row_R, real_R, e_E, num_experts,
            SIGMOID, CORRECTED, GROUPS, KEPT_GROUPS, R, E,
        )  # fmt: skip
        _, _, place_RE = pick_slots(score_RE, e_E, k_K, TOP_K, R, E, K)
        more_protected_E, more_value_E = batch_votes(
            place_RE, score_RE, gates_RE, live_R, tl.load(scalar_ptr + 2), tl.load(scalar_ptr + 6), valued, TOP_K
        )
        protected_E |= more_protected_E
        value_E += more_value_E
    tl.store(votes_ptr + block * E + e_E, protected_E)
    tl.store(values_ptr + block * E + e_E, value_E)


@triton.jit
def _all_votes(votes_ptr, values_ptr, num_blocks, e_E, E: tl.constexpr, ROWS: tl.constexpr):
    """(E,) votes and values of all blocks, added in the order of the blocks."""
    protected_E, value_E = tl.zeros((E,), tl.int32), tl.zeros((E,), tl.float32)
    for start in range(0, num_blocks, ROWS):
        block = start + tl.arange(0, ROWS)
        at = block[:, None] * E + e_E[None, :]
        there = (block < num_blocks)[:, None] & (e_E >= 0)[None, :]
        protected_E |= tl.max(tl.load(votes_ptr + at, mask=there, other=0), axis=0)
        value_E += tl.sum(tl.load(values_ptr + at, mask=there, other=0.0), axis=0)
    return protected_E, value_E


@triton.jit(do_not_specialize=["num_rows", "num_blocks", "steps", "union"])
def choose_kernel(
    logits_ptr, knob_ptr, correction_ptr, live_ptr, ids_ptr, weights_ptr, kept_ptr, own_ptr, loaded_ptr, scratch_ptr,
    votes_ptr, values_ptr, counts_ptr, tally_ptr, stride, num_rows, num_experts, num_blocks, steps, scale, union,
    SIGMOID: tl.constexpr, CORRECTED: tl.constexpr, GROUPS: tl.constexpr, KEPT_GROUPS: tl.constexpr,
    RENORMALISE: tl.constexpr, HAS_LIVE: tl.constexpr, TALLY: tl.constexpr, TOP_K: tl.constexpr, R: tl.constexpr,
    E: tl.constexpr, K: tl.constexpr, COUNTS_E: tl.constexpr,
):  # fmt: skip
    """Choose within the set that the blocks voted for; count the used slots of each expert in the block."""
    block, e_E, k_K = tl.program_id(0), tl.arange(0, E), tl.arange(0, K)
    scalar_ptr = knob_ptr + 3 * num_experts
    inside_E = e_E < num_experts
    withheld_E = e_E < 0
    if union != 0:
        price, max_experts = tl.load(scalar_ptr), tl.load(scalar_ptr + 3)
        protected_E, value_E = _all_votes(votes_ptr, values_ptr, num_blocks, e_E, E, 16)
        loaded_E = loaded_set(
            protected_E, value_E, knob_ptr, e_E, num_experts, price, max_experts, scratch_ptr + block * E,
            (price < float("inf")) | (max_experts > 0), E,
        )  # fmt: skip
        withheld_E = (loaded_E == 0) & inside_E
        if block == 0:
            tl.store(loaded_ptr + e_E, loaded_E != 0, mask=inside_E)
    used_E, tokens_E = tl.zeros((E,), tl.int32), tl.zeros((E,), tl.int32)
    live, mass, changed = 0, 0.0, 0.0
    for i in range(steps):
        row_R = (block * steps + i) * R + tl.arange(0, R)
        real_R = row_R < num_rows
        live_R = live_rows(live_ptr, row_R, real_R, HAS_LIVE)
        ranks_RE, gates_RE, score_RE, largest_R, sum_R, bias_E, allowed_E = scored(
            logits_ptr, knob_ptr, correction_ptr, stride, row_R, real_R, e_E, num_experts,
            SIGMOID, CORRECTED, GROUPS, KEPT_GROUPS, R, E,
        )  # fmt: skip
        own_ids_RK, scores_RK, own_place_RE = pick_slots(score_RE, e_E, k_K, TOP_K, R, E, K)
        ids_RK, place_RE = own_ids_RK, own_place_RE
        if union != 0:
            inside_RE = tl.where(withheld_E[None, :], BARRED, score_RE)
            ids_RK, scores_RK, place_RE = pick_slots(inside_RE, e_E, k_K, TOP_K, R, E, K)
        kept_bits_R, used_bits_R = write_slots(
            logits_ptr, knob_ptr, stride, row_R, real_R, k_K, num_experts, own_ids_RK, ids_RK, scores_RK, largest_R,
            sum_R, scale, ids_ptr, weights_ptr, kept_ptr, own_ptr, SIGMOID, RENORMALISE, TOP_K,
        )  # fmt: skip
        used_E += tl.sum(used_tile(place_RE, used_bits_R, TOP_K), axis=0)
        if TALLY:
            more_tokens_E, more_live, more_mass, more_changed = tallied(
                ranks_RE, gates_RE, sum_R, place_RE, own_place_RE, kept_bits_R, live_R, bias_E, allowed_E, e_E, k_K,
                num_experts, TOP_K, R, E, K,
            )  # fmt: skip
            tokens_E += more_tokens_E
            live += more_live
            mass += more_mass
            changed += more_changed
    counts_ptr += block * COUNTS_E
    tl.store(counts_ptr + e_E, used_E, mask=inside_E)
    rows = tl.maximum(tl.minimum(num_rows - block * steps * R, steps * R), 0)
    tl.store(counts_ptr + num_experts, rows * TOP_K - tl.sum(used_E, axis=0))
    spare = tl.arange(0, COUNTS_E)
    tl.store(counts_ptr + spare, tl.zeros_like(spare), mask=spare > num_experts)
    if TALLY:
        tally_ptr += block * (E + 4)
        tl.store(tally_ptr + e_E, tokens_E.to(tl.float32))
        tl.store(tally_ptr + E, live.to(tl.float32))
        tl.store(tally_ptr + E + 1, mass)
        tl.store(tally_ptr + E + 2, changed)


@triton.jit(do_not_specialize=["num_slots", "num_blocks", "steps"])
def place_kernel(
    ids_ptr, weights_ptr, slot_ptr, counts_ptr, offsets_ptr, tally_ptr, sums_ptr, last_ptr, num_slots, num_experts,
    num_blocks, steps, TALLY: tl.constexpr, STEP: tl.constexpr, COUNTS_E: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """The plan of all blocks; the first program adds their figures to the counters."""
    place_block(
        ids_ptr, weights_ptr, slot_ptr, counts_ptr, offsets_ptr, num_slots, num_experts, num_blocks, steps,
        STEP, COUNTS_E, 16,
    )  # fmt: skip
    if TALLY and tl.program_id(0) == 0:
        e_E = tl.arange(0, E)
        tokens_E = tl.zeros((E,), tl.float32)
        live, mass, changed = 0.0, 0.0, 0.0
        for block in range(num_blocks):
            row_ptr = tally_ptr + block * (E + 4)
            tokens_E += tl.load(row_ptr + e_E)
            live += tl.load(row_ptr + E)
            mass += tl.load(row_ptr + E + 1)
            changed += tl.load(row_ptr + E + 2)
        add_tally(sums_ptr, last_ptr, tokens_E, live, mass, changed, e_E, tl.arange(0, 4), num_experts, 1, 0, True)
