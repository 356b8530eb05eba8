// Attention of one new position. The blocks of a cluster share the positions of one key head; each warp takes tiles of
// 16 positions, whose keys and values the copy engine brings before the launch that makes the new position has ended.
// The tile of the new position is mended in shared memory. The blocks send each other the parts of their sums, so that
// each joins some of the query heads, always in the same order.
//
// Set by whoever compiles: HEADS (query heads of a key head, 8 at most), CLUSTER (blocks that share a key head), WARPS,
// SLOTS (tiles of a warp that are on their way), NORMS, MASK (0 f32, 1 bf16, 2 f16). Heads are 128 wide.
//
// Products are taken as keys x queries and values x weights, both with 8 query heads as columns.

constexpr int WIDTH = 128, TILE = 16, TILE_BYTES = TILE * WIDTH * 2, HALF_BYTES = TILE_BYTES / 2, COLUMNS = 8;
constexpr int UNITS = WARPS * CLUSTER;                         // tiles are dealt out to them in turn
constexpr int OWNED = (HEADS + CLUSTER - 1) / CLUSTER;         // query heads that a block joins, at most
constexpr int ROWS = (HEADS + 1 + WARPS - 1) / WARPS;          // new queries and the new key, by warp
constexpr int PITCH = WIDTH + 4, QUERY_PITCH = WIDTH * 2 + 16;  // of rows in shared memory: numbers, bytes
constexpr float LOWEST = -1e30f, LOG2_E = 1.4426950408889634f;

static_assert(COLUMNS * PITCH * 4 <= 2 * TILE_BYTES, "a warp's sums take the place of its first tile");

struct AttentionArgs {
    TensorMap keys, values;
    const unsigned short* qkv;
    const unsigned short* query_norm;
    const unsigned short* key_norm;
    const unsigned short* cosines;
    const unsigned short* sines;
    unsigned short* key_cache;
    unsigned short* value_cache;
    const long long* place;
    const void* mask;
    unsigned short* out;
    int groups, length, angle_stride, mask_stride;
    float eps, scale;
    unsigned long long unused[3];  // up to the 64 bytes that a tensor map is aligned to
};

struct Shared {
    unsigned char tile[WARPS][SLOTS][2][TILE_BYTES];  // keys, values; later the sums of the warp
    unsigned char row[COLUMNS + 1][QUERY_PITCH];      // new queries, then the new key
    float stat[WARPS][COLUMNS][2];                    // largest score in powers of two, sum of weights
    float joined[CLUSTER][OWNED][WIDTH];              // from all blocks
    unsigned long long joined_stat[CLUSTER][OWNED];
    Landing landing[WARPS][SLOTS];
    Inbox joined_in;
};

// Bytes of a row's part of 8 numbers in a tile: the copy engine swaps parts so that columns lie in different banks.
__device__ __forceinline__ int part_at(int row, int part) {
    return part / 8 * HALF_BYTES + row * 128 + ((part % 8 ^ row % 8) << 4);
}

__device__ __forceinline__ float low_half(unsigned pair) { return from_bf16(pair & 0xffff); }
__device__ __forceinline__ float high_half(unsigned pair) { return from_bf16(pair >> 16); }
__device__ __forceinline__ float lower_infinity() { return __int_as_float(0xff800000); }

// What is added to the score of a position before the new one, and of the new one; those behind count for nothing.
__device__ __forceinline__ float bias_at(const AttentionArgs& a, int b, int p, int place) {
    if (p > place) return lower_infinity();
    const long long at = static_cast<long long>(b) * a.mask_stride + p;
    float bias;
    if (MASK == 0) bias = static_cast<const float*>(a.mask)[at];
    if (MASK == 1) bias = from_bf16(static_cast<const unsigned short*>(a.mask)[at]);
    if (MASK == 2) bias = from_f16(static_cast<const unsigned short*>(a.mask)[at]);
    return fmaxf(bias, LOWEST);
}

// Of a lane: numbers 2 l and 2 l + 1 of the first half of a head, and of the second.
struct Pairs {
    unsigned first, second;
};

__device__ __forceinline__ Pairs load_pairs(const unsigned short* from, int lane) {
    return {reinterpret_cast<const unsigned*>(from)[lane], reinterpret_cast<const unsigned*>(from)[lane + 32]};
}

__device__ __forceinline__ float warp_total(float value) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(WARP_MASK, value, step);
    return value;
}

// A head, normed and turned.
__device__ __forceinline__ Pairs turned(Pairs x, Pairs weight, Pairs cosine, Pairs sine, float eps) {
    float a[2] = {low_half(x.first), high_half(x.first)}, b[2] = {low_half(x.second), high_half(x.second)};
    if (NORMS) {
        const float square = warp_total(a[0] * a[0] + a[1] * a[1] + b[0] * b[0] + b[1] * b[1]);
        const float by = rsqrtf(square / WIDTH + eps);
        const unsigned first = pack_bf16(a[0] * by * low_half(weight.first), a[1] * by * high_half(weight.first));
        const unsigned second = pack_bf16(b[0] * by * low_half(weight.second), b[1] * by * high_half(weight.second));
        a[0] = low_half(first), a[1] = high_half(first), b[0] = low_half(second), b[1] = high_half(second);
    }
    return {pack_bf16(a[0] * low_half(cosine.first) - b[0] * low_half(sine.first),
                    a[1] * high_half(cosine.first) - b[1] * high_half(sine.first)),
            pack_bf16(b[0] * low_half(cosine.second) + a[0] * low_half(sine.second),
                    b[1] * high_half(cosine.second) + a[1] * high_half(sine.second))};
}

// Running figures of a warp: of a lane's columns 2 t and 2 t + 1, with t = lane % 4. `out` holds, of each 16 numbers of a
// head, rows g and g + 8 with g = lane / 4.
struct Sums {
    float most[2], total[2], out[WIDTH / 16][4];
};

// Adds a tile. `bias` is that of the positions g and g + 8.
__device__ __forceinline__ void attend(Sums& s, const unsigned char* keys, const unsigned char* values,
                                       const unsigned (&query)[WIDTH / 16][2], const float (&bias)[2], int last,
                                       float scale, int lane) {
    float score[2][4] = {};
#pragma unroll
    for (int k = 0; k < WIDTH / 16; ++k) {
        unsigned a[4];
        load_matrices(keys + part_at(lane % 16, 2 * k + lane / 16), a);
        mma(score[k % 2], a, query[k][0], query[k][1]);
    }
    float x[4], higher[2], kept[2];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        const float by = bias[n / 2];  // what lies behind the new position may be anything
        x[n] = by == lower_infinity() ? by : ((score[0][n] + score[1][n]) * scale + by) * LOG2_E;
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        higher[c] = fmaxf(x[c], x[c + 2]);
#pragma unroll
        for (int step = 4; step < 32; step <<= 1)
            higher[c] = fmaxf(higher[c], __shfl_xor_sync(WARP_MASK, higher[c], step));
        higher[c] = fmaxf(higher[c], s.most[c]);
        const float base = higher[c] == lower_infinity() ? 0.0f : higher[c];
        kept[c] = power_of_two(s.most[c] - base);
        x[c] = power_of_two(x[c] - base), x[c + 2] = power_of_two(x[c + 2] - base);
        s.most[c] = higher[c];
        s.total[c] = s.total[c] * kept[c] + x[c] + x[c + 2];
    }
    const unsigned weight[2] = {transposed(pack_bf16(x[0], x[1])), transposed(pack_bf16(x[2], x[3]))};
    unsigned real[2];  // halves of the positions 2 t and 2 t + 1, and 8 further
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        const int p = 8 * n + lane % 4 * 2;
        real[n] = (p <= last ? 0xffffu : 0u) | (p + 1 <= last ? 0xffff0000u : 0u);
    }
#pragma unroll
    for (int i = 0; i < WIDTH / 16; ++i) {
        unsigned a[4];
        load_transposed(values + part_at(lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2), a);
        a[0] &= real[0], a[1] &= real[0], a[2] &= real[1], a[3] &= real[1];
#pragma unroll
        for (int n = 0; n < 4; ++n) s.out[i][n] *= kept[n % 2];
        mma(s.out[i], a, weight[0], weight[1]);
    }
}

// Figures of one query head from several parts, for four numbers of it; always in the order of the parts.
struct Joint {
    float most = lower_infinity(), total = 0.0f;
    float4 out = {0.0f, 0.0f, 0.0f, 0.0f};
};

template <int PARTS, class StatOf, class OutOf>
__device__ __forceinline__ Joint join(StatOf&& stat_of, OutOf&& out_of) {
    Joint joint;
#pragma unroll
    for (int n = 0; n < PARTS; ++n) joint.most = fmaxf(joint.most, stat_of(n, 0));
    const float base = joint.most == lower_infinity() ? 0.0f : joint.most;
#pragma unroll
    for (int n = 0; n < PARTS; ++n) {
        const float by = power_of_two(stat_of(n, 0) - base);
        const float4 part = out_of(n);
        joint.total += by * stat_of(n, 1);
        joint.out.x += by * part.x, joint.out.y += by * part.y, joint.out.z += by * part.z, joint.out.w += by * part.w;
    }
    return joint;
}

__device__ __forceinline__ void write_out(const AttentionArgs& a, int head, int h, int four, const Joint& joint) {
    const float by = 1.0f / joint.total;
    const uint2 pairs = {pack_bf16(joint.out.x * by, joint.out.y * by), pack_bf16(joint.out.z * by, joint.out.w * by)};
    reinterpret_cast<uint2*>(a.out + (static_cast<long long>(head) * HEADS + h) * WIDTH)[four] = pairs;
}

// The warps' sums to those of the block, and these to the block that joins them.
__device__ __forceinline__ void join_warps(Shared& s, const AttentionArgs& a, int head, int part, int lane) {
    if (CLUSTER > 1) cluster_wait();
#pragma unroll
    for (int n = threadIdx.x; n < HEADS * 32; n += 32 * WARPS) {
        const int h = n / 32;
        const Joint joint = join<WARPS>(
            [&](int w, int which) { return s.stat[w][h][which]; },
            [&](int w) { return reinterpret_cast<const float4*>(reinterpret_cast<const float*>(s.tile[w]) + h * PITCH)[lane]; });
        if (CLUSTER == 1) {
            write_out(a, head, h, lane, joint);
            continue;
        }
        push_four(&s.joined[part][h / CLUSTER][4 * lane], h % CLUSTER, joint.out, s.joined_in);
        if (lane == 0) {
            const unsigned long long both = static_cast<unsigned>(__float_as_int(joint.most)) |
                                            static_cast<unsigned long long>(__float_as_int(joint.total)) << 32;
            push(&s.joined_stat[part][h / CLUSTER], h % CLUSTER, both, s.joined_in);
        }
    }
}

__device__ __forceinline__ void join_blocks(Shared& s, const AttentionArgs& a, int head, int part, int owned, int lane) {
    if (owned == 0) return;
    inbox_wait(s.joined_in);
    for (int n = threadIdx.x; n < owned * 32; n += 32 * WARPS) {
        const int mine = n / 32;
        const Joint joint = join<CLUSTER>(
            [&](int p, int which) { return __int_as_float(static_cast<int>(s.joined_stat[p][mine] >> (32 * which))); },
            [&](int p) { return reinterpret_cast<const float4*>(s.joined[p][mine])[lane]; });
        write_out(a, head, part + mine * CLUSTER, lane, joint);
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) IN_CLUSTER decode_attention(const __grid_constant__ AttentionArgs a) {
    Shared& s = dynamic_memory<Shared>();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int head = blockIdx.x / CLUSTER, part = blockIdx.x % CLUSTER, b = head / a.groups, g = head % a.groups;
    const int unit = warp * CLUSTER + part, owned = (HEADS - part + CLUSTER - 1) / CLUSTER;
    if (elected()) {
        prefetch_map(&a.keys), prefetch_map(&a.values);
        for (int n = 0; n < SLOTS; ++n) landing_open(s.landing[warp][n]);
        landings_opened();
    }
    const long long asked = *a.place;  // kept inside the cache
    const int place = asked < 0 ? 0 : asked < a.length ? static_cast<int>(asked) : a.length - 1, tiles = place / TILE + 1;
    const auto ask = [&](int slot, int tile) {
        landing_announce(s.landing[warp][slot], 2 * TILE_BYTES);
        copy_tile(s.tile[warp][slot][0], &a.keys, tile * TILE, head, s.landing[warp][slot]);
        copy_tile(s.tile[warp][slot][1], &a.values, tile * TILE, head, s.landing[warp][slot]);
    };
    float bias[SLOTS][2];
    const auto load_bias = [&](float (&to)[2], int tile) {
        to[0] = bias_at(a, b, tile * TILE + lane / 4, place), to[1] = bias_at(a, b, tile * TILE + lane / 4 + 8, place);
    };
#pragma unroll
    for (int n = 0; n < SLOTS; ++n) {
        if (unit + n * UNITS < tiles && elected()) ask(n, unit + n * UNITS);
    }
#pragma unroll
    for (int n = 0; n < SLOTS; ++n) load_bias(bias[n], unit + n * UNITS);
    const Pairs cosine = load_pairs(a.cosines + b * a.angle_stride, lane);
    const Pairs sine = load_pairs(a.sines + b * a.angle_stride, lane);
    Pairs query_norm = {}, key_norm = {};
    if (NORMS) query_norm = load_pairs(a.query_norm, lane), key_norm = load_pairs(a.key_norm, lane);
    if (CLUSTER > 1) {
        if (threadIdx.x == 0) {
            inbox_open(s.joined_in);
            if (owned > 0) inbox_expect(s.joined_in, CLUSTER * owned * (4 * WIDTH + 8));
        }
        cluster_arrive();
    }
    for (int n = threadIdx.x; n < (COLUMNS - HEADS) * WIDTH / 2; n += 32 * WARPS)
        reinterpret_cast<unsigned*>(s.row[HEADS + n / (WIDTH / 2)])[n % (WIDTH / 2)] = 0;

    wait_for_launch_before();
    let_next_launch_begin();
    const int mended = (tiles - 1) % UNITS;  // the unit of the new position's tile
    const bool mends = mended == unit, holds_key = mended % CLUSTER == part;
    const unsigned short* row = a.qkv + static_cast<long long>(b) * a.groups * (HEADS + 2) * WIDTH;
    const long long cache_at = (static_cast<long long>(head) * a.length + place) * WIDTH;
    Pairs x[ROWS];
#pragma unroll
    for (int n = 0; n < ROWS; ++n) {
        const int r = warp + n * WARPS;
        const unsigned short* from = row + (r < HEADS ? g * HEADS + r : a.groups * HEADS + g) * WIDTH;
        if (r < HEADS || (r == HEADS && holds_key))
            x[n] = {load_new_pair(from + 2 * lane), load_new_pair(from + WIDTH / 2 + 2 * lane)};
    }
    uint2 new_value = {};
    if (mends) new_value = load_new(row + (a.groups * (HEADS + 1) + g) * WIDTH + 4 * lane);
#pragma unroll
    for (int n = 0; n < ROWS; ++n) {
        const int r = warp + n * WARPS;
        if (r < HEADS || (r == HEADS && holds_key)) {
            const Pairs y = turned(x[n], r < HEADS ? query_norm : key_norm, cosine, sine, a.eps);
            unsigned* to = reinterpret_cast<unsigned*>(s.row[r < HEADS ? r : COLUMNS]);
            to[lane] = y.first, to[lane + 32] = y.second;
        }
    }
    __syncthreads();
    unsigned query[WIDTH / 16][2];
#pragma unroll
    for (int k = 0; k < WIDTH / 16; ++k) {
        const unsigned* from = reinterpret_cast<const unsigned*>(s.row[lane / 4]) + 8 * k + lane % 4;
        query[k][0] = from[0], query[k][1] = from[4];
    }

    Sums sums = {};
    sums.most[0] = sums.most[1] = lower_infinity();
    int tile = unit;
    for (unsigned parity = 0; tile < tiles; parity ^= 1) {
#pragma unroll
        for (int n = 0; n < SLOTS; ++n) {
            if (tile >= tiles) break;
            unsigned char *keys = s.tile[warp][n][0], *values = s.tile[warp][n][1];
            landing_wait(s.landing[warp][n], parity);
            if (tile == tiles - 1) {
                const int at = part_at(place % TILE, lane / 2) + lane % 2 * 8;
                const uint2 new_key = reinterpret_cast<const uint2*>(s.row[COLUMNS])[lane];
                *reinterpret_cast<uint2*>(keys + at) = new_key, *reinterpret_cast<uint2*>(values + at) = new_value;
                reinterpret_cast<uint2*>(a.key_cache + cache_at)[lane] = new_key;
                reinterpret_cast<uint2*>(a.value_cache + cache_at)[lane] = new_value;
                __syncwarp();
            }
            attend(sums, keys, values, query, bias[n], place - tile * TILE, a.scale, lane);
            const int next = tile + SLOTS * UNITS;
            if (next < tiles) {
                __syncwarp();
                if (elected()) ask(n, next);
                load_bias(bias[n], next);
            }
            tile += UNITS;
        }
    }

#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int step = 4; step < 32; step <<= 1) sums.total[c] += __shfl_xor_sync(WARP_MASK, sums.total[c], step);
        if (lane < 4) s.stat[warp][2 * lane + c][0] = sums.most[c], s.stat[warp][2 * lane + c][1] = sums.total[c];
    }
    __syncwarp();  // the first tile has been read
    float* own = reinterpret_cast<float*>(s.tile[warp]) + lane % 4 * 2 * PITCH + lane / 4;
#pragma unroll
    for (int i = 0; i < WIDTH / 16; ++i) {
#pragma unroll
        for (int n = 0; n < 4; ++n) own[n % 2 * PITCH + 16 * i + n / 2 * 8] = sums.out[i][n];
    }
    __syncthreads();
    join_warps(s, a, head, part, lane);
    if (CLUSTER > 1) join_blocks(s, a, head, part, owned, lane);
}
