// The GPU on a CPU, for tests: every thread is a fiber, and each collective lets all its fibers arrive, twice.
// Stands in for the device files of kernels that speak with CUDA's own words; slow, exact, and only what these kernels use. It shows neither the order
// of memory on the device nor its rounding; shared memory and outputs begin with garbage.
#pragma once
#include "fibers.h"
#include "numbers.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define IN_CLUSTER
#define WARP_MASK 0xffffffffu
#define threadIdx (cpu::Index{cpu::now->thread})
#define blockIdx (cpu::Index{cpu::now->block})
#define blockDim (cpu::Index{cpu::threads_per_block})
#define gridDim (cpu::Index{cpu::num_blocks})

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

using std::max;
using std::min;

inline float __int_as_float(int v) { return cpu::bits<float>(v); }
inline int __float_as_int(float v) { return cpu::bits<int>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }

template <class T>
T __shfl_sync(unsigned, T value, int from) {
    return cpu::narrowed<T>(cpu::exchange(cpu::widened(value), [&](auto* w) { return w[from % 32]; }));
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int step) {
    return cpu::narrowed<T>(cpu::exchange(cpu::widened(value), [&](auto* w) { return w[cpu::lane() ^ step]; }));
}
template <class T>
T __shfl_up_sync(unsigned, T value, int step) {
    const int from = static_cast<int>(cpu::lane()) - step;
    return cpu::narrowed<T>(cpu::exchange(cpu::widened(value), [&](auto* w) { return w[from < 0 ? cpu::lane() : from]; }));
}
inline unsigned __ballot_sync(unsigned, bool value) {
    return cpu::exchange(value, [](auto* w) {
        unsigned all = 0;
        for (int l = 0; l < 32; ++l) all |= static_cast<unsigned>(w[l] != 0) << l;
        return all;
    });
}
inline bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }
inline int __reduce_max_sync(unsigned, int value) {
    return cpu::exchange(cpu::widened(value), [](auto* w) {
        int best = cpu::narrowed<int>(w[0]);
        for (int l = 1; l < 32; ++l) best = std::max(best, cpu::narrowed<int>(w[l]));
        return best;
    });
}
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
    return cpu::exchange(value, [](auto* w) {
        unsigned sum = 0;
        for (int l = 0; l < 32; ++l) sum += static_cast<unsigned>(w[l]);
        return sum;
    });
}
inline unsigned __reduce_or_sync(unsigned, unsigned value) {
    return cpu::exchange(value, [](auto* w) {
        unsigned any = 0;
        for (int l = 0; l < 32; ++l) any |= static_cast<unsigned>(w[l]);
        return any;
    });
}
inline unsigned __byte_perm(unsigned x, unsigned, unsigned selector) {
    unsigned result = 0;
    for (int n = 0; n < 4; ++n) result |= (x >> (8 * (selector >> (4 * n) & 3)) & 0xffu) << (8 * n);
    return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return by % 32 ? high << by % 32 | low >> (32 - by % 32) : high;
}
inline void fence() {}
inline void __syncwarp() { cpu::wait(cpu::warp().gate, 32); }
inline void __syncthreads() { cpu::wait(cpu::block().gate, cpu::threads_per_block); }
inline bool __syncthreads_or(bool value) {
    cpu::Block& b = cpu::block();
    b.any |= value;
    __syncthreads();
    const bool any = b.any != 0;
    __syncthreads();
    b.any = 0;
    return any;
}
template <class T, class U>
T atomicAdd(T* where, U value) {
    const T old = *where;
    *where += value;
    return old;
}
inline unsigned atomicOr(unsigned* where, unsigned value) {
    const unsigned old = *where;
    *where |= value;
    return old;
}

// What the launch before writes appears when all threads wait for it.
inline void wait_for_launch_before() {
    const int turn = cpu::arrive(cpu::before, cpu::threads_per_block * cpu::num_blocks);
    if (cpu::before.turn != turn) cpu::launch_before();
    while (cpu::before.turn == turn) cpu::yield();
}
inline void let_next_launch_begin() {}

template <class S>
S& shared_memory() {
    return *reinterpret_cast<S*>(cpu::block().shared.data() + cpu::STATIC_START);
}
template <class T>
T* cpu_peer(const T* own, unsigned rank) {
    const auto offset = reinterpret_cast<const unsigned char*>(own) - cpu::block().shared.data();
    return reinterpret_cast<T*>(cpu::blocks[rank].shared.data() + offset);
}
struct Inbox {
    long long bytes;  // still to come; much more before the block has said how many
};
constexpr long long NOT_SAID = 1ll << 40;
inline void inbox_open(Inbox& box) { box.bytes = NOT_SAID; }
inline void inbox_expect(Inbox& box, unsigned bytes) { box.bytes += bytes - NOT_SAID; }
inline void inbox_wait(const Inbox& box) {
    while (static_cast<const volatile Inbox&>(box).bytes != 0) cpu::yield();
}
inline void cluster_arrive() { cpu::now->turn = cpu::arrive(cpu::everyone, cpu::threads_per_block * cpu::num_blocks); }
inline void cluster_wait() {
    while (cpu::everyone.turn == cpu::now->turn) cpu::yield();
}
template <class T>
void push(const T* own, unsigned rank, T value, const Inbox& box) {
    cpu::expect_multiple(own, sizeof(T), "a word sent to a place that is not aligned");
    cpu::mail.push_back({cpu_peer(own, rank), cpu::widened(value), sizeof(T), &cpu_peer(&box, rank)->bytes});
}
template <class T>
void publish(T* word, T value) {
    cpu::expect_multiple(word, sizeof(T), "a word published at a place that is not aligned");
    cpu::mail.push_back({word, value, sizeof(T), nullptr});
}
template <class T>
T peek(const T* word) {
    cpu::yield();
    return *static_cast<const volatile T*>(word);
}
struct Four {
    unsigned word[4];
};
inline Four peek_four(const unsigned* words) {
    cpu::expect_multiple(words, 16, "four words looked at that are not aligned");
    return {peek(words), peek(words + 1), peek(words + 2), peek(words + 3)};
}
