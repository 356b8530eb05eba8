// One warp routes one token: each lane scores its experts, then holds one slot of the choice.
#pragma once

struct Token {
    float x[WIDE];
    int key[WIDE];  // order of the scores, NO_KEY beyond the experts
    float largest, sum;
    bool bad;
};

struct Slot {
    int id, key;
};

// Integers in the order of the numbers, -0 equal to 0.
__device__ __forceinline__ int ordered(float value) {
    const int bits = __float_as_int(value + 0.0f);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(WARP_MASK, value, step);
    return value;
}

// Over the lanes that hold slots; the others hold 0.
__device__ __forceinline__ float slot_sum(float value) {
#pragma unroll
    for (int step = SLOTS / 2; step > 0; step >>= 1) value += __shfl_xor_sync(WARP_MASK, value, step);
    return value;
}

__device__ __forceinline__ float sigmoid(float x) {
    const float small = expf(-fabsf(x));
    return (x < 0.0f ? small : 1.0f) / (1.0f + small);
}

// The model's unbiased gate of a logit, up to a factor where the chosen gates are renormalised.
__device__ __forceinline__ float gate_of(const Token& t, float x) {
    if (t.bad) return __int_as_float(0x7fffffff);
    if (SIGMOID) return sigmoid(x);
    const float gate = expf(x - t.largest);
    return RENORMALISE ? gate : gate / t.sum;
}

// Ranks of experts outside the token's best groups become -inf.
__device__ __forceinline__ void keep_groups(float (&rank)[WIDE], int lane) {
    constexpr int LANES = PADDED / GROUPS / WIDE;  // of a group
    const float lowest = __int_as_float(0xff800000);
    float best = lowest, second = lowest;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        second = fmaxf(second, fminf(best, rank[j]));
        best = fmaxf(best, rank[j]);
    }
#pragma unroll
    for (int step = LANES / 2; step > 0; step >>= 1) {
        const float other = __shfl_xor_sync(WARP_MASK, best, step), third = __shfl_xor_sync(WARP_MASK, second, step);
        second = fmaxf(fminf(best, other), fmaxf(second, third));
        best = fmaxf(best, other);
    }
    const float mine = SIGMOID ? best + second : best;
    int ahead = 0;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
        const float other = __shfl_sync(WARP_MASK, mine, g * LANES);
        ahead += other > mine || (other == mine && g < lane / LANES);
    }
#pragma unroll
    for (int j = 0; j < WIDE; ++j) rank[j] = ahead < KEPT_GROUPS ? rank[j] : lowest;
}

// Keys from logits. Permitted experts by biased rank, then those that the model rules out by gate, then barred ones.
__device__ __forceinline__ void score(Token& t, const float (&bias)[WIDE], const float (&allowed)[WIDE],
                                      const float (&correction)[WIDE], int lane) {
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const bool real = lane * WIDE + j < EXPERTS;
        float rank = t.x[j];
        if (SIGMOID) rank = sigmoid(rank) + (CORRECTED ? correction[j] : 0.0f);
        t.key[j] = __float_as_int(real ? rank : __int_as_float(0xff800000));
    }
    if (GROUPS > 1) {
        float rank[WIDE];
#pragma unroll
        for (int j = 0; j < WIDE; ++j) rank[j] = __int_as_float(t.key[j]);
        keep_groups(rank, lane);
#pragma unroll
        for (int j = 0; j < WIDE; ++j) t.key[j] = __float_as_int(rank[j]);
    }
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        float gate = 0.0f;
        if (GROUPS > 1) gate = SIGMOID ? sigmoid(t.x[j]) : expf(t.x[j] - t.largest);
        float value = fmaxf(__int_as_float(t.key[j]) + bias[j], (gate - 2.0f) * 1e30f);
        value = t.bad ? -1.5e30f : value;
        value = allowed[j] > 0.0f ? value : BARRED;
        t.key[j] = lane * WIDE + j < EXPERTS ? ordered(value) : NO_KEY;
    }
}

// Largest logit, sum of the softmax where it is needed, and whether the token's logits are numbers.
__device__ __forceinline__ void measure(Token& t, int lane) {
    const float infinity = __int_as_float(0x7f800000);
    bool bad = false;
    int top = NO_KEY;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const bool real = lane * WIDE + j < EXPERTS;
        bad = bad || (real && (SIGMOID ? t.x[j] != t.x[j] : !(t.x[j] < infinity)));
        if (real) top = max(top, ordered(t.x[j]));
    }
    t.largest = 0.0f, t.sum = 1.0f;
    if (!SIGMOID) {
        top = __reduce_max_sync(WARP_MASK, top);
        t.largest = __int_as_float(top ^ ((top >> 31) & 0x7fffffff));
        bad = bad || t.largest == -infinity;
    }
    t.bad = __any_sync(WARP_MASK, bad);
    if (!SIGMOID && !RENORMALISE) {
        float part = 0.0f;
#pragma unroll
        for (int j = 0; j < WIDE; ++j) part += lane * WIDE + j < EXPERTS ? expf(t.x[j] - t.largest) : 0.0f;
        t.sum = warp_sum(part);
    }
}

// The best TOP_K keys of the warp, the lower expert first where keys tie, into `slot`; `picked(k, key, mine, e)` runs in
// every lane for each pick. Returns which of this lane's experts were picked.
template <class Picked>
__device__ __forceinline__ unsigned pick(const int (&keys)[WIDE], int lane, Slot* slot, Picked&& picked) {
    int key[WIDE], e[WIDE];
#pragma unroll
    for (int j = 0; j < WIDE; ++j) key[j] = keys[j], e[j] = lane * WIDE + j;
#pragma unroll
    for (int round = 0; round < WIDE; ++round) {  // neighbours swap, so that equal keys keep their order
#pragma unroll
        for (int j = round & 1; j + 1 < WIDE; j += 2) {
            const bool swap = key[j] < key[j + 1];
            const int low = swap ? key[j] : key[j + 1], low_e = swap ? e[j] : e[j + 1];
            key[j] = swap ? key[j + 1] : key[j], e[j] = swap ? e[j + 1] : e[j];
            key[j + 1] = low, e[j + 1] = low_e;
        }
    }
    const unsigned below = (1u << lane) - 1;
    unsigned own = 0;
    __syncwarp();  // the slots of an earlier choice have been read
#pragma unroll
    for (int k = 0; k < TOP_K; ++k) {
        const int best = __reduce_max_sync(WARP_MASK, key[0]);
        const bool top = key[0] == best;
        const unsigned all = __ballot_sync(WARP_MASK, top);
        const bool mine = top && (all & below) == 0;
        if (mine) {
            slot[k].id = e[0], slot[k].key = best;
            own |= 1u << (e[0] % WIDE);
        }
        picked(k, best, mine, e[0]);
#pragma unroll
        for (int j = 0; j + 1 < WIDE; ++j) key[j] = mine ? key[j + 1] : key[j], e[j] = mine ? e[j + 1] : e[j];
        key[WIDE - 1] = mine ? NO_KEY : key[WIDE - 1];
    }
    __syncwarp();
    return own;
}

__device__ __forceinline__ bool usable(int key) { return key > ordered(OUTSIDE); }

// Weight of this lane's slot; which slots are kept. `gate` is that of the slot's expert, `x` its logit.
__device__ __forceinline__ float weigh(const Scalars& knobs, int lane, int key, float x, float gate, float scale,
                                       bool& kept) {
    const bool available = lane < TOP_K && usable(key);
    const float use = available ? gate : 0.0f, best = __shfl_sync(WARP_MASK, use, 0);
    kept = lane == 0 || (available && lane < knobs.top_k && use >= knobs.skip_ratio * best);
    if (knobs.gate_mass < 1.0f) {
        float upto = use;
        const float enough = knobs.gate_mass * slot_sum(use);
#pragma unroll
        for (int step = 1; step < SLOTS; step <<= 1) {
            const float before = __shfl_up_sync(WARP_MASK, upto, step);
            if (lane >= step) upto += before;
        }
        kept = lane == 0 || (kept && upto - use < enough);
    }
    float weight = kept ? gate : 0.0f;
    if (RENORMALISE) {
        float sum = __shfl_sync(WARP_MASK, slot_sum(weight), 0);  // the same in all lanes, so that all go one way
        if (!SIGMOID && sum < 1e-30f) {  // the same gates in units of the largest kept one
            float largest = kept ? x : BARRED;
#pragma unroll
            for (int step = SLOTS / 2; step > 0; step >>= 1)
                largest = fmaxf(largest, __shfl_xor_sync(WARP_MASK, largest, step));
            largest = fmaxf(__shfl_sync(WARP_MASK, largest, 0), BARRED);
            weight = kept ? expf(x - largest) : 0.0f;
            sum = __shfl_sync(WARP_MASK, slot_sum(weight), 0);
        }
        weight /= fmaxf(sum, TINY);
    }
    return weight * scale;
}

// From loaded logits to keys; `row` keeps the logits for the lanes that will hold slots.
__device__ __forceinline__ void prepare(Token& t, float* row, const float (&bias)[WIDE], const float (&allowed)[WIDE],
                                        const float (&correction)[WIDE], int lane) {
    __syncwarp();  // the row of an earlier token has been read
#pragma unroll
    for (int j = 0; j < WIDE; ++j) row[lane * WIDE + j] = t.x[j];
    measure(t, lane);
    score(t, bias, allowed, correction, lane);
}
