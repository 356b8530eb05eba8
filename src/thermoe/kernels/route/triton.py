# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Routing of batches that fit one program each: one launch, with the dispatch plan and the counters.

Shapes: T = R x C tokens (token = row * C + column), E experts, K slots per token. A program is one column; where there
is one column it also writes the dispatch plan and adds to the running sums of the counters.
"""

import triton
import triton.language as tl

from thermoe.kernels.route.triton_parts import (
    BARRED,
    batch_votes,
    load_tile,
    loaded_set,
    pick_slots,
    rank_tile,
    score_tile,
    slot_bits,
    used_tile,
    weigh_slots,
)


@triton.jit
def scored(
    logits_ptr, knob_ptr, correction_ptr, stride, token_R, real_R, e_E, num_experts, SIGMOID: tl.constexpr,
    CORRECTED: tl.constexpr, GROUPS: tl.constexpr, KEPT_GROUPS: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Ranks, gates, scores (R, E), what turns logits into gates (R,), bias and mask (E,)."""
    bias_E = tl.load(knob_ptr + num_experts + e_E, mask=e_E < num_experts, other=0.0)
    allowed_E = tl.load(knob_ptr + 2 * num_experts + e_E, mask=e_E < num_experts, other=0.0)
    x_RE = load_tile(logits_ptr, stride, token_R, real_R, e_E, num_experts)
    ranks_RE, gates_RE, largest_R, sum_R = rank_tile(
        x_RE, correction_ptr, e_E, num_experts, SIGMOID, CORRECTED, GROUPS, KEPT_GROUPS, R, E
    )
    score_RE = score_tile(ranks_RE, gates_RE, sum_R, bias_E, allowed_E, e_E, num_experts)
    return ranks_RE, gates_RE, score_RE, largest_R, sum_R, bias_E, allowed_E


@triton.jit
def live_rows(live_ptr, token_R, real_R, HAS_LIVE: tl.constexpr):
    """(R,) 1 for a token that counts."""
    if HAS_LIVE:
        return (tl.load(live_ptr + token_R, mask=real_R, other=0) != 0).to(tl.int32)
    return real_R.to(tl.int32)


@triton.jit
def write_slots(
    logits_ptr, knob_ptr, stride, token_R, real_R, k_K, num_experts, own_ids_RK, ids_RK, scores_RK, largest_R, sum_R,
    scale, ids_ptr, weights_ptr, kept_ptr, own_ptr, SIGMOID: tl.constexpr, RENORMALISE: tl.constexpr,
    TOP_K: tl.constexpr,
):  # fmt: skip
    """Weigh the slots of chosen experts and write them; bits (R,) of the kept slots, and of those with a weight."""
    scalar_ptr = knob_ptr + 3 * num_experts
    there = real_R[:, None] & (k_K < TOP_K)[None, :]
    at = token_R[:, None].to(tl.int64)
    x_RK = tl.load(logits_ptr + at * stride + ids_RK, mask=there, other=0.0).to(tl.float32)
    kept_RK, weights_RK = weigh_slots(
        x_RK, scores_RK, largest_R, sum_R, k_K, tl.load(scalar_ptr + 1), tl.load(scalar_ptr + 4),
        tl.load(scalar_ptr + 5), scale, SIGMOID, RENORMALISE, TOP_K,
    )  # fmt: skip
    kept_RK = kept_RK & there
    first_R = tl.sum(tl.where((k_K == 0)[None, :], ids_RK, 0), axis=1)
    slot_RK = at * TOP_K + k_K[None, :]
    tl.store(ids_ptr + slot_RK, tl.where(kept_RK, ids_RK, first_R[:, None]).to(tl.int64), mask=there)
    tl.store(weights_ptr + slot_RK, weights_RK, mask=there)
    tl.store(kept_ptr + slot_RK, kept_RK, mask=there)
    tl.store(own_ptr + slot_RK, own_ids_RK.to(tl.int64), mask=there)
    return slot_bits(kept_RK, k_K), slot_bits(kept_RK & (weights_RK != 0.0), k_K)


@triton.jit
def tallied(
    ranks_RE, gates_RE, sum_R, place_RE, own_place_RE, kept_bits_R, live_R, bias_E, allowed_E, e_E, k_K, num_experts,
    TOP_K: tl.constexpr, R: tl.constexpr, E: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Live rows of each expert (E,); live tokens, gate mass kept and share of slots changed, summed over live rows."""
    steered_E = (e_E < num_experts) & ((bias_E != 0.0) | (allowed_E <= 0.0))
    if tl.max(steered_E.to(tl.int32), axis=0) > 0:  # the model's own choice knows neither bias nor mask
        plain_RE = score_tile(ranks_RE, gates_RE, sum_R, tl.zeros_like(bias_E), bias_E == bias_E, e_E, num_experts)
        _, _, own_place_RE = pick_slots(plain_RE, e_E, k_K, TOP_K, R, E, K)
    kept_RE = used_tile(place_RE, kept_bits_R, TOP_K)
    own_RE = own_place_RE < TOP_K
    mass_R = tl.sum(tl.where(kept_RE != 0, gates_RE, 0.0), axis=1) / tl.sum(tl.where(own_RE, gates_RE, 0.0), axis=1)
    same_R = tl.sum(tl.where(own_RE, kept_RE, 0), axis=1).to(tl.float32)
    mass_R = tl.where((live_R > 0) & (mass_R == mass_R), mass_R, 0.0)
    changed_R = tl.where(live_R > 0, 1.0 - same_R / TOP_K, 0.0)
    tokens_E = tl.sum(kept_RE * live_R[:, None], axis=0)
    return tokens_E, tl.sum(live_R, axis=0), tl.sum(mass_R, axis=0), tl.sum(changed_R, axis=0)


@triton.jit
def add_tally(
    sums_ptr, last_ptr, tokens_E, live, mass, changed, e_E, k_4, num_experts, columns, column, ACCUMULATE: tl.constexpr
):
    """Figures of one batch: added to the running sums, or written where they are summed later; and on their own."""
    loads_E = (tokens_E > 0).to(tl.int32)
    tail_4 = tl.where(k_4 == 0, (live > 0).to(tl.float32), tl.where(k_4 == 1, live.to(tl.float32), mass))
    tail_4 = tl.where(k_4 == 3, changed, tail_4)
    inside = e_E < num_experts
    tokens_ptr = sums_ptr + e_E
    loads_ptr = tokens_ptr + num_experts
    tail_ptr = sums_ptr + 2 * num_experts + k_4
    if ACCUMULATE:
        tl.store(tokens_ptr, tl.load(tokens_ptr, mask=inside, other=0.0) + tokens_E, mask=inside)
        tl.store(loads_ptr, tl.load(loads_ptr, mask=inside, other=0.0) + loads_E, mask=inside)
        tl.store(tail_ptr, tl.load(tail_ptr) + tail_4)
    else:
        tl.store(tokens_ptr, tokens_E, mask=inside)
        tl.store(loads_ptr, loads_E, mask=inside)
        tl.store(tail_ptr, tail_4)
    tl.store(last_ptr + column, tl.sum(loads_E, axis=0).to(tl.float32))
    tl.store(last_ptr + columns + column, tl.sum(tokens_E, axis=0).to(tl.float32))
    tl.store(last_ptr + 2 * columns + column, mass / tl.maximum(live.to(tl.float32), 1.0))


@triton.jit
def _write_plan(
    slot_ptr, offsets_ptr, place_RE, used_bits_R, row_R, real_R, e_E, k_K, num_experts, TOP_K: tl.constexpr
):
    """The dispatch plan of all rows: slots by expert, then by row; dropped ones last."""
    used_RE = used_tile(place_RE, used_bits_R, TOP_K)
    count_E = tl.sum(used_RE, axis=0)
    offsets_E = tl.cumsum(count_E, axis=0) - count_E
    tl.store(offsets_ptr + e_E, offsets_E, mask=e_E < num_experts)
    total = tl.sum(count_E, axis=0)
    tl.store(offsets_ptr + num_experts, total)
    at_RE = offsets_E[None, :] + tl.cumsum(used_RE, axis=0) - 1
    tl.store(slot_ptr + at_RE, row_R[:, None] * TOP_K + place_RE, mask=used_RE != 0)
    dropped_RK = ((used_bits_R[:, None] >> k_K[None, :]) & 1) == 0
    dropped_RK = (dropped_RK & real_R[:, None] & (k_K < TOP_K)[None, :]).to(tl.int32)
    dropped_R = tl.sum(dropped_RK, axis=1)
    before_R = total + tl.cumsum(dropped_R, axis=0) - dropped_R
    at_RK = before_R[:, None] + tl.cumsum(dropped_RK, axis=1) - 1
    tl.store(slot_ptr + at_RK, row_R[:, None] * TOP_K + k_K[None, :], mask=dropped_RK != 0)


@triton.jit(do_not_specialize=["num_rows", "union"])
def route_kernel(
    logits_ptr, knob_ptr, correction_ptr, live_ptr, ids_ptr, weights_ptr, kept_ptr, own_ptr, loaded_ptr, scratch_ptr,
    slot_ptr, offsets_ptr, sums_ptr, last_ptr, stride, num_rows, num_experts, scale, union, SIGMOID: tl.constexpr,
    CORRECTED: tl.constexpr, GROUPS: tl.constexpr, KEPT_GROUPS: tl.constexpr, RENORMALISE: tl.constexpr,
    HAS_LIVE: tl.constexpr, TALLY: tl.constexpr, ALONE: tl.constexpr, TOP_K: tl.constexpr, R: tl.constexpr,
    E: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One batch for each program, from logits to slots; ALONE: the only batch, with its plan."""
    column, columns = tl.program_id(0), tl.num_programs(0)
    row_R, e_E, k_K = tl.arange(0, R), tl.arange(0, E), tl.arange(0, K)
    token_R, real_R = row_R * columns + column, row_R < num_rows
    scalar_ptr = knob_ptr + 3 * num_experts
    live_R = live_rows(live_ptr, token_R, real_R, HAS_LIVE)
    ranks_RE, gates_RE, score_RE, largest_R, sum_R, bias_E, allowed_E = scored(
        logits_ptr, knob_ptr, correction_ptr, stride, token_R, real_R, e_E, num_experts,
        SIGMOID, CORRECTED, GROUPS, KEPT_GROUPS, R, E,
    )  # fmt: skip
    own_ids_RK, scores_RK, own_place_RE = pick_slots(score_RE, e_E, k_K, TOP_K, R, E, K)
    ids_RK, place_RE = own_ids_RK, own_place_RE
    if union != 0:
        price, max_experts = tl.load(scalar_ptr), tl.load(scalar_ptr + 3)
        valued = (price < float("inf")) | (max_experts > 0)
        protected_E, value_E = batch_votes(
            place_RE, score_RE, gates_RE, live_R, tl.load(scalar_ptr + 2), tl.load(scalar_ptr + 6), valued, TOP_K
        )
        loaded_E = loaded_set(
            protected_E, value_E, knob_ptr, e_E, num_experts, price, max_experts, scratch_ptr + column * E, valued, E
        )
        tl.store(loaded_ptr + column * num_experts + e_E, loaded_E != 0, mask=e_E < num_experts)
        withheld_E = (loaded_E == 0) & (e_E < num_experts)
        inside_RE = tl.where(withheld_E[None, :], BARRED, score_RE)
        ids_RK, scores_RK, place_RE = pick_slots(inside_RE, e_E, k_K, TOP_K, R, E, K)
    kept_bits_R, used_bits_R = write_slots(
        logits_ptr, knob_ptr, stride, token_R, real_R, k_K, num_experts, own_ids_RK, ids_RK, scores_RK, largest_R,
        sum_R, scale, ids_ptr, weights_ptr, kept_ptr, own_ptr, SIGMOID, RENORMALISE, TOP_K,
    )  # fmt: skip
    if ALONE:
        _write_plan(slot_ptr, offsets_ptr, place_RE, used_bits_R, row_R, real_R, e_E, k_K, num_experts, TOP_K)
    if TALLY:
        tokens_E, live, mass, changed = tallied(
            ranks_RE, gates_RE, sum_R, place_RE, own_place_RE, kept_bits_R, live_R, bias_E, allowed_E, e_E, k_K,
            num_experts, TOP_K, R, E, K,
        )  # fmt: skip
        row_ptr = sums_ptr + column * (2 * num_experts + 4)
        add_tally(
            row_ptr, last_ptr, tokens_E, live, mass, changed, e_E, tl.arange(0, 4), num_experts, columns, column, ALONE
        )
