// Routing of one batch of up to WARPS x CLUSTER tokens in one launch: a warp for each token, the blocks of one cluster.
// Token = block * WARPS + warp, so that the blocks hold the tokens in order. Between arriving at a barrier and waiting
// for it a warp does what nobody waits for.

struct Shared {
    // Zero at the start, read by the other blocks:
    unsigned vote[PADDED];             // some live token protects the expert
    unsigned used[PADDED];             // bit w: warp w's token computes the expert
    unsigned counted[PADDED];          // the same for kept slots of live tokens
    unsigned long long value[PADDED];  // of the expert to this block's tokens
    unsigned long long mass[WARPS];    // of each token, as `Tally`
    unsigned changed[WARPS], live[WARPS];
    // Zero at the start, this block's own:
    unsigned distinct, rows;
    //
    unsigned inside[PADDED];
    float worth[PADDED];
    unsigned total[PADDED], before[PADDED], begin[PADDED];
    unsigned drops, behind;
    unsigned char dropped[1][WARPS];
    float x[WARPS][PADDED];
    Slot slot[WARPS][TOP_K];
};

constexpr int ZEROED = 5 * PADDED + 4 * WARPS + 2;  // words

// Slots of every expert in all blocks and in those before this one.
__device__ __forceinline__ void total_up(Shared& s, unsigned rank) {
    for (int e = threadIdx.x; e < PADDED; e += blockDim.x) {
        unsigned total = 0, before = 0;
#pragma unroll
        for (unsigned c = 0; c < CLUSTER; ++c) {
            const unsigned here = __popc(peer_word(&s.used[e], c));
            total += here;
            before += c < rank ? here : 0;
        }
        s.total[e] = total, s.before[e] = before;
    }
}

__device__ __forceinline__ unsigned live_rows(const Shared& s, int e) {
    unsigned rows = 0;
#pragma unroll
    for (unsigned c = 0; c < CLUSTER; ++c) rows += __popc(peer_word(&s.counted[e], c));
    return rows;
}

// A lane's share of what all warps of the cluster have counted.
__device__ __forceinline__ Tally tally_of_all(const Shared& s, int lane) {
    Tally sum;
    for (int n = lane; n < WARPS * CLUSTER; n += 32) {
        const int from = n % WARPS, rank = n / WARPS;
        sum.mass += peer_long(&s.mass[from], rank);
        sum.changed += peer_word(&s.changed[from], rank), sum.live += peer_word(&s.live[from], rank);
    }
    return sum;
}

// The set that the batch loads, from the votes of all blocks.
__device__ __forceinline__ void join_cluster(Shared& s, const RouteArgs& a, const Scalars& knobs, unsigned rank) {
    const auto voted = [&](int e) {
        unsigned votes = 0;
#pragma unroll
        for (unsigned c = 0; c < CLUSTER; ++c) votes |= peer_word(&s.vote[e], c);
        return votes != 0;
    };
    const auto valued_at = [&](int e) {
        unsigned long long value = 0;
        for (unsigned c = 0; c < CLUSTER; ++c) value += peer_long(&s.value[e], c);
        return value;
    };
    join(s, a, knobs, rank == 0, voted, valued_at);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) IN_CLUSTER route_cluster(const __grid_constant__ RouteArgs a) {
    Shared& s = shared_memory<Shared>();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned rank = blockIdx.x;
    const int first = rank * WARPS, token = first + warp;
    const bool real = token < a.tokens;
    Token t;
    float bias[WIDE], allowed[WIDE], correction[WIDE];
    if (real) load_logits(a, token, lane, t.x);
    load_knobs(a, lane, bias, allowed, correction);
    const Scalars knobs = *reinterpret_cast<const Scalars*>(a.knobs + 3 * EXPERTS);
    const bool live = real && is_live(a, token), counts = a.sums && live;
    for (int i = threadIdx.x; i < ZEROED; i += blockDim.x) s.vote[i] = 0;
    __syncthreads();

    Choice c;
    if (real) {
        prepare(t, s.x[warp], bias, allowed, correction, lane);
        choose_own(s, t, knobs, lane, warp, a.joint && live, c);
    }
    if (a.joint) cluster_arrive();
    if (counts) find_models_own(s, t, bias, allowed, correction, lane, warp, c);
    if (a.joint) {
        cluster_wait();
        join_cluster(s, a, knobs, rank);
        if (real) choose_inside(s, t, lane, warp, c);
    }
    if (real) {
        weigh_slots(s, t, knobs, a.scale, lane, warp, c);
        if (c.used) atomicOr(&s.used[c.slot.id], 1u << warp);
        const unsigned dropped = __ballot_sync(WARP_MASK, lane < TOP_K && !c.used);
        if (lane == 0) s.dropped[0][warp] = static_cast<unsigned char>(__popc(dropped));
        if (counts) {
            Tally tally;
            count(tally, lane, c);
            if (lane == 0) s.mass[warp] = tally.mass, s.changed[warp] = tally.changed, s.live[warp] = tally.live;
            if (c.kept) atomicOr(&s.counted[c.slot.id], 1u << warp);
        }
    }
    cluster_arrive();
    if (real) write_slots(a, lane, token, c);
    cluster_wait();
    total_up(s, rank);
    const bool counting = a.sums && rank == 0;
    if (counting) add_rows(s, a, lane, [&](int e) { return live_rows(s, e); });
    __syncthreads();
    if (counting && warp == WARPS - 1) add_figures(s, a, lane, tally_of_all(s, lane));
    if (CLUSTER > 1) cluster_arrive();  // nothing is read from other blocks any more
    if (warp == 0) find_places(s, a, lane, first, [&](int e) { return s.total[e]; }, [&](int e) { return s.before[e]; });
    __syncthreads();
    if (real) {
        const int slot = token * TOP_K + lane;
        if (c.used) a.slots[s.begin[c.slot.id] + __popc(s.used[c.slot.id] & ((1u << warp) - 1))] = slot;
        if (s.drops) place_dropped(s, a, lane, warp, slot, c.used);
    }
    if (CLUSTER > 1) cluster_wait();  // the others may have been reading this block's shared memory
}
