// What the tokens of a batch decide and count together, for both kernels. `S` is a kernel's shared memory.
#pragma once

constexpr float VALUE_UNITS = 1099511627776.0f;  // integers add to the same sum in any order
constexpr float MASS_UNITS = 4294967296.0f;
constexpr float LARGE = 1048576.0f;

__device__ __forceinline__ bool is_valued(const Scalars& knobs) {
    return knobs.price < __int_as_float(0x7f800000) || knobs.max_experts > 0.0f;
}

// What a live token's own choice adds to the values of its experts.
template <class S>
__device__ __forceinline__ void add_value(S& s, const Scalars& knobs, int lane, const Slot& slot, float gate) {
    const float own = lane < TOP_K && usable(slot.key) ? gate : 0.0f;
    const float share = own / fmaxf(__shfl_sync(WARP_MASK, slot_sum(own), 0), TINY);
    if (share > 0.0f) {
        const float value = exp2f(knobs.value_power * log2f(share));
        const unsigned long long units = static_cast<unsigned long long>(fminf(value, LARGE) * VALUE_UNITS);
        atomicAdd(&s.value[slot.id], units > 0 ? units : 1ull);
    }
}

// The set that the batch loads into `inside`, from `voted(e)` and `valued_at(e)`, which speak for the whole batch.
template <class S, class Voted, class ValuedAt>
__device__ __forceinline__ void join(S& s, const RouteArgs& a, const Scalars& knobs, bool first_block, Voted&& voted,
                                     ValuedAt&& valued_at) {
    const bool valued = is_valued(knobs);
    if (valued) {
        for (int e = threadIdx.x; e < EXPERTS; e += blockDim.x) {
            const double value = static_cast<double>(valued_at(e)) / VALUE_UNITS;
            const float worth = static_cast<float>(value) * expf(a.knobs[EXPERTS + e]);
            s.worth[e] = worth == worth ? worth : 0.0f;  // no value times an infinite factor is still no value
        }
        __syncthreads();
    }
    bool any = false;
    for (int e = threadIdx.x; e < EXPERTS; e += blockDim.x) {
        bool in = voted(e);
        if (valued && s.worth[e] > 0.0f) {
            const float worth = s.worth[e];
            in = in || worth >= knobs.price * a.knobs[e];
            if (knobs.max_experts > 0.0f) {
                int ahead = 0;
                for (int other = 0; other < EXPERTS; ++other)
                    ahead += s.worth[other] > worth || (s.worth[other] == worth && other < e);
                in = in || ahead < knobs.max_experts;
            }
        }
        s.inside[e] = in;
        any = any || in;
    }
    const bool asked = __syncthreads_or(any);
    for (int e = threadIdx.x; e < EXPERTS; e += blockDim.x) {
        if (!asked) s.inside[e] = a.knobs[2 * EXPERTS + e] > 0.0f;
        if (first_block) a.loaded[e] = s.inside[e] != 0;
    }
    if (!asked) __syncthreads();
}

// What becomes of a token. `slot` is this lane's, the rest speaks of it, but for `own`: which of this lane's experts the
// model itself chooses, and `own_mass`: the gate mass of that choice.
struct Choice {
    Slot slot = {0, NO_KEY};
    int own_id = 0;
    unsigned own = 0;
    float own_mass = 0.0f, gate = 0.0f, weight = 0.0f;
    bool kept = false, used = false;
};

// What a warp counts.
struct Tally {
    unsigned long long mass = 0;  // gate mass kept
    unsigned changed = 0, live = 0;
};

// A token's own choice under the knobs; votes for it where `votes`.
template <class S>
__device__ __forceinline__ void choose_own(S& s, const Token& t, const Scalars& knobs, int lane, int warp, bool votes,
                                           Choice& c) {
    c.own = pick(t.key, lane, s.slot[warp], [&](int k, int key, bool mine, int e) {
        if (votes && mine && usable(key) && k < knobs.protected_k0) s.vote[e] = 1;
    });
    if (lane < TOP_K) c.slot = s.slot[warp][lane];
    c.own_id = c.slot.id;
    if (votes && is_valued(knobs)) add_value(s, knobs, lane, c.slot, gate_of(t, s.x[warp][c.slot.id]));
}

// The model's own choice, which knows neither bias nor mask, and its gate mass; `c.slot` is the choice under the knobs.
template <class S>
__device__ __forceinline__ void find_models_own(S& s, const Token& t, const float (&bias)[WIDE],
                                                const float (&allowed)[WIDE], const float (&correction)[WIDE], int lane,
                                                int warp, Choice& c) {
    bool steered = false;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) steered = steered || bias[j] != 0.0f || allowed[j] <= 0.0f;
    int id = c.slot.id;
    if (__any_sync(WARP_MASK, steered)) {
        Token u = t;
        float none[WIDE], every[WIDE];
#pragma unroll
        for (int j = 0; j < WIDE; ++j) none[j] = 0.0f, every[j] = 1.0f;
        score(u, none, every, correction, lane);
        c.own = pick(u.key, lane, s.slot[warp], [](int, int, bool, int) {});
        if (lane < TOP_K) id = s.slot[warp][lane].id;
    }
    c.own_mass = slot_sum(lane < TOP_K ? gate_of(t, s.x[warp][id]) : 0.0f);
}

// The choice within the batch's set: the token's own where nothing of it is withheld.
template <class S>
__device__ __forceinline__ void choose_inside(S& s, Token& t, int lane, int warp, Choice& c) {
    if (!__any_sync(WARP_MASK, lane < TOP_K && !s.inside[c.slot.id])) return;
#pragma unroll
    for (int j = 0; j < WIDE; ++j)
        if (lane * WIDE + j < EXPERTS && !s.inside[lane * WIDE + j]) t.key[j] = ordered(BARRED);
    pick(t.key, lane, s.slot[warp], [](int, int, bool, int) {});
    if (lane < TOP_K) c.slot = s.slot[warp][lane];
}

template <class S>
__device__ __forceinline__ void weigh_slots(S& s, const Token& t, const Scalars& knobs, float scale, int lane, int warp,
                                            Choice& c) {
    const float x = s.x[warp][c.slot.id];
    c.gate = lane < TOP_K ? gate_of(t, x) : 0.0f;
    c.weight = weigh(knobs, lane, c.slot.key, x, c.gate, scale, c.kept);
    c.used = c.kept && c.weight != 0.0f;
}

__device__ __forceinline__ void write_slots(const RouteArgs& a, int lane, int token, const Choice& c) {
    const int first = __shfl_sync(WARP_MASK, c.slot.id, 0);
    if (lane < TOP_K) {
        const long long slot = static_cast<long long>(token) * TOP_K + lane;
        a.ids[slot] = c.kept ? c.slot.id : first;
        a.weights[slot] = c.weight;
        a.kept[slot] = c.kept;
        a.own_ids[slot] = c.own_id;
    }
}

// Adds one live token to the warp's tally.
__device__ __forceinline__ void count(Tally& tally, int lane, const Choice& c) {
    const float mass = slot_sum(c.kept ? c.gate : 0.0f) / c.own_mass;
    const unsigned owned = __shfl_sync(WARP_MASK, c.own, c.slot.id / WIDE) >> (c.slot.id % WIDE) & 1u;
    const int same = __popc(__ballot_sync(WARP_MASK, c.kept && owned));
    if (mass > 0.0f) tally.mass += static_cast<unsigned long long>(fminf(mass, LARGE) * MASS_UNITS);  // not NaN
    tally.changed += TOP_K - same;
    tally.live += 1;
}

// Adds the live rows of the experts to the running sums, by all threads of one block; `counted(e)` speaks for the batch.
template <class S, class Counted>
__device__ __forceinline__ void add_rows(S& s, const RouteArgs& a, int lane, Counted&& counted) {
    unsigned rows = 0, distinct = 0;
    for (int e = threadIdx.x; e < PADDED; e += blockDim.x) {  // whole warps
        const unsigned here = e < EXPERTS ? counted(e) : 0;
        if (here) atomicAdd(&a.sums[e], static_cast<double>(here)), atomicAdd(&a.sums[EXPERTS + e], 1.0);
        rows += __reduce_add_sync(WARP_MASK, here);
        distinct += __popc(__ballot_sync(WARP_MASK, here > 0));
    }
    if (lane == 0 && rows) atomicAdd(&s.distinct, distinct), atomicAdd(&s.rows, rows);
}

// The figures of the batch as a whole, by one warp, behind a barrier after `add_rows`; `tally` is summed over the lanes.
template <class S>
__device__ __forceinline__ void add_figures(S& s, const RouteArgs& a, int lane, const Tally& tally) {
    unsigned long long mass = tally.mass;
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) mass += __shfl_xor_sync(WARP_MASK, mass, step);
    const unsigned changed = __reduce_add_sync(WARP_MASK, tally.changed);
    const unsigned live = __reduce_add_sync(WARP_MASK, tally.live);
    if (lane > 0) return;
    const double kept = static_cast<double>(mass) / MASS_UNITS;
    double* tail = a.sums + 2 * EXPERTS;
    atomicAdd(&tail[0], live > 0 ? 1.0 : 0.0), atomicAdd(&tail[1], static_cast<double>(live));
    atomicAdd(&tail[2], kept), atomicAdd(&tail[3], static_cast<double>(changed) / TOP_K);
    a.last[0] = s.distinct, a.last[1] = s.rows, a.last[2] = static_cast<float>(kept / (live > 0 ? live : 1));
}

// Where this block's slots of each expert begin, and its dropped slots, by one warp: from `total(e)` slots in the batch
// and `before(e)` in the blocks before this one, whose first token is `first`.
template <class S, class Total, class Before>
__device__ __forceinline__ void find_places(S& s, const RouteArgs& a, int lane, int first, Total&& total, Before&& before) {
    unsigned begin[WIDE], mine = 0, used_before = 0;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        begin[j] = mine;
        mine += total(lane * WIDE + j);
        used_before += before(lane * WIDE + j);
    }
    unsigned upto = mine;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        const unsigned other = __shfl_up_sync(WARP_MASK, upto, step);
        if (lane >= step) upto += other;
    }
    const unsigned all = __shfl_sync(WARP_MASK, upto, 31);
    used_before = __reduce_add_sync(WARP_MASK, used_before);
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const int e = lane * WIDE + j;
        begin[j] += upto - mine;
        s.begin[e] = begin[j] + before(e);
        if (blockIdx.x == 0 && e < EXPERTS) a.offsets[e] = begin[j];
    }
    if (lane > 0) return;
    s.drops = all != static_cast<unsigned>(a.tokens) * TOP_K;
    s.behind = all + first * TOP_K - used_before;
    if (blockIdx.x == 0) a.offsets[EXPERTS] = all;
}

// Where a token's dropped slots go: behind those of `earlier` tokens of the block.
template <class S>
__device__ __forceinline__ void place_dropped(S& s, const RouteArgs& a, int lane, int earlier, int slot, bool used) {
    unsigned place = s.behind;
    for (int n = 0; n < earlier; ++n) place += s.dropped[n / WARPS][n % WARPS];
    const unsigned dropped = __ballot_sync(WARP_MASK, lane < TOP_K && !used);
    if (dropped >> lane & 1u) a.slots[place + __popc(dropped & ((1u << lane) - 1))] = slot;
}
