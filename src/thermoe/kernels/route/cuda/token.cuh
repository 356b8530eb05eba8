// One warp routes one token: each lane scores its experts, then holds one slot of the choice.
#pragma once

struct Token {
    float x[WIDE];
    int key[WIDE];  // order of the scores, NO_KEY beyond the experts
    float largest, sum;
    bool bad;
};

// The experts of a lane, a byte each.
#if EXPERTS > 128
typedef unsigned long long Order;
#else
typedef unsigned Order;
#endif

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
template <class Number>
__device__ __forceinline__ Number slot_sum(Number value) {
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
__device__ __forceinline__ void score(Token& t, const Steering& by, int lane) {
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const bool real = lane * WIDE + j < EXPERTS;
        float rank = t.x[j];
        if (SIGMOID) rank = sigmoid(rank) + (CORRECTED ? by.correction[j] : 0.0f);
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
        float value = fmaxf(__int_as_float(t.key[j]) + by.bias[j], (gate - 2.0f) * 1e30f);
        value = t.bad ? -1.5e30f : value;
        value = by.allowed[j] > 0.0f ? value : BARRED;
        t.key[j] = lane * WIDE + j < EXPERTS ? ordered(value) : NO_KEY;
    }
}

// Largest logit, sum of the softmax where it is needed, and whether the token's logits are numbers.
__device__ __forceinline__ void measure(Token& t, int lane) {
    const float infinity = __int_as_float(0x7f800000);
    bool bad = false;
    float largest = -infinity;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const bool real = lane * WIDE + j < EXPERTS;
        bad = bad || (real && (SIGMOID ? t.x[j] != t.x[j] : !(t.x[j] < infinity)));
        if (real) largest = fmaxf(largest, t.x[j]);  // passes over NaN, which makes the token bad
    }
    t.largest = 0.0f, t.sum = 1.0f;
    if (!SIGMOID) {
        const int top = __reduce_max_sync(WARP_MASK, ordered(largest));
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

__device__ __forceinline__ bool usable(int key) { return key > ordered(OUTSIDE); }

// Neighbouring bytes j and j + 1 swapped.
__device__ __forceinline__ Order swapped(Order order, int j) {
#if EXPERTS > 128
    const Order differ = (order ^ order >> 8) & 0xffull << (8 * j);
    return order ^ differ ^ differ << 8;
#else
    return __byte_perm(order, 0, j == 0 ? 0x3201 : j == 1 ? 0x3120 : 0x2310);
#endif
}

// The lane of those for which `top` holds that comes first.
__device__ __forceinline__ bool is_first(bool top, int lane) {
    const unsigned all = __ballot_sync(WARP_MASK, top);
    return top && (all & ((1u << lane) - 1)) == 0;
}

// The best TOP_K keys of the warp, the lower expert first where keys tie: their experts into `slot`. Returns which of
// this lane's experts were picked; `last` is the least key among them all.
__device__ __forceinline__ unsigned pick(const int (&keys)[WIDE], int lane, unsigned char* slot, int& last) {
    int key[WIDE];
#pragma unroll
    for (int j = 0; j < WIDE; ++j) key[j] = keys[j];
    Order order = static_cast<Order>(0x0706050403020100ull) + static_cast<Order>(0x0101010101010101ull) * (lane * WIDE);
#pragma unroll
    for (int round = 0; round < WIDE; ++round) {  // neighbours swap, so that equal keys keep their order
#pragma unroll
        for (int j = round & 1; j + 1 < WIDE; j += 2) {
            order = key[j] < key[j + 1] ? swapped(order, j) : order;
            const int high = max(key[j], key[j + 1]);
            key[j + 1] = min(key[j], key[j + 1]), key[j] = high;
        }
    }
    unsigned picked = 0;  // bits e % 32
    __syncwarp();         // the slots of an earlier choice have been read
#pragma unroll
    for (int k = 0; k < TOP_K; ++k) {
        last = __reduce_max_sync(WARP_MASK, key[0]);
        const bool mine = is_first(key[0] == last, lane);
        if (mine) slot[k] = static_cast<unsigned char>(order);
        picked = mine ? picked | __funnelshift_l(0, 1, static_cast<unsigned>(order)) : picked;
        order = mine ? order >> 8 : order;
#pragma unroll
        for (int j = 0; j + 1 < WIDE; ++j) key[j] = mine ? key[j + 1] : key[j];
        key[WIDE - 1] = mine ? NO_KEY : key[WIDE - 1];
    }
    __syncwarp();
    return picked >> (lane * WIDE % 32) & ((1u << WIDE) - 1);
}

// How many of all keys can be used.
__device__ __forceinline__ int count_usable(const int (&keys)[WIDE]) {
    int count = 0;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) count += __popc(__ballot_sync(WARP_MASK, usable(keys[j])));
    return count;
}

// Weight of this lane's slot; which slots are kept. `gate` is that of the slot's expert, `x` its logit.
__device__ __forceinline__ float weigh(const Scalars& knobs, int lane, bool available, float x, float gate, float scale,
                                       bool& kept) {
    const float use = available ? gate : 0.0f;
    kept = lane == 0 || (available && lane < knobs.top_k);
    if (!(knobs.skip_ratio <= 0.0f)) {
        const float best = __shfl_sync(WARP_MASK, use, 0);
        kept = lane == 0 || (kept && use >= knobs.skip_ratio * best);
    }
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
    if (!RENORMALISE) return (kept ? gate : 0.0f) * scale;
    // In float64: in float32 some weights are almost three units in the last place off, by their exponential alone.
    double weight = kept ? gate : 0.0f;
    if (!SIGMOID) {  // in units of the largest kept one
        float largest = kept ? x : BARRED;
#pragma unroll
        for (int step = SLOTS / 2; step > 0; step >>= 1)
            largest = fmaxf(largest, __shfl_xor_sync(WARP_MASK, largest, step));
        largest = fmaxf(largest, BARRED);
        const double apart = static_cast<double>(x) - static_cast<double>(largest);
        weight = kept && gate == gate ? exp(apart) : weight;  // every gate of a poisoned token is NaN
    }
    return static_cast<float>(weight / fmax(slot_sum(weight), static_cast<double>(TINY))) * scale;
}

// From loaded logits to keys; `row` keeps the logits for the lanes that will hold slots.
__device__ __forceinline__ void prepare(Token& t, float* row, const Steering& by, int lane) {
    __syncwarp();  // the row of an earlier token has been read
#pragma unroll
    for (int j = 0; j < WIDE; ++j) row[lane * WIDE + j] = t.x[j];
    measure(t, lane);
    score(t, by, lane);
}
