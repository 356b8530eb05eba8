// How the blocks of a grid tell each other what they have: words in device memory that say by themselves which launch they
// are of, so that nothing stands between a block's word and its readers. `S` is the kernel's shared memory.
#pragma once

constexpr int PLACES = 256;               // most blocks
constexpr int HALVES = STEPS == 1 ? 1 : 2;  // words for a pack of counts: bytes, or its even and its odd bytes widened
constexpr int ROW = 32 * PACKS * HALVES;
constexpr int SPANS = PADDED / 32;  // words that hold a bit for each expert
constexpr int EIGHTS = (WARPS + 7) / 8;
constexpr int TOGETHER = 32 * WARPS / ROW;  // rows that a block reads at a time, in fours
static_assert(TOGETHER > 0, "a thread for each word of a row");

// What the blocks add up, in device memory. Two of them take turns: a launch clears the one for the next.
struct Bank {
    unsigned long long value[PADDED];
    unsigned counted[PADDED];
    unsigned long long mass;
    unsigned changed, live;
};

struct Workspace {
    unsigned launches, padding[3];
    Bank bank[2];
    unsigned long long votes[SPANS][PLACES];  // the launch above the votes
    unsigned rows[PLACES][ROW];               // used slots of each expert in a block, marked: see `mark_of`
};

// Two bits in each field of a row that tell the launch from the one before: every launch writes all places.
__device__ __forceinline__ unsigned mark_of(unsigned launch) { return (launch & 3u) * (HALVES == 1 ? 0x40404040u : 0x40004000u); }
constexpr unsigned MARKS = HALVES == 1 ? 0xc0c0c0c0u : 0xc000c000u;

// Votes and values of this block, to all of them.
template <class S>
__device__ __forceinline__ void vote_out(S& s, Workspace& w, Bank& bank, unsigned launch, bool valued, int lane,
                                         int warp) {
    if (valued) {
        for (int e = threadIdx.x; e < PADDED; e += 32 * WARPS)
            if (s.value[e]) atomicAdd(&bank.value[e], s.value[e]);
        __syncthreads();
        if (warp < SPANS) fence();  // whoever sees this block's votes sees its values
    }
    for (int span = warp; span < SPANS; span += WARPS) {
        const unsigned votes = __ballot_sync(WARP_MASK, s.vote[cell(32 * span + lane)] != 0);
        if (lane == 0) publish(&w.votes[span][blockIdx.x], static_cast<unsigned long long>(launch) << 32 | votes);
    }
}

// The votes of all blocks, for this lane's experts.
template <class S>
__device__ __forceinline__ Pack votes_in(S& s, const Workspace& w, unsigned launch, bool valued, int lane, int warp) {
    const int groups = (gridDim.x + 31) / 32;
    for (int item = warp; item < SPANS * groups; item += WARPS) {
        const int span = item % SPANS, block = item / SPANS * 32 + lane;
        unsigned long long word = 0;
        if (block < static_cast<int>(gridDim.x)) {
            do {
                word = peek(&w.votes[span][block]);
            } while (word >> 32 != launch);
        }
        const unsigned votes = __reduce_or_sync(WARP_MASK, static_cast<unsigned>(word));
        if (lane == 0 && votes) atomicOr(&s.voted[span], votes);
        if (valued) fence();
    }
    __syncthreads();
    const unsigned bits = s.voted[lane * WIDE / 32] >> (lane * WIDE % 32);
    Pack votes = {};
#pragma unroll
    for (int j = 0; j < WIDE; ++j) add_to(votes, j, bits >> j & 1u);
    return votes;
}

// Adds this warp's counts to those of its eight.
template <class S>
__device__ __forceinline__ void add_total(S& s, int lane, int warp) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const unsigned here = s.used[warp][lane * PACKS + p];
        unsigned* total = s.total[warp / 8] + lane * PACKS + p;
        atomicAdd(total, HALVES == 1 ? here : here & 0x00ff00ff);
        if (HALVES == 2) atomicAdd(total + ROW / 2, here >> 8 & 0x00ff00ff);
    }
}

// Counts of this block, by its first warp; the last one marks the places of blocks that there are not.
template <class S>
__device__ __forceinline__ void counts_out(S& s, Workspace& w, unsigned launch, int lane, int warp) {
    const unsigned mark = mark_of(launch);
    if (warp == 0) {
#pragma unroll
        for (int i = lane; i < ROW; i += 32) {
            unsigned counts = mark;
#pragma unroll
            for (int n = 0; n < EIGHTS; ++n) counts += s.total[n][i];
            publish(&w.rows[blockIdx.x][i], counts);
        }
    }
    if (warp == WARPS - 1) {
        for (int place = blockIdx.x + gridDim.x; place < PLACES; place += gridDim.x)
            for (int i = lane; i < ROW; i += 32) publish(&w.rows[place][i], mark);
    }
}

// The same word of the rows of four neighbouring blocks.
__device__ __forceinline__ Four look(const Workspace& w, unsigned first, unsigned word) {
    return {peek(&w.rows[first][word]), peek(&w.rows[first + 1][word]), peek(&w.rows[first + 2][word]),
            peek(&w.rows[first + 3][word])};
}

__device__ __forceinline__ bool is_stale(const Four& four, unsigned mark) {
    return (((four.word[0] ^ mark) | (four.word[1] ^ mark) | (four.word[2] ^ mark) | (four.word[3] ^ mark)) & MARKS) != 0;
}

// Adds up the counts of all blocks and of those before this one, a thread four blocks at a time; `seen` is its first look
// at the first four. Sums of four still fit the fields. The block that is `counting` goes on to read the bank.
template <class S>
__device__ __forceinline__ void counts_in(S& s, const Workspace& w, unsigned launch, Four seen, bool counting) {
    const unsigned mark = mark_of(launch), word = threadIdx.x % ROW;
    for (unsigned first = threadIdx.x / ROW * 4; first < gridDim.x && threadIdx.x < TOGETHER * ROW; first += 4 * TOGETHER) {
        if (first >= 4 * TOGETHER) seen = look(w, first, word);
        while (is_stale(seen, mark)) seen = look(w, first, word);
        const auto add = [&](unsigned* sum, unsigned counts) {
            atomicAdd(&sum[word], HALVES == 1 ? counts & 0x00ff00ff : counts);
            if (HALVES == 1) atomicAdd(&sum[32 * PACKS + word], counts >> 8 & 0x00ff00ff);
        };
        const unsigned all = seen.word[0] + seen.word[1] + seen.word[2] + seen.word[3] - 4 * mark;
        add(s.sum[0], all);
        if (blockIdx.x <= first) continue;
        unsigned before = 0;
#pragma unroll
        for (int n = 0; n < 3; ++n) before += first + n < blockIdx.x ? seen.word[n] - mark : 0;
        add(s.sum[1], blockIdx.x >= first + 4 ? all : before);
    }
    if (counting) fence();
}

// An expert of this lane in sums of 16 bits.
__device__ __forceinline__ unsigned field_at(const unsigned (&sum)[64 * PACKS], int lane, int j) {
    return sum[j % 2 * 32 * PACKS + lane * PACKS + j / 4] >> (j % 4 / 2 * 16) & 0xffff;
}

// Rows and tallies of this block, to the bank; by all threads, behind a barrier.
template <class S>
__device__ __forceinline__ void sums_out(S& s, Bank& bank) {
    for (int e = threadIdx.x; e < PADDED; e += 32 * WARPS)
        if (s.counted[e]) atomicAdd(&bank.counted[e], s.counted[e]);
    if (threadIdx.x < WARPS && s.tally[threadIdx.x].live) {
        const Tally& tally = s.tally[threadIdx.x];
        atomicAdd(&bank.mass, tally.mass), atomicAdd(&bank.changed, tally.changed), atomicAdd(&bank.live, tally.live);
    }
    __syncthreads();
    if (threadIdx.x < 32) fence();  // whoever sees this block's counts sees these
}
