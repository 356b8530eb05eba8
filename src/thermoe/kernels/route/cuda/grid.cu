// Routing of one large batch in one launch: a warp for each token at a time, blocks that are all resident, which meet
// at two barriers of the grid. Block b holds the tokens from b * a.steps * WARPS on, in order.

constexpr int MAX_STEPS = 16;

// What the blocks add up, in device memory. Two of them take turns: a launch clears the one for the next.
struct Bank {
    unsigned vote[8];
    unsigned counted[PADDED];
    unsigned long long value[PADDED];
    unsigned long long mass;
    unsigned changed, live;
};

struct Workspace {
    unsigned barrier, turn, padding[2];
    Bank bank[2];
    unsigned short rows[1][PADDED];  // used slots of each expert, for as many blocks as are launched
};

struct Shared {
    // Zero at the start:
    unsigned vote[PADDED];
    unsigned used[MAX_STEPS][PADDED];  // bit w: the token of warp w computes the expert
    unsigned counted[PADDED];
    unsigned long long value[PADDED];
    unsigned long long mass;
    unsigned changed, live;
    //
    unsigned inside[PADDED];
    float worth[PADDED];
    unsigned total[PADDED], before[PADDED];
    unsigned char dropped[MAX_STEPS][WARPS];
    union {
        float x[WARPS][PADDED];
        unsigned part[WARPS][PADDED];
    };
    Slot slot[WARPS][TOP_K];
};

constexpr int ZEROED = (4 + MAX_STEPS) * PADDED + 4;  // words

// Sums of all blocks' rows and of those before this block: two experts in a word, added field by field.
__device__ __forceinline__ void total_up(Shared& s, const Workspace& w, int lane, int warp) {
    constexpr int EIGHTS = PADDED / 8;  // experts are read eight at a time
    const unsigned eighth = threadIdx.x % EIGHTS;
    unsigned sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};  // all, then before
    for (unsigned block = threadIdx.x / EIGHTS; block < gridDim.x; block += blockDim.x / EIGHTS) {
        const uint4 four = *reinterpret_cast<const uint4*>(&w.rows[0][block * PADDED + eighth * 8]);
        const unsigned word[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += word[i], sum[4 + i] += block < blockIdx.x ? word[i] : 0;
    }
#pragma unroll
    for (int step = 16; step >= EIGHTS; step >>= 1) {
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += __shfl_xor_sync(WARP_MASK, sum[i], step);
    }
    if (lane < EIGHTS) {
#pragma unroll
        for (int i = 0; i < 8; ++i) s.part[warp][lane * 8 + i] = sum[i];
    }
    __syncthreads();
    for (int e = threadIdx.x; e < PADDED; e += blockDim.x) {
        unsigned total = 0, before = 0;
        const int word = e / 8 * 8 + e % 8 / 2, shift = e % 2 * 16;
#pragma unroll
        for (int from = 0; from < WARPS; ++from)
            total += s.part[from][word] >> shift & 0xffff, before += s.part[from][word + 4] >> shift & 0xffff;
        s.total[e] = total, s.before[e] = before;
    }
    __syncthreads();
}

// Votes and values of this block, to the bank.
__device__ __forceinline__ void vote_out(Shared& s, Bank& bank, bool valued, int lane) {
    for (int e = threadIdx.x; e < PADDED; e += blockDim.x) {  // whole warps
        const unsigned votes = __ballot_sync(WARP_MASK, s.vote[e] != 0);
        if (lane == 0 && votes) atomicOr(&bank.vote[e / 32], votes);
        if (valued && s.value[e]) atomicAdd(&bank.value[e], s.value[e]);
    }
}

// Rows and counters of this block, to the workspace.
__device__ __forceinline__ void count_out(Shared& s, Workspace& w, Bank& bank, int steps, bool counting) {
    for (int e = threadIdx.x; e < PADDED; e += blockDim.x) {
        unsigned rows = 0;
        for (int i = 0; i < steps; ++i) rows += __popc(s.used[i][e]);
        w.rows[0][blockIdx.x * PADDED + e] = static_cast<unsigned short>(rows);
        if (counting && s.counted[e]) atomicAdd(&bank.counted[e], s.counted[e]);
    }
    if (counting && threadIdx.x == 0)
        atomicAdd(&bank.mass, s.mass), atomicAdd(&bank.changed, s.changed), atomicAdd(&bank.live, s.live);
}

// The dispatch plan: each warp places the slots of its tokens.
__device__ __forceinline__ void place(Shared& s, const RouteArgs& a, int lane, int warp, int first, int id, bool used) {
    unsigned begin[WIDE], all, used_before;
    find_places(s, a, lane, blockIdx.x == 0 && warp == 0, begin, all, used_before);
    const bool some_dropped = all != static_cast<unsigned>(a.tokens) * TOP_K;
    for (int i = 0; i < a.steps; ++i) {
        const int token = first + i * WARPS + warp;
        if (token >= a.tokens) return;
        const int slot = token * TOP_K + lane;
        if (a.steps > 1) {  // written by this lane before
            id = lane < TOP_K ? static_cast<int>(a.ids[slot]) : 0;
            used = lane < TOP_K && a.weights[slot] != 0.0f;
        }
        unsigned at = place_of(begin, id) + s.before[id] + __popc(s.used[i][id] & ((1u << warp) - 1));
        for (int earlier = 0; earlier < i; ++earlier) at += __popc(s.used[earlier][id]);
        if (used) a.slots[at] = slot;
        if (!some_dropped) continue;
        unsigned behind = all + first * TOP_K - used_before;
        for (int n = 0; n < i * WARPS + warp; ++n) behind += s.dropped[n / WARPS][n % WARPS];
        const unsigned dropped = __ballot_sync(WARP_MASK, lane < TOP_K && !used);
        if (dropped >> lane & 1u) a.slots[behind + __popc(dropped & ((1u << lane) - 1))] = slot;
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) route_grid(const __grid_constant__ RouteArgs a) {
    Shared& s = shared_memory<Shared>();
    Workspace& w = *reinterpret_cast<Workspace*>(a.workspace);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first = blockIdx.x * a.steps * WARPS;
    Token t;
    float bias[WIDE], allowed[WIDE], correction[WIDE];
    if (first + warp < a.tokens) load_logits(a, first + warp, lane, t.x);
    load_knobs(a, lane, bias, allowed, correction);
    const Scalars knobs = *reinterpret_cast<const Scalars*>(a.knobs + 3 * EXPERTS);
    const unsigned turn = w.turn;
    Bank& bank = w.bank[turn];
    for (int i = threadIdx.x; i < ZEROED; i += blockDim.x) s.vote[i] = 0;
    if (blockIdx.x == gridDim.x - 1) {
        unsigned* other = reinterpret_cast<unsigned*>(&w.bank[turn ^ 1]);
        for (int i = threadIdx.x; i < static_cast<int>(sizeof(Bank) / 4); i += blockDim.x) other[i] = 0;
    }
    __syncthreads();

    unsigned own = 0;
    Slot chosen = {0, NO_KEY};
    for (int i = 0; i < a.steps; ++i) {
        const int token = first + i * WARPS + warp;
        if (token >= a.tokens) break;
        if (i > 0) load_logits(a, token, lane, t.x);
        prepare(t, s.x[warp], bias, allowed, correction, lane);
        own = choose_own(s, t, knobs, lane, warp, a.joint && is_live(a, token), chosen);
        if (lane < TOP_K) a.own_ids[static_cast<long long>(token) * TOP_K + lane] = chosen.id;
    }
    if (a.joint) {
        __syncthreads();
        vote_out(s, bank, is_valued(knobs), lane);
        grid_sync(&w.barrier);
        join(s, a, knobs, blockIdx.x == 0, [&](int e) { return (bank.vote[e / 32] >> (e % 32) & 1u) != 0; },
             [&](int e) { return bank.value[e]; });
    }
    bool used = false;
    for (int i = 0; i < a.steps; ++i) {
        const int token = first + i * WARPS + warp;
        if (token >= a.tokens) break;
        if (a.steps > 1) {  // registers hold one token
            load_logits(a, token, lane, t.x);
            prepare(t, s.x[warp], bias, allowed, correction, lane);
            own = choose_own(s, t, knobs, lane, warp, false, chosen);
        }
        const bool counts = a.sums && is_live(a, token);
        const float own_mass = counts ? model_mass(s, t, bias, allowed, correction, lane, warp, chosen, own) : 0.0f;
        if (a.joint) choose_inside(s, t, lane, warp, chosen);
        float gate;
        bool kept;
        write_slots(s, a, t, knobs, lane, warp, token, chosen, gate, kept, used);
        if (used) atomicOr(&s.used[i][chosen.id], 1u << warp);
        const unsigned dropped = __ballot_sync(WARP_MASK, lane < TOP_K && !used);
        if (lane == 0) s.dropped[i][warp] = static_cast<unsigned char>(__popc(dropped));
        if (counts) {
            count(s, lane, own, own_mass, chosen.id, kept, gate);
            if (kept) atomicAdd(&s.counted[chosen.id], 1u);
        }
    }
    __syncthreads();
    count_out(s, w, bank, a.steps, a.sums != nullptr);
    grid_sync(&w.barrier);
    total_up(s, w, lane, warp);
    place(s, a, lane, warp, first, chosen.id, used);
    if (blockIdx.x == 0) {
        if (threadIdx.x == 0) w.turn = turn ^ 1;
        if (a.sums) add_up(s, a, bank.mass, bank.changed, bank.live, [&](int e) { return bank.counted[e]; });
    }
}
