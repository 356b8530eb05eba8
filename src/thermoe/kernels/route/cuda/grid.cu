// Routing of one large batch in one launch: a warp for each token at a time, blocks that are all resident, which meet
// at two barriers of the grid. Block b holds the tokens from b * a.steps * WARPS on, in order. Between arriving at a
// barrier and waiting for it a warp does what nobody waits for.

#if STEPS == 1
typedef unsigned char Count;  // slots of an expert in a block
#else
typedef unsigned short Count;
#endif
constexpr int FIELDS = 4 / sizeof(Count);  // counts in a word
constexpr int WORDS = PADDED / FIELDS;     // of a block's counts

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
    Count rows[1][PADDED];  // used slots of each expert, for as many blocks as are launched
};

struct Shared {
    // Zero at the start:
    unsigned vote[PADDED];
    unsigned used[STEPS][PADDED];  // bit w: the token of warp w computes the expert
    unsigned counted[PADDED];
    unsigned long long value[PADDED];
    unsigned sum[2][PADDED / 2];  // used slots of each expert in all blocks, and in those before: see `at`
    unsigned distinct, rows;
    //
    unsigned inside[PADDED];
    float worth[PADDED];
    unsigned begin[PADDED];
    unsigned drops, behind;
    unsigned char dropped[STEPS][WARPS];
    unsigned long long mass[WARPS];  // of each warp, as `Tally`
    unsigned changed[WARPS], live[WARPS];
    float x[WARPS][PADDED];
    Slot slot[WARPS][TOP_K];
};

constexpr int ZEROED = (5 + STEPS) * PADDED + 2;  // words

// The sum of an expert among sums of two 16-bit fields: bytes are widened, the even ones apart from the odd ones.
__device__ __forceinline__ unsigned at(const unsigned (&sum)[PADDED / 2], int e) {
    const int word = FIELDS == 4 ? e % 2 * WORDS + e / 4 : e / 2, field = FIELDS == 4 ? e % 4 / 2 : e % 2;
    return sum[word] >> (16 * field) & 0xffff;
}

// Sums of all blocks' counts and of those before this block: a thread adds one word of some blocks, fields side by side.
__device__ __forceinline__ void total_up(Shared& s, const Workspace& w) {
    const unsigned* rows = reinterpret_cast<const unsigned*>(&w.rows[0][0]);
    const unsigned word = threadIdx.x % WORDS, together = blockDim.x / WORDS;
    unsigned sum[2][2] = {{0, 0}, {0, 0}};
    if (threadIdx.x >= together * WORDS) return;
#pragma unroll 4
    for (unsigned block = threadIdx.x / WORDS; block < gridDim.x; block += together) {
        const unsigned counts = rows[block * WORDS + word];
        const unsigned even = FIELDS == 4 ? counts & 0x00ff00ff : counts, odd = counts >> 8 & 0x00ff00ff;
        sum[0][0] += even, sum[0][1] += odd;
        sum[1][0] += block < blockIdx.x ? even : 0, sum[1][1] += block < blockIdx.x ? odd : 0;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        atomicAdd(&s.sum[i][word], sum[i][0]);
        if (FIELDS == 4) atomicAdd(&s.sum[i][(WORDS + word) % (PADDED / 2)], sum[i][1]);
    }
}

// Votes and values of this block, to the bank.
__device__ __forceinline__ void vote_out(Shared& s, Bank& bank, bool valued, int lane) {
    for (int e = threadIdx.x; e < PADDED; e += blockDim.x) {  // whole warps
        const unsigned votes = __ballot_sync(WARP_MASK, s.vote[e] != 0);
        if (lane == 0 && votes) atomicOr(&bank.vote[e / 32], votes);
        if (valued && s.value[e]) atomicAdd(&bank.value[e], s.value[e]);
    }
}

// Counts of this block, to the workspace.
__device__ __forceinline__ void count_out(Shared& s, Workspace& w, Bank& bank, int steps, bool counting) {
    for (int e = threadIdx.x; e < PADDED; e += blockDim.x) {
        unsigned rows = 0;
        for (int i = 0; i < steps; ++i) rows += __popc(s.used[i][e]);
        w.rows[0][blockIdx.x * PADDED + e] = static_cast<Count>(rows);
        if (counting && s.counted[e]) atomicAdd(&bank.counted[e], s.counted[e]);
    }
    if (counting && threadIdx.x < WARPS) {
        const int warp = threadIdx.x;
        if (s.live[warp]) {
            atomicAdd(&bank.mass, s.mass[warp]), atomicAdd(&bank.changed, s.changed[warp]);
            atomicAdd(&bank.live, s.live[warp]);
        }
    }
}

// The dispatch plan: each warp places the slots of its tokens.
__device__ __forceinline__ void place(Shared& s, const RouteArgs& a, int lane, int warp, int first, int steps, Choice& c) {
    for (int i = 0; i < steps; ++i) {
        const int token = first + i * WARPS + warp;
        if (token >= a.tokens) return;
        const int slot = token * TOP_K + lane;
        if (STEPS > 1) {  // written by this lane before
            c.slot.id = lane < TOP_K ? static_cast<int>(a.ids[slot]) : 0;
            c.used = lane < TOP_K && a.weights[slot] != 0.0f;
        }
        unsigned to = s.begin[c.slot.id] + __popc(s.used[i][c.slot.id] & ((1u << warp) - 1));
        for (int earlier = 0; earlier < i; ++earlier) to += __popc(s.used[earlier][c.slot.id]);
        if (c.used) a.slots[to] = slot;
        if (s.drops) place_dropped(s, a, lane, i * WARPS + warp, slot, c.used);
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) route_grid(const __grid_constant__ RouteArgs a) {
    Shared& s = shared_memory<Shared>();
    Workspace& w = *reinterpret_cast<Workspace*>(a.workspace);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int steps = STEPS == 1 ? 1 : a.steps, first = blockIdx.x * steps * WARPS;
    Token t;
    float bias[WIDE], allowed[WIDE], correction[WIDE];
    if (first + warp < a.tokens) load_logits(a, first + warp, lane, t.x);
    load_knobs(a, lane, bias, allowed, correction);
    const Scalars knobs = *reinterpret_cast<const Scalars*>(a.knobs + 3 * EXPERTS);
    unsigned phase = grid_phase(&w.barrier);
    const unsigned turn = w.turn;
    Bank& bank = w.bank[turn];
    for (int i = threadIdx.x; i < ZEROED; i += blockDim.x) s.vote[i] = 0;
    if (blockIdx.x == gridDim.x - 1) {
        unsigned* other = reinterpret_cast<unsigned*>(&w.bank[turn ^ 1]);
        for (int i = threadIdx.x; i < static_cast<int>(sizeof(Bank) / 4); i += blockDim.x) other[i] = 0;
    }
    __syncthreads();

    Choice c;
    const auto choose = [&](int i, bool votes) {
        const int token = first + i * WARPS + warp;
        if (STEPS > 1) load_logits(a, token, lane, t.x);
        prepare(t, s.x[warp], bias, allowed, correction, lane);
        choose_own(s, t, knobs, lane, warp, votes && is_live(a, token), c);
    };
    const bool real = first + warp < a.tokens;
    if (STEPS == 1 && real) choose(0, a.joint);
    if (STEPS > 1 && a.joint)
        for (int i = 0; i < steps && first + i * WARPS + warp < a.tokens; ++i) choose(i, true);
    if (a.joint) {
        __syncthreads();
        vote_out(s, bank, is_valued(knobs), lane);
        grid_arrive(&w.barrier);
    }
    if (STEPS == 1 && real && a.sums && is_live(a, first + warp))
        find_models_own(s, t, bias, allowed, correction, lane, warp, c);
    if (a.joint) {
        grid_wait(&w.barrier, phase);
        phase ^= TURNING;
        join(s, a, knobs, blockIdx.x == 0, [&](int e) { return (bank.vote[e / 32] >> (e % 32) & 1u) != 0; },
             [&](int e) { return bank.value[e]; });
    }
    Tally tally;
    for (int i = 0; i < steps; ++i) {
        const int token = first + i * WARPS + warp;
        if (token >= a.tokens) break;
        if (STEPS > 1) choose(i, false);  // registers hold one token
        const bool counts = a.sums && is_live(a, token);
        if (STEPS > 1 && counts) find_models_own(s, t, bias, allowed, correction, lane, warp, c);
        if (a.joint) choose_inside(s, t, lane, warp, c);
        weigh_slots(s, t, knobs, a.scale, lane, warp, c);
        if (STEPS > 1) write_slots(a, lane, token, c);
        if (c.used) atomicOr(&s.used[i][c.slot.id], 1u << warp);
        const unsigned dropped = __ballot_sync(WARP_MASK, lane < TOP_K && !c.used);
        if (lane == 0) s.dropped[i][warp] = static_cast<unsigned char>(__popc(dropped));
        if (counts) {
            count(tally, lane, c);
            if (c.kept) atomicAdd(&s.counted[c.slot.id], 1u);
        }
    }
    if (lane == 0) s.mass[warp] = tally.mass, s.changed[warp] = tally.changed, s.live[warp] = tally.live;
    __syncthreads();
    count_out(s, w, bank, steps, a.sums != nullptr);
    grid_arrive(&w.barrier);
    if (STEPS == 1 && real) write_slots(a, lane, first + warp, c);
    grid_wait(&w.barrier, phase);
    total_up(s, w);
    const bool counting = a.sums && blockIdx.x == gridDim.x - 1;
    if (counting) add_rows(s, a, lane, [&](int e) { return bank.counted[e]; });
    __syncthreads();
    const auto total = [&](int e) { return at(s.sum[0], e); };
    const auto before = [&](int e) { return at(s.sum[1], e); };
    if (warp == 0) find_places(s, a, lane, first, total, before);
    __syncthreads();
    place(s, a, lane, warp, first, steps, c);
    if (blockIdx.x == 0 && threadIdx.x == 0) w.turn = turn ^ 1;
    if (counting && warp == 0) {
        Tally all;
        if (lane == 0) all.mass = bank.mass, all.changed = bank.changed, all.live = bank.live;
        add_figures(s, a, lane, all);
    }
}
