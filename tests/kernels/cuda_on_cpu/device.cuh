// The GPU on a CPU, for tests: every thread is a fiber, and each collective lets all its fibers arrive, twice.
// Stands in for the kernels' own device.cuh; slow, exact, and only what these kernels use. It shows neither the order
// of memory on the device nor its rounding; shared memory and outputs begin with garbage.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

namespace cpu {

struct Gate {  // fibers wait until `size` have arrived
    int count = 0, turn = 0;
};
struct Warp {
    Gate gate;
    unsigned long long word[32];
};
struct Block {
    Gate gate;
    std::vector<unsigned char> shared;
    std::vector<Warp> warps;
    int any = 0;
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    unsigned thread, block;
    int turn = 0;  // of the barrier of all blocks at which it has arrived
    bool done = false;
};

inline std::vector<Block> blocks;
inline Gate everyone;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Fiber* now = nullptr;
inline ucontext_t home;
inline unsigned threads_per_block = 0, num_blocks = 0, seed = 1;
inline std::function<void()> body;

inline void yield() { swapcontext(&now->context, &home); }

inline int arrive(Gate& gate, int size) {
    const int turn = gate.turn;
    if (++gate.count == size) {
        gate.count = 0;
        ++gate.turn;
    }
    return turn;
}

inline void wait(Gate& gate, int size) {
    const int turn = arrive(gate, size);
    while (gate.turn == turn) yield();
}

inline Block& block() { return blocks[now->block]; }
inline Warp& warp() { return block().warps[now->thread / 32]; }
inline unsigned lane() { return now->thread % 32; }

// Every lane gives a word and sees the words of all.
template <class Read>
auto exchange(unsigned long long word, Read&& read) {
    Warp& w = warp();
    w.word[lane()] = word;
    wait(w.gate, 32);
    auto result = read(w.word);
    wait(w.gate, 32);
    return result;
}

inline void start() {
    body();
    now->done = true;
    yield();
}

inline void launch(unsigned grid, unsigned threads, size_t shared, std::function<void()> kernel) {
    body = std::move(kernel);
    num_blocks = grid, threads_per_block = threads, everyone = Gate();
    blocks.assign(grid, Block());
    fibers.clear();
    for (unsigned b = 0; b < grid; ++b) {
        blocks[b].shared.assign(shared, 0xcd);
        blocks[b].warps.resize(threads / 32);
        for (unsigned t = 0; t < threads; ++t) {
            fibers.push_back(std::make_unique<Fiber>());
            Fiber& f = *fibers.back();
            f.thread = t, f.block = b;
            f.stack.resize(1 << 16);
            getcontext(&f.context);
            f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = f.stack.size();
            f.context.uc_link = &home;
            makecontext(&f.context, start, 0);
        }
    }
    // Warps run in another order in every turn, and some much more slowly than others, so that what is read before it
    // is there shows.
    const auto random = [] { return (seed = seed * 1664525u + 1013904223u) >> 8; };
    std::vector<unsigned> order(fibers.size() / 32), speed(order.size());
    for (unsigned w = 0; w < order.size(); ++w) order[w] = w, speed[w] = 1 + random() % 8;
    for (size_t left = fibers.size(), idle = 0; left > 0;) {
        for (size_t w = order.size(); w > 1; --w) std::swap(order[w - 1], order[random() % w]);
        const size_t before = left;
        for (unsigned w : order) {
            if (random() % 8 >= speed[w]) continue;
            for (unsigned lane = 0; lane < 32; ++lane) {
                now = fibers[w * 32 + lane].get();
                if (now->done) continue;
                swapcontext(&home, &now->context);
                left -= now->done;
            }
        }
        idle = left < before ? 0 : idle + 1;
        if (idle > 100000) std::abort();  // a barrier that somebody never reaches
    }
}

template <class To, class From>
To bits(From from) {
    To to;
    static_assert(sizeof(To) == sizeof(From));
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

template <class T>
unsigned long long widened(T value) {
    unsigned long long word = 0;
    std::memcpy(&word, &value, sizeof(T));
    return word;
}

template <class T>
T narrowed(unsigned long long word) {
    T value;
    std::memcpy(&value, &word, sizeof(T));
    return value;
}

struct Index {
    unsigned x;
};

}  // namespace cpu

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

struct float4 {
    float x, y, z, w;
};
struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
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

template <class S>
S& shared_memory() {
    return *reinterpret_cast<S*>(cpu::block().shared.data());
}
// A block alone in its cluster meets itself when it waits, as on the GPU.
inline void cluster_arrive() {
    if (CLUSTER > 1) cpu::now->turn = cpu::arrive(cpu::everyone, cpu::threads_per_block * cpu::num_blocks);
}
inline void cluster_wait() {
    if (CLUSTER == 1) return __syncthreads();
    while (cpu::everyone.turn == cpu::now->turn) cpu::yield();
}
template <class T>
T cpu_peer(const T* own, unsigned rank) {
    const auto offset = reinterpret_cast<const unsigned char*>(own) - cpu::block().shared.data();
    return *reinterpret_cast<const T*>(cpu::blocks[rank].shared.data() + offset);
}
inline unsigned peer_word(const unsigned* own, unsigned rank) { return cpu_peer(own, rank); }
inline unsigned long long peer_long(const unsigned long long* own, unsigned rank) { return cpu_peer(own, rank); }
constexpr unsigned TURNING = 0x80000000u;
inline unsigned grid_phase(const unsigned* word) { return *word & TURNING; }
inline void grid_arrive(unsigned* word) {
    __syncthreads();
    if (cpu::now->thread == 0) *word += cpu::now->block == 0 ? TURNING - (cpu::num_blocks - 1) : 1u;
}
inline void grid_wait(const unsigned* word, unsigned phase) {
    while (cpu::now->thread == 0 && (*static_cast<const volatile unsigned*>(word) & TURNING) == phase) cpu::yield();
    __syncthreads();
}
inline float from_bf16(unsigned short v) { return cpu::bits<float>(static_cast<unsigned>(v) << 16); }
inline float from_f16(unsigned short v) { return static_cast<float>(cpu::bits<_Float16>(v)); }
