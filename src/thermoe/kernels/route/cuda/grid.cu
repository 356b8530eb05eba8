// Routing of one large batch in one launch: a warp for each token at a time, blocks that are all resident. Block b holds
// the tokens from b * a.steps * WARPS on, each of its warps a.steps neighbours. The blocks meet twice, over their votes
// and over their counts: each publishes its words, and reads those of all others until they are there. While words
// travel, a warp does what nobody waits for.

struct Shared {
    // Zero at the start:
    unsigned long long value[PADDED];
    unsigned char vote[CELLS];
    unsigned voted[8];
    unsigned counted[PADDED];
    unsigned total[EIGHTS][ROW];       // used slots of each expert in eight warps
    unsigned sum[2][64 * PACKS];       // in all blocks, and in those before this one; even bytes, then odd ones
    unsigned used[WARPS][32 * PACKS];  // Packs: slots of the expert in the warp's tokens
    //
    float worth[PADDED];
    unsigned char valuable[PADDED];
    unsigned begin[PADDED];
    unsigned all, before;
    Tally tally[WARPS];
    float x[WARPS][PADDED];
    unsigned char slot[WARPS][16];
};

constexpr int ZEROED = 3 * PADDED + 8 + EIGHTS * ROW + (5 + WARPS) * 32 * PACKS;  // words

// Where the block's slots of each expert begin, by one warp.
__device__ __forceinline__ void find_places(Shared& s, const RouteArgs& a, int lane) {
    unsigned begin[WIDE], before = 0;
    const unsigned all =
        find_begins(a, lane, blockIdx.x == 0, [&](int j) { return field_at(s.sum[0], lane, j); }, begin);
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const unsigned earlier = field_at(s.sum[1], lane, j);
        s.begin[lane * WIDE + j] = begin[j] + earlier;
        before += earlier;
    }
    before = __reduce_add_sync(WARP_MASK, before);
    if (lane == 0) s.all = all, s.before = before;
}

// Slots of this lane's experts in the warps before this one.
struct Before {
    unsigned even[PACKS], odd[PACKS];
};

__device__ __forceinline__ Before warps_before(const Shared& s, int lane, int warp) {
    Before sum = {};
    const auto add = [&](const unsigned* counts, const unsigned* odd) {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const unsigned here = counts[lane * PACKS + p];
            sum.even[p] += HALVES == 1 || odd ? here : here & 0x00ff00ff;
            if (HALVES == 2) sum.odd[p] += odd ? odd[lane * PACKS + p] : here >> 8 & 0x00ff00ff;
        }
    };
    for (int n = 0; n < warp / 8; ++n) add(s.total[n], s.total[n] + ROW / 2);
    for (int n = warp / 8 * 8; n < warp; ++n) add(s.used[n], nullptr);
#pragma unroll
    for (int p = 0; p < PACKS && HALVES == 1; ++p)
        sum.odd[p] = sum.even[p] >> 8 & 0x00ff00ff, sum.even[p] &= 0x00ff00ff;
    return sum;
}

// The dispatch plan: each warp places the slots of its tokens.
__device__ __forceinline__ void place(Shared& s, const RouteArgs& a, const Before& before, int lane, int warp, int first,
                                      int steps, Choice& c) {
    const bool drops = s.all != static_cast<unsigned>(a.tokens) * TOP_K;
    unsigned earlier = 0;
    if (drops) {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const unsigned sum = before.even[p] + before.odd[p];
            earlier += (sum & 0xffff) + (sum >> 16);
        }
        earlier = s.before + __reduce_add_sync(WARP_MASK, earlier);
    }
    unsigned char* mine = reinterpret_cast<unsigned char*>(s.used[warp]);
    if (STEPS > 1) {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) s.used[warp][lane * PACKS + p] = 0;
        __syncwarp();
    }
    for (int i = 0; i < steps; ++i) {
        const int token = first + i, slot = token * TOP_K + lane;
        if (token >= a.tokens) return;
        if (STEPS > 1) {  // written by this lane before
            c.id = lane < TOP_K ? static_cast<int>(a.ids[slot]) : 0;
            c.used = lane < TOP_K && a.weights[slot] != 0.0f;
        }
        unsigned two = 0;
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const unsigned even = __shfl_sync(WARP_MASK, before.even[p], c.id / WIDE);
            const unsigned odd = __shfl_sync(WARP_MASK, before.odd[p], c.id / WIDE);
            if (c.id % WIDE / 4 == p) two = c.id % WIDE % 2 ? odd : even;
        }
        unsigned to = s.begin[c.id] + (two >> (c.id % WIDE % 4 / 2 * 16) & 0xffff);
        if (STEPS > 1) {
            to += mine[cell(c.id)];
            __syncwarp();
            if (c.used) mine[cell(c.id)] += 1;
            __syncwarp();
        }
        if (c.used) a.slots[to] = slot;
        if (drops) {
            place_dropped(a, lane, token, true, s.all, earlier, c.used);
            earlier += __popc(__ballot_sync(WARP_MASK, c.used));
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) route_grid(const __grid_constant__ RouteArgs a) {
    Shared& s = shared_memory<Shared>();
    Workspace& w = *static_cast<Workspace*>(a.workspace);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int steps = STEPS == 1 ? 1 : a.steps, first = (blockIdx.x * WARPS + warp) * steps;
    const bool real = first < a.tokens;
    Token t;
    Steering by;
    load_logits(a, min(first, a.tokens - 1), lane, t.x);
    load_steering(a, lane, by);
    const Scalars knobs = load_scalars(a);
    const bool live = real & is_live(a, min(first, a.tokens - 1));
    const unsigned launch = w.launches + 1;
    Bank& bank = w.bank[launch & 1];
    zero<ZEROED>(&s);
    if (blockIdx.x == gridDim.x - 1) {
        unsigned* other = reinterpret_cast<unsigned*>(&w.bank[~launch & 1]);
        for (int i = threadIdx.x; i < static_cast<int>(sizeof(Bank) / 4); i += 32 * WARPS) other[i] = 0;
    }
    __syncthreads();

    Choice c;
    const bool valued = a.joint && is_valued(knobs);
    const auto choose = [&](int i, bool votes) {
        const int token = min(first + i, a.tokens - 1);
        if (STEPS > 1) load_logits(a, token, lane, t.x);
        prepare(t, s.x[warp], by, lane);
        const bool counts = STEPS == 1 ? live : first + i < a.tokens && is_live(a, token);
        choose_own(s, t, knobs, lane, warp, votes && counts, c);
    };
    if (STEPS == 1) choose(0, a.joint);
    if (STEPS > 1 && a.joint)
        for (int i = 0; i < steps; ++i) choose(i, true);
    if (a.joint) {
        if (valued) load_floats(a.knobs, lane, by.cost, 0.0f);
        __syncthreads();
        vote_out(s, w, bank, launch, valued, lane, warp);
    }
    if (STEPS == 1 && a.sums) find_models_own(s, t, by, lane, warp, c);
    Pack inside = {};
    if (a.joint) {
        const Pack votes = votes_in(s, w, launch, valued, lane, warp);
        inside = join(s, a, knobs, by, lane, warp, votes, [&](int e) { return peek(&bank.value[e]); });
    }
    Tally tally;
    unsigned char* used = reinterpret_cast<unsigned char*>(s.used[warp]);
    for (int i = 0; i < steps; ++i) {
        const int token = first + i;
        if (STEPS > 1) {
            if (token >= a.tokens) break;
            choose(i, false);  // registers hold one token
            if (a.sums) find_models_own(s, t, by, lane, warp, c);
        }
        if (a.joint) choose_inside(s, t, inside, lane, warp, c);
        weigh_slots(s, t, knobs, a.scale, lane, warp, c);
        c.used = c.used && token < a.tokens;
        if (STEPS > 1) write_slots(a, lane, token, true, c);
        if (c.used) used[cell(c.id)] += 1;
        if (a.sums && (STEPS == 1 ? live : is_live(a, token))) {
            count(tally, lane, c);
            if (c.kept) atomicAdd(&s.counted[c.id], 1u);
        }
    }
    if (a.sums && lane == 0) s.tally[warp] = tally;
    __syncwarp();
    add_total(s, lane, warp);
    __syncthreads();
    if (a.sums) sums_out(s, bank);
    counts_out(s, w, launch, lane, warp);
    const Four seen = look(w, threadIdx.x / ROW * 4 % PLACES, threadIdx.x % ROW);
    if (STEPS == 1) write_slots(a, lane, first, real, c);
    const Before before = warps_before(s, lane, warp);
    const bool counting = a.sums && blockIdx.x == gridDim.x - 1;
    counts_in(s, w, launch, seen, counting);
    __syncthreads();
    if (warp == 0) find_places(s, a, lane);
    __syncthreads();
    place(s, a, before, lane, warp, first, steps, c);
    if (blockIdx.x == 0 && threadIdx.x == 0) w.launches = launch;
    if (counting && warp == WARPS - 1) {
        Tally all;
        unsigned rows[WIDE];
#pragma unroll
        for (int j = 0; j < WIDE; ++j) rows[j] = peek(&bank.counted[lane * WIDE + j]);
        if (lane == 0) all.mass = peek(&bank.mass), all.changed = peek(&bank.changed), all.live = peek(&bank.live);
        add_sums(a, lane, all, [&](int j) { return rows[j]; });
    }
}
