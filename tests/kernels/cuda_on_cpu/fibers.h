// Threads of blocks and warps as fibers of one CPU thread, and words on their way between them.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "alignment.h"

namespace cpu {

constexpr size_t STATIC_START = 16;  // of a structure whose size the compiler knows: a multiple of 16, of no more

struct Gate {  // fibers wait until `size` have arrived
    int count = 0, turn = 0;
};
struct Warp {
    Gate gate;
    unsigned long long word[32];
};
struct Block {
    Gate gate;
    SharedMemory shared;
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

struct Mail {  // a word on its way, and the count of bytes that it is for
    void* to;
    unsigned long long word;
    unsigned bytes;
    long long* box;
};

inline std::vector<Block> blocks;
inline std::vector<Mail> mail;
inline Gate everyone, before;
inline std::function<void()> launch_before = [] {};
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Fiber* now = nullptr;
inline ucontext_t home;
inline unsigned threads_per_block = 0, num_blocks = 0, seed = 1;
inline std::function<void()> body;
inline bool failed = false;

[[noreturn]] inline void fail(const char* what, uint32_t at) {
    std::fprintf(stderr, "thread %u of block %u: %s at %u\n", now->thread, now->block, what, at);
    failed = true;
    swapcontext(&now->context, &home);
    std::abort();  // nothing goes on after a failure
}
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

// Words arrive in any order, each after any time.
template <class Random>
void deliver(Random&& random, bool all) {
    for (size_t n = 0; n < mail.size();) {
        if (!all && random() % 4 > 0) {
            ++n;
            continue;
        }
        std::memcpy(mail[n].to, &mail[n].word, mail[n].bytes);
        if (mail[n].box) *mail[n].box -= mail[n].bytes;
        mail[n] = mail.back();
        mail.pop_back();
    }
}

// Whether the kernel ended; `shared` is the size of its structure in shared memory, wherever that begins.
inline bool launch(unsigned grid, unsigned threads, size_t shared, std::function<void()> kernel) {
    body = std::move(kernel);
    num_blocks = grid, threads_per_block = threads, everyone = before = Gate(), failed = false;
    blocks.clear(), fibers.clear(), mail.clear();
    for (unsigned b = 0; b < grid; ++b) {
        blocks.push_back({Gate(), SharedMemory(STATIC_START + shared, 0xcd), std::vector<Warp>(threads / 32)});
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
    // Warps run in another order in every turn, some much more slowly than others, and some blocks start late, so that
    // what is read before it is there shows.
    const auto random = [] { return (seed = seed * 1664525u + 1013904223u) >> 8; };
    std::vector<unsigned> order(fibers.size() / 32), speed(order.size());
    for (unsigned w = 0; w < order.size(); ++w) order[w] = w, speed[w] = 1 + random() % 8;
    std::vector<unsigned> late(grid);  // turns until a block starts
    for (unsigned& turns : late) turns = random() % 4 ? 0 : random() % 800;
    for (size_t left = fibers.size(), idle = 0; left > 0;) {
        for (size_t w = order.size(); w > 1; --w) std::swap(order[w - 1], order[random() % w]);
        const size_t before = left;
        for (unsigned w : order) {
            if (random() % 8 >= speed[w] || late[w * 32 / threads] > 0) continue;
            for (unsigned lane = 0; lane < 32; ++lane) {
                now = fibers[w * 32 + lane].get();
                if (now->done) continue;
                swapcontext(&home, &now->context);
                if (failed) return false;
                left -= now->done;
            }
        }
        for (unsigned& turns : late) turns -= turns > 0;
        deliver(random, false);
        idle = left < before ? 0 : idle + 1;
        if (idle > 100000) {  // a barrier that somebody never reaches
            std::fprintf(stderr, "deadlock: %zu threads wait\n", left);
            return false;
        }
    }
    deliver(random, true);
    return true;
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
