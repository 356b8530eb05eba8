// What a launch is given, and how a warp reads it: lane l holds the experts l * WIDE .. l * WIDE + WIDE - 1.
//
// Set by whoever compiles: EXPERTS, TOP_K, LOGITS (0 f32, 1 bf16, 2 f16), SIGMOID, CORRECTED, RENORMALISE, GROUPS,
// KEPT_GROUPS, ALIGNED (rows of logits and knobs allow vector loads), WARPS, CLUSTER (blocks that share memory), STEPS
// (most tokens of a warp).
#pragma once

constexpr int WIDE = EXPERTS <= 32 ? 1 : EXPERTS <= 64 ? 2 : EXPERTS <= 128 ? 4 : 8;
constexpr int PADDED = 32 * WIDE;
constexpr int PACKS = (WIDE + 3) / 4;  // words that hold a byte for each of a lane's experts
constexpr int SLOTS = TOP_K <= 1 ? 1 : TOP_K <= 2 ? 2 : TOP_K <= 4 ? 4 : TOP_K <= 8 ? 8 : 16;
constexpr int NO_KEY = -2147483647 - 1;
constexpr float BARRED = -3.4028234663852886e38f;
constexpr float OUTSIDE = -1e30f;
constexpr float TINY = 1.1754943508222875e-38f;

// The knobs of a layer: EXPERTS costs, biases, permissions, then these.
struct Scalars {
    float price, top_k, protected_k0, max_experts, gate_mass, skip_ratio, value_power;
};

struct RouteArgs {
    const void* logits;
    const float* knobs;
    const float* correction;
    const void* live;
    long long* ids;
    float* weights;
    unsigned char* kept;
    long long* own_ids;
    unsigned char* loaded;
    int* slots;
    int* offsets;
    double* sums;  // null: nothing is counted
    float* last;
    void* workspace;
    long long stride;
    int tokens;
    int live_kind;  // 0 all, 1 bytes, 2 floats
    int joint;      // whether the batch chooses a set of experts
    int steps;      // tokens of a warp, at most STEPS
    float scale;
};

__device__ __forceinline__ float from_bits(unsigned short bits) { return LOGITS == 1 ? from_bf16(bits) : from_f16(bits); }

// Whether a lane's experts can be read four at a time.
constexpr bool BY_FOUR = ALIGNED && WIDE % 4 == 0 && EXPERTS == PADDED;

__device__ __forceinline__ void load_floats(const float* from, int lane, float (&to)[WIDE], float beyond) {
    from += lane * WIDE;
    if (BY_FOUR) {
#pragma unroll
        for (int j = 0; j < WIDE; j += 4) {
            const float4 four = *reinterpret_cast<const float4*>(from + j);
            to[j] = four.x, to[j + 1] = four.y, to[j + 2] = four.z, to[j + 3] = four.w;
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < WIDE; ++j) to[j] = lane * WIDE + j < EXPERTS ? from[j] : beyond;
}

__device__ __forceinline__ void load_logits(const RouteArgs& a, int token, int lane, float (&x)[WIDE]) {
    const long long first = token * a.stride + lane * WIDE;
    const float* wide = static_cast<const float*>(a.logits) + first;
    const unsigned short* narrow = static_cast<const unsigned short*>(a.logits) + first;
    if (BY_FOUR) {
#pragma unroll
        for (int j = 0; j < WIDE; j += 4) {
            if (LOGITS == 0) {
                const float4 four = *reinterpret_cast<const float4*>(wide + j);
                x[j] = four.x, x[j + 1] = four.y, x[j + 2] = four.z, x[j + 3] = four.w;
            } else {
                const uint2 four = *reinterpret_cast<const uint2*>(narrow + j);
                x[j] = from_bits(four.x & 0xffff), x[j + 1] = from_bits(four.x >> 16);
                x[j + 2] = from_bits(four.y & 0xffff), x[j + 3] = from_bits(four.y >> 16);
            }
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const bool real = lane * WIDE + j < EXPERTS;
        if (LOGITS == 0) x[j] = real ? wide[j] : 0.0f;
        if (LOGITS != 0) x[j] = real ? from_bits(narrow[j]) : 0.0f;
    }
}

__device__ __forceinline__ bool is_live(const RouteArgs& a, int token) {
    if (a.live_kind == 0) return true;
    if (a.live_kind == 1) return static_cast<const unsigned char*>(a.live)[token] != 0;
    return static_cast<const float*>(a.live)[token] != 0.0f;
}

__device__ __forceinline__ Scalars load_scalars(const RouteArgs& a) {
    const float* from = a.knobs + 3 * EXPERTS;
    if (!BY_FOUR) return {from[0], from[1], from[2], from[3], from[4], from[5], from[6]};
    const float4 four = *reinterpret_cast<const float4*>(from);
    const float2 two = *reinterpret_cast<const float2*>(from + 4);
    return {four.x, four.y, four.z, four.w, two.x, two.y, from[6]};
}

// The knobs of a lane's experts; the costs are loaded apart, where a price may ask for them.
struct Steering {
    float bias[WIDE], allowed[WIDE], correction[WIDE], cost[WIDE];
};

__device__ __forceinline__ void load_steering(const RouteArgs& a, int lane, Steering& to) {
    load_floats(a.knobs + EXPERTS, lane, to.bias, 0.0f);
    load_floats(a.knobs + 2 * EXPERTS, lane, to.allowed, 1.0f);
    if (CORRECTED) load_floats(a.correction, lane, to.correction, 0.0f);
}

// A number below 256 for each of a lane's experts, a byte each. Tables in shared memory that hold a Pack a lane are
// also read by expert: see `cell`.
struct Pack {
    unsigned word[PACKS];
};

constexpr int CELLS = 128 * PACKS;  // bytes of a table

__device__ __forceinline__ int cell(int e) { return WIDE % 4 == 0 ? e : e / WIDE * 4 + e % WIDE; }

__device__ __forceinline__ Pack pack_at(const unsigned* table, int lane) {
    Pack pack;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) pack.word[p] = table[lane * PACKS + p];
    return pack;
}

__device__ __forceinline__ unsigned byte_of(const Pack& pack, int j) { return pack.word[j / 4] >> (8 * (j % 4)) & 0xffu; }

// Marks a lane's expert.
__device__ __forceinline__ void add_to(Pack& pack, int j, bool is) {
    pack.word[j / 4] |= static_cast<unsigned>(is) << (8 * (j % 4));
}

// One byte of any lane's pack, of an expert that each lane names.
__device__ __forceinline__ unsigned byte_at(const Pack& pack, int e) {
    unsigned word = __shfl_sync(WARP_MASK, pack.word[0], e / WIDE);
    if (PACKS > 1) {
        const unsigned high = __shfl_sync(WARP_MASK, pack.word[PACKS - 1], e / WIDE);
        word = e % WIDE < 4 ? word : high;
    }
    return word >> (8 * (e % WIDE % 4)) & 0xffu;
}

// Zeroes the first words of shared memory, by all threads.
template <int COUNT>
__device__ __forceinline__ void zero(void* words) {
    static_assert(COUNT % 4 == 0, "four at a time");
#pragma unroll
    for (int n = 0; n < COUNT / 4; n += 32 * WARPS)
        if (n + static_cast<int>(threadIdx.x) < COUNT / 4) static_cast<uint4*>(words)[n + threadIdx.x] = {0, 0, 0, 0};
}
