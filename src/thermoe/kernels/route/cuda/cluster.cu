// Routing of one batch of up to WARPS x CLUSTER tokens in one launch: a warp for each token, the blocks of one cluster.
// Token = block * WARPS + warp, so that the blocks hold the tokens in order.

struct Shared {
    // Zero at the start, read by the other blocks:
    unsigned vote[PADDED];             // some live token protects the expert
    unsigned used[PADDED];             // bit w: warp w's token computes the expert
    unsigned counted[PADDED];          // the same for kept slots of live tokens
    unsigned long long value[PADDED];  // of the expert to this block's tokens
    unsigned long long mass;           // gate mass kept
    unsigned changed, live, dropped[WARPS];
    // This block's own:
    unsigned inside[PADDED];
    float worth[PADDED];
    unsigned total[PADDED], before[PADDED];
    float x[WARPS][PADDED];
    Slot slot[WARPS][TOP_K];
};

constexpr int ZEROED = 5 * PADDED + 4 + WARPS;  // words

// Slots of every expert in all blocks and in those before this one; the first block adds to the counters.
__device__ __forceinline__ void total_up(Shared& s, const RouteArgs& a, unsigned rank) {
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
    __syncthreads();
}

__device__ __forceinline__ void add_up_cluster(Shared& s, const RouteArgs& a) {
    unsigned long long mass = 0;
    unsigned changed = 0, live = 0;
    for (unsigned c = 0; c < CLUSTER; ++c)
        mass += peer_long(&s.mass, c), changed += peer_word(&s.changed, c), live += peer_word(&s.live, c);
    add_up(s, a, mass, changed, live, [&](int e) {
        unsigned rows = 0;
#pragma unroll
        for (unsigned c = 0; c < CLUSTER; ++c) rows += __popc(peer_word(&s.counted[e], c));
        return rows;
    });
}

// The dispatch plan: each warp places the slots of its token.
__device__ __forceinline__ void place(Shared& s, const RouteArgs& a, int lane, int warp, unsigned rank, int token, int id,
                                      bool used) {
    unsigned begin[WIDE], all, used_before;
    find_places(s, a, lane, rank == 0 && warp == 0, begin, all, used_before);
    const unsigned mine = place_of(begin, id);
    if (token >= a.tokens) return;
    const int slot = token * TOP_K + lane;
    if (used) a.slots[mine + s.before[id] + __popc(s.used[id] & ((1u << warp) - 1))] = slot;
    if (all == static_cast<unsigned>(a.tokens) * TOP_K) return;
    unsigned place = all + rank * WARPS * TOP_K - used_before;  // behind the dropped slots of the blocks before
    for (int w = 0; w < warp; ++w) place += s.dropped[w];
    const unsigned dropped = __ballot_sync(WARP_MASK, lane < TOP_K && !used);
    if (dropped >> lane & 1u) a.slots[place + __popc(dropped & ((1u << lane) - 1))] = slot;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) IN_CLUSTER route_cluster(const __grid_constant__ RouteArgs a) {
    Shared& s = shared_memory<Shared>();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned rank = blockIdx.x;
    const int token = rank * WARPS + warp;
    const bool real = token < a.tokens;
    Token t;
    float bias[WIDE], allowed[WIDE], correction[WIDE];
    if (real) load_logits(a, token, lane, t.x);
    load_knobs(a, lane, bias, allowed, correction);
    const Scalars knobs = *reinterpret_cast<const Scalars*>(a.knobs + 3 * EXPERTS);
    const bool live = real && is_live(a, token);
    for (int i = threadIdx.x; i < ZEROED; i += blockDim.x) s.vote[i] = 0;
    __syncthreads();

    unsigned own = 0;
    float own_mass = 0.0f, gate = 0.0f;
    Slot chosen = {0, NO_KEY};
    bool kept = false, used = false;
    if (real) {
        prepare(t, s.x[warp], bias, allowed, correction, lane);
        own = choose_own(s, t, knobs, lane, warp, a.joint && live, chosen);
        if (lane < TOP_K) a.own_ids[static_cast<long long>(token) * TOP_K + lane] = chosen.id;
        if (a.sums && live) own_mass = model_mass(s, t, bias, allowed, correction, lane, warp, chosen, own);
    }
    if (a.joint) {
        cluster_sync();
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
        if (real) choose_inside(s, t, lane, warp, chosen);
    }
    if (real) {
        write_slots(s, a, t, knobs, lane, warp, token, chosen, gate, kept, used);
        if (used) atomicOr(&s.used[chosen.id], 1u << warp);
        const unsigned dropped = __ballot_sync(WARP_MASK, lane < TOP_K && !used);
        if (lane == 0) s.dropped[warp] = __popc(dropped);
        if (a.sums && live) {
            count(s, lane, own, own_mass, chosen.id, kept, gate);
            if (kept) atomicOr(&s.counted[chosen.id], 1u << warp);
        }
    }
    cluster_sync();
    total_up(s, a, rank);
    place(s, a, lane, warp, rank, token, chosen.id, used);
    if (a.sums && rank == 0) add_up_cluster(s, a);
    if (CLUSTER > 1) cluster_sync();  // the others may still be reading this block's shared memory
}
