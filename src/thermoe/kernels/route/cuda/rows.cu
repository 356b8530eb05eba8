// The router's logits and the routing in one launch, for up to 16 tokens. The blocks of a cluster share the columns of the
// router's weights, which they hold in registers before the launch that makes the rows has ended. Each multiplies its
// columns of all rows; the blocks send each other the parts of the logits by token, and add them in order. Then the first
// HELD warps of a block route a token each.
//
// Set by whoever compiles, beside what inputs.cuh names: COLUMNS of the weights, HELD tokens of a block.

constexpr int MOST = 16;                                  // tokens
constexpr int BANDS = 4, DEPTHS = WARPS / BANDS;          // warps share the experts, and the columns of their block
constexpr int SLICE = COLUMNS / CLUSTER, DEPTH = SLICE / DEPTHS, CHUNKS = DEPTH / 32, TILES = EXPERTS / BANDS / 8;
constexpr int PITCH = EXPERTS + 8;

static_assert(DEPTHS * BANDS == WARPS && CHUNKS * 32 * DEPTHS * CLUSTER == COLUMNS, "whole chunks of columns");
static_assert(TILES * 8 * BANDS == EXPERTS && HELD <= WARPS, "whole tiles of experts");

struct RowsArgs {
    RouteArgs route;  // without logits
    const unsigned short* x;
    const unsigned short* weight;
    const unsigned short* bias;  // null: none
    unsigned short* logits;
};

struct RowsShared {
    Shared route;
    alignas(16) float part[DEPTHS][MOST][PITCH];         // of this block's logits, read by four
    alignas(16) float logits[CLUSTER][HELD][EXPERTS];    // parts from all blocks, sent by four
    Inbox logits_in;
};

__device__ __forceinline__ unsigned word_of(const uint4& four, int n) {
    return n == 0 ? four.x : n == 1 ? four.y : n == 2 ? four.z : four.w;
}

// This block's part of all logits, by warp: some experts, some columns. The order of the columns within a product is
// another one than in memory, the same for both factors.
struct Factors {
    uint4 weight[TILES][CHUNKS], x[2][CHUNKS];
};

__device__ __forceinline__ void load_weights(Factors& f, const RowsArgs& a, int lane, int warp) {
    const int column = blockIdx.x * SLICE + warp / BANDS * DEPTH + lane % 4 * 8;
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
        const int e = (warp % BANDS * TILES + j) * 8 + lane / 4;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c)
            f.weight[j][c] = *reinterpret_cast<const uint4*>(a.weight + e * COLUMNS + column + 32 * c);
    }
}

__device__ __forceinline__ void load_rows(Factors& f, const RowsArgs& a, int lane, int warp) {
    const int column = blockIdx.x * SLICE + warp / BANDS * DEPTH + lane % 4 * 8;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        const int token = lane / 4 + 8 * n;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            f.x[n][c] = {0, 0, 0, 0};
            if (token < a.route.tokens) f.x[n][c] = load_new_four(a.x + token * COLUMNS + column + 32 * c);
        }
    }
}

__device__ __forceinline__ void multiply_part(RowsShared& s, const Factors& f, int lane, int warp) {
    float sum[TILES][4] = {};
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            const unsigned x[4] = {word_of(f.x[0][c], n), word_of(f.x[1][c], n), word_of(f.x[0][c], n + 1),
                                   word_of(f.x[1][c], n + 1)};
#pragma unroll
            for (int j = 0; j < TILES; ++j)
                mma(sum[j], x, word_of(f.weight[j][c], n), word_of(f.weight[j][c], n + 1));
        }
    }
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
        float* to = &s.part[warp / BANDS][lane / 4][(warp % BANDS * TILES + j) * 8 + lane % 4 * 2];
        *reinterpret_cast<float2*>(to) = {sum[j][0], sum[j][1]};
        *reinterpret_cast<float2*>(to + 8 * PITCH) = {sum[j][2], sum[j][3]};
    }
}

// The parts to the blocks that hold the tokens.
__device__ __forceinline__ void send_parts(RowsShared& s, const RowsArgs& a) {
    for (int n = threadIdx.x; n < a.route.tokens * (EXPERTS / 4); n += 32 * WARPS) {
        const int token = n / (EXPERTS / 4), e = n % (EXPERTS / 4) * 4;
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int d = 0; d < DEPTHS; ++d) {
            const float4 part = *reinterpret_cast<const float4*>(&s.part[d][token][e]);
            sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
        }
        push_four(&s.logits[blockIdx.x][token % HELD][e], token / HELD, sum, s.logits_in);
    }
}

// The logits of this warp's token, in bf16 as the router gives them.
__device__ __forceinline__ void join_parts(RowsShared& s, const RowsArgs& a, int token, int lane, int warp,
                                           const float (&bias)[WIDE], float (&logit)[WIDE]) {
    inbox_wait(s.logits_in);
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const int e = lane * WIDE + j;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < CLUSTER; ++n) sum += s.logits[n][warp][e];
        sum += bias[j];
        const unsigned short bits = pack_bf16(sum, 0.0f) & 0xffff;
        logit[j] = from_bf16(bits);
        a.logits[token * EXPERTS + e] = bits;
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) IN_CLUSTER route_rows(const __grid_constant__ RowsArgs a) {
    RowsShared& s = shared_memory<RowsShared>();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.x * HELD;
    const int held = max(0, min(HELD, a.route.tokens - first));
    Factors f;
    load_weights(f, a, lane, warp);
    Steering by;
    load_steering(a.route, lane, by);
    const Scalars knobs = load_scalars(a.route);
    if (a.route.joint) load_floats(a.route.knobs, lane, by.cost, 0.0f);
    float bias[WIDE] = {};
    if (a.bias) {
#pragma unroll
        for (int j = 0; j < WIDE; ++j) bias[j] = from_bf16(a.bias[lane * WIDE + j]);
    }
    const bool real = warp < held;
    const int token = real ? first + warp : a.route.tokens;
    const bool live = is_live(a.route, min(token, a.route.tokens - 1)) & real;
    if (threadIdx.x == 0) {
        open_inboxes(s.route);
        inbox_open(s.logits_in);
        if (held > 0) inbox_expect(s.logits_in, CLUSTER * held * EXPERTS * 4);
    }
    cluster_arrive();
    zero<ZEROED>(&s.route);

    wait_for_launch_before();
    let_next_launch_begin();
    load_rows(f, a, lane, warp);
    if (CORRECTED) load_floats(a.route.correction, lane, by.correction, 0.0f);  // it may be a copy, made just before
    multiply_part(s, f, lane, warp);
    __syncthreads();
    cluster_wait();
    send_parts(s, a);
    Token t = {};
    if (real) join_parts(s, a, token, lane, warp, bias, t.x);
    route_token<false>(s.route, a.route, t, by, knobs, token, real, live, lane, warp);
}
