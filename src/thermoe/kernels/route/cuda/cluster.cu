// Routing of one batch of up to WARPS x CLUSTER tokens, 255 at most, in one launch: a warp for each token, the blocks of
// one cluster. Token = block * WARPS + warp, so that the blocks hold the tokens in order. The blocks send each other what
// they know, and each works out the whole batch. A warp without a token does as the last one does, but says nothing.

static_assert(WARPS * CLUSTER <= 256, "counts are bytes");

struct Shared {
    // Zero at the start:
    unsigned long long value[PADDED];  // of the expert to this block's tokens
    unsigned char vote[CELLS];         // some live token protects the expert
    unsigned used[WARPS][32 * PACKS];  // Packs: whether the warp's token computes the expert
    unsigned counted[WARPS][32 * PACKS];  // the same for kept slots of live tokens
    //
    Tally tally[WARPS];
    float worth[PADDED];
    unsigned char valuable[PADDED];
    float x[WARPS][PADDED];
    unsigned char slot[WARPS][16];
    // What the blocks send:
    Inbox votes_in, totals_in, sums_in;
    unsigned votes[CLUSTER][32 * PACKS], totals[CLUSTER][32 * PACKS], rows[CLUSTER][32 * PACKS];
    unsigned long long values[CLUSTER][PADDED];
    Tally tallies[CLUSTER];
};

constexpr int ZEROED = 2 * PADDED + (1 + 2 * WARPS) * 32 * PACKS;  // words

// This lane's pack of a table, summed over the first `count` tables.
template <int TABLES>
__device__ __forceinline__ Pack sum_of(const unsigned (&table)[TABLES][32 * PACKS], int lane, int first, Pack& before) {
    Pack sum = {};
    before = sum;
#pragma unroll
    for (int n = 0; n < TABLES; ++n) {
        const Pack here = pack_at(table[n], lane);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            sum.word[p] += here.word[p];
            before.word[p] += n < first ? here.word[p] : 0;
        }
    }
    return sum;
}

// Sends this block's pack to the same table of every block; the warps share the blocks.
__device__ __forceinline__ void push_pack(unsigned (&table)[CLUSTER][32 * PACKS], const Pack& pack, int lane, int warp,
                                          const Inbox& box) {
#pragma unroll
    for (int peer = warp; peer < CLUSTER; peer += WARPS)
#pragma unroll
        for (int p = 0; p < PACKS; ++p) push(&table[blockIdx.x][lane * PACKS + p], peer, pack.word[p], box);
}

// The set that the batch loads, from the votes of all blocks.
__device__ __forceinline__ Pack join_cluster(Shared& s, const RouteArgs& a, const Scalars& knobs, const Steering& by,
                                             int lane, int warp) {
    Pack votes = pack_at(reinterpret_cast<const unsigned*>(s.vote), lane);
    if (CLUSTER > 1) {
        inbox_wait(s.votes_in);
#pragma unroll
        for (int n = 0; n < CLUSTER; ++n)
#pragma unroll
            for (int p = 0; p < PACKS; ++p) votes.word[p] |= s.votes[n][lane * PACKS + p];
    }
    return join(s, a, knobs, by, lane, warp, votes, [&](int e) {
        unsigned long long value = 0;
        for (int n = 0; n < CLUSTER; ++n) value += CLUSTER > 1 ? s.values[n][e] : s.value[e];
        return value;
    });
}

// By one warp of each block, which tells the first block; there it adds the batch to the running sums.
__device__ __forceinline__ void sum_cluster(Shared& s, const RouteArgs& a, int lane) {
    Pack none, rows = sum_of(s.counted, lane, 0, none);
    Tally tally;
    if (lane < WARPS) tally = s.tally[lane];
    if (CLUSTER > 1) {
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) tally.mass += __shfl_xor_sync(WARP_MASK, tally.mass, step);
        tally.changed = __reduce_add_sync(WARP_MASK, tally.changed);
        tally.live = __reduce_add_sync(WARP_MASK, tally.live);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) push(&s.rows[blockIdx.x][lane * PACKS + p], 0, rows.word[p], s.sums_in);
        if (lane == 0) {
            push(&s.tallies[blockIdx.x].mass, 0, tally.mass, s.sums_in);
            push(&s.tallies[blockIdx.x].changed, 0, tally.changed, s.sums_in);
            push(&s.tallies[blockIdx.x].live, 0, tally.live, s.sums_in);
        }
        if (blockIdx.x > 0) return;
        inbox_wait(s.sums_in);
        rows = sum_of(s.rows, lane, 0, none);
        tally = Tally();
        if (lane < CLUSTER) tally = s.tallies[lane];
    }
    add_sums(a, lane, tally, [&](int j) { return byte_of(rows, j); });
}

// The place of this lane's slot in the plan: its expert's first place and the slots of earlier tokens.
__device__ __forceinline__ unsigned place_of(const unsigned (&begin)[WIDE], const Pack& before, int e) {
    unsigned place = 0;
#pragma unroll
    for (int j = 0; j < WIDE; j += 2) {  // places are below 4096, so that two go in a word
        unsigned two = begin[j] + byte_of(before, j);
        if (j + 1 < WIDE) two |= (begin[j + 1] + byte_of(before, j + 1)) << 16;
        two = __shfl_sync(WARP_MASK, two, e / WIDE);
        if (e % WIDE / 2 == j / 2) place = two;
    }
    return e % 2 && WIDE > 1 ? place >> 16 : place & 0xffff;
}

// The inboxes of all blocks are open once the cluster has waited.
__device__ __forceinline__ void open_inboxes(Shared& s) {
    inbox_open(s.votes_in), inbox_open(s.totals_in), inbox_open(s.sums_in);
    inbox_expect(s.totals_in, CLUSTER * CELLS);
    inbox_expect(s.sums_in, CLUSTER * (CELLS + 16));
}

// Routes the token of this warp, whose logits are loaded, and the whole batch with it. WAITS: for the cluster, before it
// sends anything.
template <bool WAITS>
__device__ __forceinline__ void route_token(Shared& s, const RouteArgs& a, Token& t, Steering& by, const Scalars& knobs,
                                            int token, bool real, bool live, int lane, int warp) {
    const int rank = blockIdx.x;
    Choice c;
    prepare(t, s.x[warp], by, lane);
    choose_own(s, t, knobs, lane, warp, a.joint && live, c);
    if (a.joint) __syncthreads();
    if (CLUSTER > 1) {
        if (WAITS) cluster_wait();
        if (a.joint) {
            const bool valued = is_valued(knobs);
            push_pack(s.votes, pack_at(reinterpret_cast<const unsigned*>(s.vote), lane), lane, warp, s.votes_in);
            if (valued) {
                for (int n = threadIdx.x; n < CLUSTER * PADDED; n += 32 * WARPS)
                    push(&s.values[rank][n % PADDED], n / PADDED, s.value[n % PADDED], s.votes_in);
            }
            if (threadIdx.x == 0) inbox_expect(s.votes_in, CLUSTER * (CELLS + (valued ? 8 * PADDED : 0)));
        }
    }
    if (a.sums) find_models_own(s, t, by, lane, warp, c);
    if (a.joint) choose_inside(s, t, join_cluster(s, a, knobs, by, lane, warp), lane, warp, c);
    weigh_slots(s, t, knobs, a.scale, lane, warp, c);
    c.used = c.used && real;
    if (c.used) reinterpret_cast<unsigned char*>(s.used[warp])[cell(c.id)] = 1;
    if (a.sums) {
        Tally tally;
        count(tally, lane, c);
        if (lane == 0) s.tally[warp] = live ? tally : Tally();
        if (live && c.kept) reinterpret_cast<unsigned char*>(s.counted[warp])[cell(c.id)] = 1;
    }
    __syncthreads();
    Pack before, total = sum_of(s.used, lane, warp, before);
    if (CLUSTER > 1) {
        push_pack(s.totals, total, lane, warp, s.totals_in);
        write_slots(a, lane, token, real, c);
        inbox_wait(s.totals_in);
        Pack earlier;
        total = sum_of(s.totals, lane, rank, earlier);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) before.word[p] += earlier.word[p];
    }
    unsigned begin[WIDE];
    const bool first = rank == 0 && warp == 0;
    const unsigned used = find_begins(a, lane, first, [&](int j) { return byte_of(total, j); }, begin);
    const unsigned place = place_of(begin, before, c.id);
    if (c.used) a.slots[place] = token * TOP_K + lane;
    if (used != static_cast<unsigned>(a.tokens) * TOP_K) {
        unsigned earlier = 0;
#pragma unroll
        for (int j = 0; j < WIDE; ++j) earlier += byte_of(before, j);
        earlier = __reduce_add_sync(WARP_MASK, earlier);
        place_dropped(a, lane, token, real, used, earlier, c.used);
    }
    if (CLUSTER == 1) write_slots(a, lane, token, real, c);
    if (a.sums && warp == WARPS - 1) sum_cluster(s, a, lane);
}

#ifndef LOGITS_COME_FROM_ROWS
extern "C" __global__ void __launch_bounds__(32 * WARPS) IN_CLUSTER route_cluster(const __grid_constant__ RouteArgs a) {
    Shared& s = shared_memory<Shared>();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, token = blockIdx.x * WARPS + warp;
    const int read = min(token, a.tokens - 1);
    if (CLUSTER > 1) {
        if (threadIdx.x == 0) open_inboxes(s);
        cluster_arrive();
    }
    zero<ZEROED>(&s);
    wait_for_launch_before();  // which may have written anything that is read here
    let_next_launch_begin();
    Token t;
    Steering by;
    load_logits(a, read, lane, t.x);
    load_steering(a, lane, by);
    const Scalars knobs = load_scalars(a);
    if (a.joint) load_floats(a.knobs, lane, by.cost, 0.0f);
    const bool real = token < a.tokens, live = is_live(a, read) & real;
    __syncthreads();
    route_token<true>(s, a, t, by, knobs, token, real, live, lane, warp);
}
#endif
