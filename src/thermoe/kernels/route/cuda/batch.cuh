// What the tokens of a batch decide and count together, for both kernels. `S` is a kernel's shared memory.
#pragma once

constexpr float VALUE_UNITS = 1099511627776.0f;  // integers add to the same sum in any order
constexpr float MASS_UNITS = 4294967296.0f;
constexpr float LARGE = 1048576.0f;

__device__ __forceinline__ bool is_valued(const Scalars& knobs) {
    return knobs.price < __int_as_float(0x7f800000) || knobs.max_experts > 0.0f;
}

// What becomes of a token. `id`, `gate`, `weight`, `kept` and `used` are of this lane's slot, of which the first `usable`
// may be used; `chosen` and `own` tell which of this lane's experts the token chooses under the knobs, and the model by
// itself; `own_mass` is the gate mass of the model's choice.
struct Choice {
    int id = 0, own_id = 0, usable = 0;
    unsigned chosen = 0, own = 0;
    float own_mass = 0.0f, gate = 0.0f, weight = 0.0f;
    bool kept = false, used = false;
};

// What a warp counts.
struct Tally {
    unsigned long long mass = 0;  // gate mass kept
    unsigned changed = 0, live = 0;
};

// What a live token's own choice adds to the values of its experts.
template <class S>
__device__ __forceinline__ void add_value(S& s, const Scalars& knobs, int lane, const Choice& c, float gate) {
    const float own = lane < c.usable ? gate : 0.0f;
    const float share = own / fmaxf(__shfl_sync(WARP_MASK, slot_sum(own), 0), TINY);
    if (share > 0.0f) {
        const float value = exp2f(knobs.value_power * log2f(share));
        const unsigned long long units = static_cast<unsigned long long>(fminf(value, LARGE) * VALUE_UNITS);
        atomicAdd(&s.value[c.id], units > 0 ? units : 1ull);
    }
}

// A token's own choice under the knobs; votes for it where `votes`.
template <class S>
__device__ __forceinline__ void choose_own(S& s, const Token& t, const Scalars& knobs, int lane, int warp, bool votes,
                                           Choice& c) {
    int last;
    c.chosen = c.own = pick(t.key, lane, s.slot[warp], last);
    c.id = c.own_id = lane < TOP_K ? s.slot[warp][lane] : 0;
    c.usable = usable(last) ? TOP_K : min(TOP_K, count_usable(t.key));
    if (!votes) return;
    if (lane < c.usable && lane < knobs.protected_k0) s.vote[cell(c.id)] = 1;
    if (is_valued(knobs)) add_value(s, knobs, lane, c, gate_of(t, s.x[warp][c.id]));
}

// The experts that a batch loads, in every lane those of the lane: from the votes (bytes of 0 or 1) and the values
// of the whole batch. All threads of the block call it.
template <class S, class ValuedAt>
__device__ __forceinline__ Pack join(S& s, const RouteArgs& a, const Scalars& knobs, const Steering& by, int lane,
                                     int warp, const Pack& votes, ValuedAt&& valued_at) {
    Pack inside = votes;
    if (is_valued(knobs)) {
        float worth[WIDE];
#pragma unroll
        for (int j = 0; j < WIDE; ++j) {
            const int e = lane * WIDE + j;
            const double value = e < EXPERTS ? static_cast<double>(valued_at(e)) / VALUE_UNITS : 0.0;
            worth[j] = static_cast<float>(value) * expf(by.bias[j]);
            worth[j] = worth[j] == worth[j] ? worth[j] : 0.0f;  // no value times an infinite factor is still no value
            add_to(inside, j, worth[j] > 0.0f && worth[j] >= knobs.price * by.cost[j]);
            if (warp == 0) s.worth[e] = worth[j];
        }
        if (knobs.max_experts > 0.0f) {
            __syncthreads();
            for (int e = threadIdx.x; e < PADDED; e += 32 * WARPS) {
                const float mine = s.worth[e];
                int ahead = 0;
                for (int other = 0; other < EXPERTS; ++other)
                    ahead += s.worth[other] > mine || (s.worth[other] == mine && other < e);
                s.valuable[e] = mine > 0.0f && ahead < knobs.max_experts;
            }
            __syncthreads();
#pragma unroll
            for (int j = 0; j < WIDE; ++j) add_to(inside, j, s.valuable[lane * WIDE + j]);
        }
    }
    bool any = false;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) any = any || inside.word[p] != 0;
    if (!__any_sync(WARP_MASK, any)) {
#pragma unroll
        for (int j = 0; j < WIDE; ++j) add_to(inside, j, lane * WIDE + j < EXPERTS && by.allowed[j] > 0.0f);
    }
    if (blockIdx.x == 0 && warp == 0) {
#pragma unroll
        for (int j = 0; j < WIDE; ++j)
            if (lane * WIDE + j < EXPERTS) a.loaded[lane * WIDE + j] = static_cast<unsigned char>(byte_of(inside, j));
    }
    return inside;
}

// The model's own choice, which knows neither bias nor mask, and its gate mass.
template <class S>
__device__ __forceinline__ void find_models_own(S& s, const Token& t, const Steering& by, int lane, int warp, Choice& c) {
    bool steered = false;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) steered = steered || by.bias[j] != 0.0f || by.allowed[j] <= 0.0f;
    int id = c.own_id;
    if (__any_sync(WARP_MASK, steered)) {
        Token u = t;
        Steering none = by;
        int last;
#pragma unroll
        for (int j = 0; j < WIDE; ++j) none.bias[j] = 0.0f, none.allowed[j] = 1.0f;
        score(u, none, lane);
        c.own = pick(u.key, lane, s.slot[warp], last);
        if (lane < TOP_K) id = s.slot[warp][lane];
    }
    c.own_mass = slot_sum(lane < TOP_K ? gate_of(t, s.x[warp][id]) : 0.0f);
}

// The choice within the batch's set. What the token has chosen already comes first in it, in the same order; the rest is
// picked from what is left. A slot for which nothing is left stays unused, so its expert does not matter, but for the
// first, which every token keeps.
template <class S>
__device__ __forceinline__ void choose_inside(S& s, const Token& t, const Pack& inside, int lane, int warp, Choice& c) {
    const unsigned is_inside = byte_at(inside, c.id);
    const bool stays = lane < c.usable && is_inside != 0;
    const unsigned staying = __ballot_sync(WARP_MASK, stays);
    int filled = __popc(staying);
    if (filled == TOP_K) return;
    unsigned char* slot = s.slot[warp];
    __syncwarp();  // the slots of the own choice have been read
    if (stays) slot[__popc(staying & ((1u << lane) - 1))] = static_cast<unsigned char>(c.id);
    int key[WIDE], best = NO_KEY;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const bool taken = (c.chosen >> j & 1u) && usable(t.key[j]);
        key[j] = byte_of(inside, j) != 0 && !taken ? t.key[j] : NO_KEY;
        best = max(best, key[j]);
    }
    c.usable = TOP_K;
#pragma unroll 1
    for (; filled < TOP_K; ++filled) {
        const int most = __reduce_max_sync(WARP_MASK, best);
        if (!usable(most) && c.usable == TOP_K) c.usable = filled;
        if (!usable(most) && (filled > 0 || most == NO_KEY)) break;
        if (is_first(best == most, lane)) {
            int j = 0;
#pragma unroll
            for (int i = WIDE - 1; i >= 0; --i) j = key[i] == most ? i : j;
            slot[filled] = static_cast<unsigned char>(lane * WIDE + j);
            best = NO_KEY;
#pragma unroll
            for (int i = 0; i < WIDE; ++i) key[i] = i == j ? NO_KEY : key[i], best = max(best, key[i]);
        }
    }
    __syncwarp();
    c.id = lane < filled ? slot[lane] : 0;
}

template <class S>
__device__ __forceinline__ void weigh_slots(S& s, const Token& t, const Scalars& knobs, float scale, int lane, int warp,
                                            Choice& c) {
    const float x = s.x[warp][c.id];
    c.gate = lane < TOP_K ? gate_of(t, x) : 0.0f;
    c.weight = weigh(knobs, lane, lane < c.usable, x, c.gate, scale, c.kept);
    c.used = c.kept && c.weight != 0.0f;
}

__device__ __forceinline__ void write_slots(const RouteArgs& a, int lane, int token, bool real, const Choice& c) {
    const int first = __shfl_sync(WARP_MASK, c.id, 0);
    if (real && lane < TOP_K) {
        const int slot = token * TOP_K + lane;
        a.ids[slot] = c.kept ? c.id : first;
        a.weights[slot] = c.weight;
        a.kept[slot] = c.kept;
        a.own_ids[slot] = c.own_id;
    }
}

// Adds one live token to the warp's tally.
__device__ __forceinline__ void count(Tally& tally, int lane, const Choice& c) {
    const float mass = slot_sum(c.kept ? c.gate : 0.0f) / c.own_mass;
    const unsigned owned = __shfl_sync(WARP_MASK, c.own, c.id / WIDE) >> (c.id % WIDE) & 1u;
    const int same = __popc(__ballot_sync(WARP_MASK, c.kept && owned));
    if (mass > 0.0f) tally.mass += static_cast<unsigned long long>(fminf(mass, LARGE) * MASS_UNITS);  // not NaN
    tally.changed += TOP_K - same;
    tally.live += 1;
}

// Adds a batch to the running sums, by one warp: `counted(j)` live rows of this lane's experts in the whole batch, and
// this lane's share of what all warps tell.
template <class Counted>
__device__ __forceinline__ void add_sums(const RouteArgs& a, int lane, const Tally& tally, Counted&& counted) {
    unsigned rows = 0, distinct = 0;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const int e = lane * WIDE + j;
        const unsigned here = e < EXPERTS ? counted(j) : 0;
        if (here) atomicAdd(&a.sums[e], static_cast<double>(here)), atomicAdd(&a.sums[EXPERTS + e], 1.0);
        rows += here, distinct += here > 0;
    }
    unsigned long long mass = tally.mass;
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) mass += __shfl_xor_sync(WARP_MASK, mass, step);
    const unsigned changed = __reduce_add_sync(WARP_MASK, tally.changed);
    const unsigned live = __reduce_add_sync(WARP_MASK, tally.live);
    rows = __reduce_add_sync(WARP_MASK, rows), distinct = __reduce_add_sync(WARP_MASK, distinct);
    if (lane > 0) return;
    const double kept = static_cast<double>(mass) / MASS_UNITS;
    double* tail = a.sums + 2 * EXPERTS;
    atomicAdd(&tail[0], live > 0 ? 1.0 : 0.0), atomicAdd(&tail[1], static_cast<double>(live));
    atomicAdd(&tail[2], kept), atomicAdd(&tail[3], static_cast<double>(changed) / TOP_K);
    a.last[0] = distinct, a.last[1] = rows, a.last[2] = static_cast<float>(kept / (live > 0 ? live : 1));
}

// Where the slots of this lane's experts begin in the plan, by one warp, from `total(j)` slots of the whole batch. Returns
// how many slots the plan uses; writes its offsets where `writes`.
template <class Total>
__device__ __forceinline__ unsigned find_begins(const RouteArgs& a, int lane, bool writes, Total&& total,
                                                unsigned (&begin)[WIDE]) {
    unsigned mine = 0;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) begin[j] = mine, mine += total(j);
    unsigned upto = mine;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        const unsigned other = __shfl_up_sync(WARP_MASK, upto, step);
        upto += lane >= step ? other : 0;
    }
    const unsigned all = __shfl_sync(WARP_MASK, upto, 31);
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        begin[j] += upto - mine;
        if (writes && lane * WIDE + j < EXPERTS) a.offsets[lane * WIDE + j] = begin[j];
    }
    if (writes && lane == 0) a.offsets[EXPERTS] = all;
    return all;
}

// Where a token's dropped slots go: behind all `used_of_all` used ones and the dropped ones of earlier tokens, which use
// `used_before` slots.
__device__ __forceinline__ void place_dropped(const RouteArgs& a, int lane, int token, bool real, unsigned used_of_all,
                                              unsigned used_before, bool used) {
    const unsigned dropped = __ballot_sync(WARP_MASK, real && lane < TOP_K && !used);
    const unsigned place = used_of_all + token * TOP_K - used_before + __popc(dropped & ((1u << lane) - 1));
    if (dropped >> lane & 1u) a.slots[place] = token * TOP_K + lane;
}
