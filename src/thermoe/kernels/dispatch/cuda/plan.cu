// The dispatch plan of given ids in one launch: a stable sort of the slots by expert, dropped ones last. Each warp takes
// 32 * STEPS neighbouring slots, and its lanes rank those that go to the same expert. The blocks, which are all resident,
// meet once, over their counts: words in device memory that say by themselves of which launch they are. No place is
// handed out by an atomic, so that every run gives the same plan.
//
// The Python part defines EXPERTS, ID_BYTES, WEIGHT_BYTES, WARPS of a block, BLOCKS, and STEPS, the slots of a thread.

struct PlanArgs {
    const void* ids;      // (N,) whole numbers
    const void* weights;  // (N,) floating point
    int* slots;           // (N,)
    int* offsets;         // (EXPERTS + 1,)
    void* workspace;      // zeros before its first launch; none where BLOCKS is 1
    int num_slots;
};

constexpr int PADDED = (EXPERTS + 31) / 32 * 32;
constexpr int WIDE = PADDED / 32;  // experts of a lane where a warp holds them all
constexpr int DROPPED = PADDED;    // the group of the slots that nobody computes, and of those beyond the last
constexpr int PAIRS = PADDED / 2;  // counts of two neighbouring groups lie in one word
constexpr int QUADS = PAIRS / 4;
constexpr int SHARE = 32 * STEPS;  // slots of a warp
constexpr int ROUNDS = (BLOCKS + 31) / 32;
constexpr bool PACKED = BLOCKS * WARPS * SHARE < 65536;  // sums over all blocks still fit half a word
constexpr int FIELDS = PACKED ? 4 : 8;
constexpr unsigned MARKS = 0xc0000000u;  // two bits of a word that tell the launch from the one before
static_assert(BLOCKS == 1 || WARPS * SHARE < 16384, "counts of a block leave room for the mark");
static_assert(WARPS * SHARE < 65536, "counts of a block fit half a word");

struct Shared {
    unsigned total[PADDED], before[PADDED];  // slots of each expert in all blocks, and in those before this one
    unsigned begin[PADDED + 1];              // where this block's slots of each group begin
    unsigned used[WARPS][PAIRS + 1];         // slots of each group in a warp; then in the warps before it
};

// Every launch writes all words, for it always has BLOCKS blocks.
struct Workspace {
    unsigned launches, padding[3];
    unsigned counts[QUADS][BLOCKS][4];
};

#if ID_BYTES == 8
typedef unsigned long long Id;
#else
typedef unsigned Id;
#endif
#if WEIGHT_BYTES == 8
typedef unsigned long long Weight;
#elif WEIGHT_BYTES == 4
typedef unsigned Weight;
#else
typedef unsigned short Weight;
#endif

__device__ __forceinline__ unsigned half_of(unsigned pair, unsigned which) { return pair >> 16 * (which & 1u) & 0xffffu; }

// Negative ids are large ones; a weight is zero where all bits but its sign are.
__device__ __forceinline__ unsigned group_at(const PlanArgs& a, int slot) {
    if (slot >= a.num_slots) return DROPPED;
    const Id id = static_cast<const Id*>(a.ids)[slot];
    const Weight weight = static_cast<const Weight*>(a.weights)[slot];
    return (id < EXPERTS) & (static_cast<Weight>(weight << 1) != 0) ? static_cast<unsigned>(id) : DROPPED;
}

// Lanes whose slots are of the same group as this one's.
__device__ __forceinline__ unsigned lanes_alike(unsigned group) {
    unsigned alike = WARP_MASK;
#pragma unroll
    for (int bit = 0; (DROPPED >> bit) > 0; ++bit) {
        const bool set = (group >> bit & 1u) != 0;
        const unsigned lanes = __ballot_sync(WARP_MASK, set);
        alike &= set ? lanes : ~lanes;
    }
    return alike;
}

// How many of the warp's slots of the same group come before this lane's; adds these 32 slots to the warp's counts.
__device__ __forceinline__ unsigned rank(unsigned (&used)[PAIRS + 1], int lane, unsigned group) {
    const unsigned alike = lanes_alike(group), before = __popc(alike & ((1u << lane) - 1));
    const unsigned earlier = STEPS == 1 ? 0 : half_of(used[group / 2], group);
    if (STEPS > 1) __syncwarp();
    if (before == 0) atomicAdd(&used[group / 2], static_cast<unsigned>(__popc(alike)) << 16 * (group & 1u));
    if (STEPS > 1) __syncwarp();
    return earlier + before;
}

// Counts of this block, to all of them; leaves in the place of each warp's counts those of the warps before it.
__device__ __forceinline__ void counts_out(Shared& s, Workspace& w, unsigned mark) {
    for (int pair = threadIdx.x; pair <= PAIRS; pair += 32 * WARPS) {
        unsigned here[WARPS], sum = 0;
#pragma unroll
        for (int n = 0; n < WARPS; ++n) here[n] = s.used[n][pair];
#pragma unroll
        for (int n = 0; n < WARPS; ++n) sum += here[n];
        if (pair < PAIRS && BLOCKS > 1) publish(&w.counts[pair / 4][blockIdx.x][pair % 4], sum | mark);
        if (pair < PAIRS && BLOCKS == 1) {
            s.total[2 * pair] = sum & 0xffffu, s.total[2 * pair + 1] = sum >> 16;
            s.before[2 * pair] = s.before[2 * pair + 1] = 0;
        }
        sum = 0;
#pragma unroll
        for (int n = 0; n < WARPS; ++n) s.used[n][pair] = sum, sum += here[n];
    }
}

__device__ __forceinline__ bool is_stale(const Four& four, unsigned mark) {
    return (((four.word[0] ^ mark) | (four.word[1] ^ mark) | (four.word[2] ^ mark) | (four.word[3] ^ mark)) & MARKS) != 0;
}

// Adds up the counts of all blocks and of those before this one: a warp eight experts at a time, a lane a block.
__device__ __forceinline__ void counts_in(Shared& s, const Workspace& w, unsigned mark, int lane, int warp) {
    for (int quad = warp; quad < QUADS; quad += WARPS) {
        Four seen[ROUNDS];
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) seen[r] = peek_four(w.counts[quad][min(32 * r + lane, BLOCKS - 1)]);
        unsigned all[FIELDS] = {}, before[FIELDS] = {};
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) {
            const int block = 32 * r + lane;
            while (is_stale(seen[r], mark)) seen[r] = peek_four(w.counts[quad][min(block, BLOCKS - 1)]);
#pragma unroll
            for (int f = 0; f < FIELDS; ++f) {
                const unsigned word = seen[r].word[PACKED ? f : f / 2] & ~MARKS;
                const unsigned count = block >= BLOCKS ? 0 : PACKED ? word : half_of(word, f);
                all[f] += count;
                before[f] += block < static_cast<int>(blockIdx.x) ? count : 0;
            }
        }
#pragma unroll
        for (int f = 0; f < FIELDS; ++f) {
            all[f] = __reduce_add_sync(WARP_MASK, all[f]);
            before[f] = __reduce_add_sync(WARP_MASK, before[f]);
        }
        if (lane > 0) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int f = PACKED ? j / 2 : j;
            s.total[8 * quad + j] = PACKED ? half_of(all[f], j) : all[f];
            s.before[8 * quad + j] = PACKED ? half_of(before[f], j) : before[f];
        }
    }
}

// Where the block's slots of each group begin, by one warp; block 0 writes the offsets.
__device__ __forceinline__ void find_places(Shared& s, const PlanArgs& a, int lane) {
    unsigned own = 0, earlier = 0;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) own += s.total[lane * WIDE + j], earlier += s.before[lane * WIDE + j];
    unsigned end = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const unsigned left = __shfl_up_sync(WARP_MASK, end, step);
        if (lane >= step) end += left;
    }
    earlier = __reduce_add_sync(WARP_MASK, earlier);
    unsigned begin = end - own;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) {
        const int e = lane * WIDE + j;
        if (blockIdx.x == 0 && e < EXPERTS) a.offsets[e] = begin;
        s.begin[e] = begin + s.before[e];
        begin += s.total[e];
    }
    if (lane < 31) return;
    s.begin[DROPPED] = end + blockIdx.x * (WARPS * SHARE) - earlier;  // what is before this block and not used is dropped
    if (blockIdx.x == 0) a.offsets[EXPERTS] = end;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) dispatch_plan(const __grid_constant__ PlanArgs a) {
    Shared& s = shared_memory<Shared>();
    Workspace& w = *static_cast<Workspace*>(a.workspace);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first = (blockIdx.x * WARPS + warp) * SHARE + lane;
    const unsigned launch = BLOCKS > 1 ? w.launches + 1 : 0, mark = launch << 30;
    unsigned group[STEPS], place[STEPS];
#pragma unroll
    for (int i = 0; i < STEPS; ++i) group[i] = group_at(a, first + 32 * i);
    for (int pair = lane; pair <= PAIRS; pair += 32) s.used[warp][pair] = 0;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < STEPS; ++i) place[i] = rank(s.used[warp], lane, group[i]);
    __syncthreads();
    counts_out(s, w, mark);
    if (BLOCKS > 1) counts_in(s, w, mark, lane, warp);
    __syncthreads();
    if (warp == 0) find_places(s, a, lane);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int slot = first + 32 * i;
        place[i] += s.begin[group[i]] + half_of(s.used[warp][group[i] / 2], group[i]);
        if (slot < a.num_slots) a.slots[place[i]] = slot;
    }
    if (BLOCKS > 1 && blockIdx.x == 0 && threadIdx.x == 0) w.launches = launch;  // all have read it
}
