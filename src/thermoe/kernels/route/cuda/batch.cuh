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

// A token's own choice under the knobs; votes for it where `votes`.
template <class S>
__device__ __forceinline__ unsigned choose_own(S& s, const Token& t, const Scalars& knobs, int lane, int warp, bool votes,
                                               Slot& chosen) {
    const unsigned own = pick(t.key, lane, s.slot[warp], [&](int k, int key, bool mine, int e) {
        if (votes && mine && usable(key) && k < knobs.protected_k0) s.vote[e] = 1;
    });
    if (lane < TOP_K) chosen = s.slot[warp][lane];
    if (votes && is_valued(knobs)) add_value(s, knobs, lane, chosen, gate_of(t, s.x[warp][chosen.id]));
    return own;
}

// Gate mass of the model's own choice, which knows neither bias nor mask; `own` becomes that choice.
template <class S>
__device__ __forceinline__ float model_mass(S& s, const Token& t, const float (&bias)[WIDE], const float (&allowed)[WIDE],
                                            const float (&correction)[WIDE], int lane, int warp, const Slot& chosen,
                                            unsigned& own) {
    bool steered = false;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) steered = steered || bias[j] != 0.0f || allowed[j] <= 0.0f;
    Slot plain = chosen;
    if (__any_sync(WARP_MASK, steered)) {
        Token u = t;
        float none[WIDE], every[WIDE];
#pragma unroll
        for (int j = 0; j < WIDE; ++j) none[j] = 0.0f, every[j] = 1.0f;
        score(u, none, every, correction, lane);
        own = pick(u.key, lane, s.slot[warp], [](int, int, bool, int) {});
        if (lane < TOP_K) plain = s.slot[warp][lane];
    }
    return slot_sum(lane < TOP_K ? gate_of(t, s.x[warp][plain.id]) : 0.0f);
}

// The choice within the batch's set.
template <class S>
__device__ __forceinline__ void choose_inside(S& s, Token& t, int lane, int warp, Slot& chosen) {
#pragma unroll
    for (int j = 0; j < WIDE; ++j)
        if (lane * WIDE + j < EXPERTS && !s.inside[lane * WIDE + j]) t.key[j] = ordered(BARRED);
    pick(t.key, lane, s.slot[warp], [](int, int, bool, int) {});
    if (lane < TOP_K) chosen = s.slot[warp][lane];
}

// Weigh and write the slots of a token; whether this lane's slot is kept, and whether it has a weight.
template <class S>
__device__ __forceinline__ void write_slots(S& s, const RouteArgs& a, const Token& t, const Scalars& knobs, int lane,
                                            int warp, int token, const Slot& chosen, float& gate, bool& kept, bool& used) {
    const float x = s.x[warp][chosen.id];
    gate = lane < TOP_K ? gate_of(t, x) : 0.0f;
    const float weight = weigh(knobs, lane, chosen.key, x, gate, a.scale, kept);
    used = kept && weight != 0.0f;
    const int first = __shfl_sync(WARP_MASK, chosen.id, 0);
    if (lane < TOP_K) {
        const long long slot = static_cast<long long>(token) * TOP_K + lane;
        a.ids[slot] = kept ? chosen.id : first;
        a.weights[slot] = weight;
        a.kept[slot] = kept;
    }
}

// Gate mass kept and slots changed of one live token; `own` is the model's choice.
template <class S>
__device__ __forceinline__ void count(S& s, int lane, unsigned own, float own_mass, int id, bool kept, float gate) {
    const float mass = slot_sum(kept ? gate : 0.0f) / own_mass;
    const unsigned owned = __shfl_sync(WARP_MASK, own, id / WIDE) >> (id % WIDE) & 1u;
    const int same = __popc(__ballot_sync(WARP_MASK, kept && owned));
    if (lane == 0) {
        if (mass > 0.0f) atomicAdd(&s.mass, static_cast<unsigned long long>(fminf(mass, LARGE) * MASS_UNITS));
        atomicAdd(&s.changed, static_cast<unsigned>(TOP_K - same));
        atomicAdd(&s.live, 1u);
    }
}

// Add one batch to the counters, by all threads of one block; `counted(e)` are the live rows of an expert.
template <class S, class Counted>
__device__ __forceinline__ void add_up(S& s, const RouteArgs& a, unsigned long long mass, unsigned changed, unsigned live,
                                       Counted&& counted) {
    if (threadIdx.x == 0) s.inside[0] = s.inside[1] = 0;
    __syncthreads();
    unsigned rows = 0, distinct = 0;
    for (int e = threadIdx.x; e < EXPERTS; e += blockDim.x) {
        const unsigned here = counted(e);
        if (here) atomicAdd(&a.sums[e], static_cast<double>(here)), atomicAdd(&a.sums[EXPERTS + e], 1.0);
        rows += here, distinct += here > 0;
    }
    if (rows) atomicAdd(&s.inside[0], distinct), atomicAdd(&s.inside[1], rows);
    __syncthreads();
    if (threadIdx.x == 0) {
        const double kept = static_cast<double>(mass) / MASS_UNITS;
        double* tail = a.sums + 2 * EXPERTS;
        atomicAdd(&tail[0], live > 0 ? 1.0 : 0.0), atomicAdd(&tail[1], static_cast<double>(live));
        atomicAdd(&tail[2], kept), atomicAdd(&tail[3], static_cast<double>(changed) / TOP_K);
        a.last[0] = s.inside[0], a.last[1] = s.inside[1], a.last[2] = static_cast<float>(kept / (live > 0 ? live : 1));
    }
}

// Where the slots of each expert begin, for this lane's experts; all slots that are used; this block's from `before`.
template <class S>
__device__ __forceinline__ void find_places(S& s, const RouteArgs& a, int lane, bool writes, unsigned (&begin)[WIDE],
                                            unsigned& all, unsigned& used_before) {
    unsigned lane_total = 0;
    used_before = 0;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        begin[j] = lane_total;
        lane_total += s.total[lane * WIDE + j];
        used_before += s.before[lane * WIDE + j];
    }
    unsigned upto = lane_total;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        const unsigned other = __shfl_up_sync(WARP_MASK, upto, step);
        if (lane >= step) upto += other;
    }
    all = __shfl_sync(WARP_MASK, upto, 31);
    used_before = __reduce_add_sync(WARP_MASK, used_before);
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        begin[j] += upto - lane_total;
        if (writes && lane * WIDE + j < EXPERTS) a.offsets[lane * WIDE + j] = begin[j];
    }
    if (writes && lane == 0) a.offsets[EXPERTS] = all;
}

__device__ __forceinline__ unsigned place_of(const unsigned (&begin)[WIDE], int id) {
    unsigned place = 0;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const unsigned there = __shfl_sync(WARP_MASK, begin[j], id / WIDE);
        if (id % WIDE == j) place = there;
    }
    return place;
}
