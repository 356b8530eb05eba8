# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Routing of a tile of tokens, in parts that the kernels of `triton.py` put together.

Shapes: R rows (tokens of one tile), E experts (padded), K slots (padded). `place_RE` is the slot of a token in which an
expert stands, `top_k` or more where it stands in none. The reference says what each part has to compute.
"""

import triton
import triton.language as tl

BARRED = tl.constexpr(-3.4028234663852886e38)  # as in the reference: experts that a mask or the batch withholds
OUTSIDE = tl.constexpr(-1e30)
TINY = tl.constexpr(1.1754943508222875e-38)
FAINT = tl.constexpr(1e-30)
_NO_KEY = tl.constexpr(-(2**63))
_LOWEST_INDEX = tl.constexpr(2**31 - 1)


@triton.jit
def exact_exp(x):
    """exp(x) for x <= 0 to the last digits: the hardware's own exp loses four of them at x = -10."""
    whole = tl.floor(x * 1.4426950408889634 + 0.5)
    whole = tl.where(whole > -200.0, whole, -200.0)  # -inf less -inf is no number
    rest = tl.fma(whole, -0.693359375, x)
    rest = tl.fma(whole, 2.12194440e-4, rest)
    half = tl.floor(whole * 0.5)  # 2**-149 is reached in two steps
    scaled = tl.exp2(rest * 1.4426950408889634) * tl.exp2(half) * tl.exp2(whole - half)
    return tl.where(x > -120.0, scaled, tl.where(x == x, 0.0, x))


@triton.jit
def load_tile(logits_ptr, stride, token_R, real_R, e_E, num_experts):
    """(R, E) float32 logits; -inf beyond the experts, 0 in rows beyond the tokens."""
    there = real_R[:, None] & (e_E < num_experts)[None, :]
    x_RE = tl.load(logits_ptr + token_R[:, None].to(tl.int64) * stride + e_E[None, :], mask=there, other=0.0)
    return tl.where((e_E < num_experts)[None, :], x_RE.to(tl.float32), float("-inf"))


@triton.jit
def _keep_groups(
    ranks_RE, GROUPS: tl.constexpr, KEPT: tl.constexpr, R: tl.constexpr, E: tl.constexpr, BY_TWO: tl.constexpr
):
    """Ranks with every expert outside the best groups at -inf; a group counts its best rank, or its two best."""
    SIZE: tl.constexpr = E // GROUPS
    by_group = tl.reshape(ranks_RE, (R, GROUPS, SIZE))
    best = tl.max(by_group, axis=2)
    if BY_TWO:
        place = tl.arange(0, SIZE)[None, None, :]
        first = tl.min(tl.where(by_group == tl.expand_dims(best, 2), place, SIZE), axis=2)
        rest = tl.where(place == tl.expand_dims(first, 2), float("-inf"), by_group)
        best += tl.max(rest, axis=2)
    group = tl.arange(0, GROUPS)[None, :]
    kept = group < 0
    kept = tl.broadcast_to(kept, (R, GROUPS))
    for _ in tl.static_range(KEPT):
        open_RG = tl.where(kept, float("-inf"), best)
        top_R = tl.max(open_RG, axis=1)
        pick_R = tl.min(tl.where((open_RG == top_R[:, None]) & (kept == 0), group, GROUPS), axis=1)
        kept = kept | (group == pick_R[:, None])
    kept = tl.broadcast_to(tl.expand_dims(kept, 2), (R, GROUPS, SIZE))
    return tl.where(tl.reshape(kept, (R, E)), ranks_RE, float("-inf"))


@triton.jit
def rank_tile(
    x_RE, correction_ptr, e_E, num_experts, SIGMOID: tl.constexpr, CORRECTED: tl.constexpr,
    GROUPS: tl.constexpr, KEPT_GROUPS: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Ranks and gates (R, E) as the model scores them; largest logit and sum (R,) that turn a logit into its gate."""
    if SIGMOID:
        largest_R = tl.zeros((R,), tl.float32)
        # The sum of a row with NaN is NaN, which is all that is asked of it.
        gates_RE = 1.0 / (1.0 + tl.exp(-x_RE))
        sum_R = tl.sum(gates_RE, axis=1)
        ranks_RE = gates_RE
        if CORRECTED:
            ranks_RE += tl.load(correction_ptr + e_E, mask=e_E < num_experts, other=0.0)[None, :]
    else:
        largest_R = tl.max(x_RE, axis=1)
        gates_RE = tl.exp(x_RE - largest_R[:, None])
        sum_R = tl.sum(gates_RE, axis=1)
        gates_RE = gates_RE / sum_R[:, None]
        ranks_RE = x_RE
    if GROUPS > 1:
        ranks_RE = _keep_groups(ranks_RE, GROUPS, KEPT_GROUPS, R, E, SIGMOID)
    return ranks_RE, gates_RE, largest_R, sum_R


@triton.jit
def score_tile(ranks_RE, gates_RE, sum_R, bias_E, allowed_E, e_E, num_experts):
    """(R, E) scores that order experts: permitted by biased rank, ruled out, barred, beyond the experts."""
    score_RE = tl.maximum(ranks_RE + bias_E[None, :], (gates_RE - 2.0) * 1e30)
    # A row with NaN may use none of its experts, and its NaN goes no further than its first weight.
    score_RE = tl.where((sum_R == sum_R)[:, None], score_RE, -1.5e30)
    score_RE = tl.where((allowed_E > 0)[None, :], score_RE, BARRED)
    return tl.where((e_E < num_experts)[None, :], score_RE, float("-inf")) + 0.0  # -0 ties with 0


@triton.jit
def pick_slots(score_RE, e_E, k_K, TOP_K: tl.constexpr, R: tl.constexpr, E: tl.constexpr, K: tl.constexpr):
    """The best `TOP_K` experts of each row, best first, the lower index where scores tie: ids, scores, places."""
    bits = score_RE.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    key_RE = (ordered << 32) | (-e_E + _LOWEST_INDEX).to(tl.int64)[None, :]
    keys_RK = tl.zeros((R, K), tl.int64)
    place_RE = tl.full((R, E), K, tl.int32)
    for k in tl.static_range(TOP_K):
        best_R = tl.max(key_RE, axis=1)
        keys_RK = tl.where((k_K == k)[None, :], best_R[:, None], keys_RK)
        won_RE = key_RE == best_R[:, None]
        place_RE = tl.where(won_RE, k, place_RE)
        key_RE = tl.where(won_RE, _NO_KEY, key_RE)
    ids_RK = tl.where((k_K < TOP_K)[None, :], -(keys_RK & _LOWEST_INDEX).to(tl.int32) + _LOWEST_INDEX, 0)
    high = (keys_RK >> 32).to(tl.int32)
    scores_RK = (high ^ ((high >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return ids_RK, scores_RK, place_RE


@triton.jit
def batch_votes(place_RE, score_RE, gates_RE, live_R, protected_k0, value_power, valued, TOP_K: tl.constexpr):
    """What these rows say of each expert (E,): whether one protects it; their summed value, if asked for."""
    own_RE = (place_RE < TOP_K) & (score_RE > OUTSIDE) & (live_R > 0)[:, None]
    protected_E = tl.max((own_RE & (place_RE < protected_k0)).to(tl.int32), axis=0)
    value_E = tl.zeros_like(protected_E).to(tl.float32)
    if valued:
        own_gates_RE = tl.where(own_RE, gates_RE, 0.0)
        share_RE = own_gates_RE / tl.maximum(tl.sum(own_gates_RE, axis=1), TINY)[:, None]
        power_RE = tl.exp2(value_power * tl.log2(tl.where(share_RE > 0, share_RE, 1.0)))
        value_E = tl.sum(tl.where(share_RE > 0, power_RE, 0.0), axis=0)
    return protected_E, value_E


@triton.jit
def places_by_value(value_E, e_E, scratch_ptr, E: tl.constexpr):
    """(E,) how many experts are worth more, the lower index first where values tie."""
    tl.store(scratch_ptr + e_E, value_E)
    tl.debug_barrier()
    place_E = tl.zeros_like(e_E)
    for start in range(0, E, 8):
        other = start + tl.arange(0, 8)
        worth = tl.load(scratch_ptr + other)
        ties = (worth[None, :] == value_E[:, None]) & (other[None, :] < e_E[:, None])
        place_E += tl.sum(((worth[None, :] > value_E[:, None]) | ties).to(tl.int32), axis=1)
    return place_E


@triton.jit
def loaded_set(
    protected_E, value_E, knob_ptr, e_E, num_experts, price, max_experts, scratch_ptr, valued, E: tl.constexpr
):
    """(E,) 1 for each expert that the batch loads; everything allowed where nothing was asked for."""
    inside_E = e_E < num_experts
    cost_E = tl.load(knob_ptr + e_E, mask=inside_E, other=0.0)
    bias_E = tl.load(knob_ptr + num_experts + e_E, mask=inside_E, other=0.0)
    allowed_E = tl.load(knob_ptr + 2 * num_experts + e_E, mask=inside_E, other=0.0)
    loaded_E = protected_E
    if valued:
        worth_E = value_E * tl.exp(bias_E)
        worth_E = tl.where(worth_E == worth_E, worth_E, 0.0)
        loaded_E |= ((worth_E > 0) & (worth_E >= price * cost_E)).to(tl.int32)
        if max_experts > 0:
            place_E = places_by_value(worth_E, e_E, scratch_ptr, E)
            loaded_E |= ((worth_E > 0) & (place_E < max_experts)).to(tl.int32)
    return tl.where(tl.max(loaded_E, axis=0) > 0, loaded_E, (allowed_E > 0).to(tl.int32))


@triton.jit
def weigh_slots(
    x_RK, scores_RK, largest_R, sum_R, k_K, top_k, gate_mass, skip_ratio, scale,
    SIGMOID: tl.constexpr, RENORMALISE: tl.constexpr, TOP_K: tl.constexpr,
):  # fmt: skip
    """Which slots are kept, and their weights (R, K), from the unbiased gates."""
    first_RK = (k_K == 0)[None, :]
    if SIGMOID:
        # 1 / (1 + exp(-x)), without a large exp
        small_RK = exact_exp(-tl.abs(x_RK))
        gates_RK = tl.div_rn(tl.where(x_RK < 0, small_RK, 1.0), 1.0 + small_RK)
    else:
        gates_RK = tl.div_rn(exact_exp(x_RK - largest_R[:, None]), tl.broadcast_to(sum_R[:, None], x_RK.shape))
    gates_RK = tl.where((sum_R == sum_R)[:, None], gates_RK, float("nan"))
    available_RK = (scores_RK > OUTSIDE) & (k_K < TOP_K)[None, :]
    usable_RK = tl.where(available_RK, gates_RK, 0.0)
    best_R = tl.sum(tl.where(first_RK, usable_RK, 0.0), axis=1)
    before_RK = tl.cumsum(usable_RK, axis=1) - usable_RK
    total_R = tl.sum(usable_RK, axis=1)
    kept_RK = available_RK & (k_K < top_k)[None, :] & (usable_RK >= (skip_ratio * best_R)[:, None])
    limit_R = tl.where(gate_mass < 1.0, gate_mass * total_R, float("inf"))
    kept_RK = (kept_RK & (before_RK < limit_R[:, None])) | first_RK
    weights_RK = tl.where(kept_RK, gates_RK, 0.0)
    if RENORMALISE:
        sum_R = tl.sum(weights_RK, axis=1)
        if not SIGMOID:
            logits_RK = tl.where(kept_RK, x_RK, float("-inf"))
            from_best_RK = logits_RK - tl.maximum(tl.max(logits_RK, axis=1), BARRED)[:, None]
            weights_RK = tl.where((sum_R < FAINT)[:, None], exact_exp(from_best_RK), weights_RK)
            sum_R = tl.sum(weights_RK, axis=1)
        weights_RK = tl.div_rn(weights_RK, tl.broadcast_to(tl.maximum(sum_R, TINY)[:, None], weights_RK.shape))
    return kept_RK, weights_RK * scale


@triton.jit
def slot_bits(used_RK, k_K):
    """(R,) one bit for each slot."""
    return tl.sum(tl.where(used_RK, 1 << k_K[None, :], 0), axis=1)


@triton.jit
def used_tile(place_RE, bits_R, TOP_K: tl.constexpr):
    """(R, E) 1 where an expert stands in a slot whose bit is set."""
    bit_RE = (bits_R[:, None] >> tl.minimum(place_RE, TOP_K)) & 1  # bit TOP_K is never set
    return tl.where(place_RE < TOP_K, bit_RE, 0)
