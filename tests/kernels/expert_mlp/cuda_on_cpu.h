// The decode kernel's primitives on a CPU: every thread of every block is a coroutine, and whatever a thread may wait
// for is a condition. Copies land late, at random, and spoil their destination when they start: a missing wait, a slot
// freed too early or a circle of waits shows as a wrong result or as a deadlock, not as luck.
//
// Two schedules. In the even one all threads take turns. In the uneven one warps are ranked, and the first that can go
// on does: it runs as far ahead as its barriers let it, while the last stand still until nobody else can move. Ranks
// change at random, some copies land only when nothing else can happen, and warps that poll fall behind.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <unordered_map>
#include <utility>
#include <vector>

#define DEV inline

struct alignas(64) TensorMap {  // 128 bytes, as on the device
  const uint8_t* base;
  int64_t row_bytes, rows, box_bytes;
  uint64_t unused[12];
};
static_assert(sizeof(TensorMap) == 128);

constexpr uint32_t SHARED_START = 1024, SHARED_SIZE = 228 * 1024;

namespace cpu {

constexpr int NEVER_BY_ITSELF = 1 << 30;  // lands when nothing else can happen

struct Barrier {
  int expected = 0, pending = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;
  void settle() {
    if (pending == 0 && bytes == 0) ++phase, pending = expected;
  }
};
struct Group {
  int arrived = 0;
  uint32_t generation = 0;
};
struct Warp {
  Group group;
  int registers;
  uint32_t in[32][10];
  uint32_t out[32][4];
};
struct Block {
  std::vector<uint8_t> shared = std::vector<uint8_t>(SHARED_SIZE, 0xff);
  std::unordered_map<uint32_t, Barrier> barriers;
  Group groups[16];
  std::vector<Warp> warps;
  int spare_registers = 0;
};
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Block* block;
  int thread, index;
  bool done = false, spins = false;
  std::function<bool()> ready;
  std::vector<std::function<void()>> words;  // copies not yet joined to a barrier
};
struct Machine {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Fiber>> fibers;  // 32 of a warp, warps of a block, blocks
  std::deque<std::pair<int, std::function<void()>>> flights;  // steps left, what lands
  bool uneven = false;
  ucontext_t scheduler;
  Fiber* current = nullptr;
  std::mt19937 random;
  int threads = 0;
  std::function<void()> kernel;
};
inline Machine* machine = nullptr;
inline Fiber& self() { return *machine->current; }

[[noreturn]] inline void fail(const char* what, uint32_t at) {
  std::fprintf(stderr, "thread %d of block %d: %s at %u\n", self().thread, self().index, what, at);
  std::abort();
}
inline void wait_until(std::function<bool()> ready) {
  if (ready()) return;
  self().ready = std::move(ready);
  swapcontext(&self().context, &machine->scheduler);
}
inline uint8_t* at(uint32_t address, uint32_t size) {
  if (address < SHARED_START || address + size > SHARED_SIZE) fail("outside shared memory", address);
  if (address % size) fail("not aligned in shared memory", address);
  return self().block->shared.data() + address;
}
inline void meet(Group& group, int threads, const std::function<void()>& last = [] {}) {
  uint32_t generation = group.generation;
  if (++group.arrived == threads) {
    last();
    group.arrived = 0, ++group.generation;
  } else {
    wait_until([&group, generation] { return group.generation != generation; });
  }
}
inline Warp& warp() { return self().block->warps[self().thread / 32]; }
inline void launch_copy(std::function<void()> land) {
  const int delays[] = {0, 300, 3000, NEVER_BY_ITSELF};
  const int choice = static_cast<int>(machine->random() % 4);
  machine->flights.emplace_back(machine->uneven ? delays[choice] : choice, std::move(land));
}
inline float bf16(uint32_t bits) {
  uint32_t wide = bits << 16;
  float v;
  std::memcpy(&v, &wide, 4);
  return v;
}

inline void enter() {
  machine->kernel();
  self().done = true;
  swapcontext(&self().context, &machine->scheduler);
}

inline void resume(Fiber& fiber) {
  fiber.ready = nullptr, fiber.spins = false, machine->current = &fiber;
  swapcontext(&machine->scheduler, &fiber.context);
}
inline bool can_resume(const Fiber& fiber) { return !fiber.done && (!fiber.ready || fiber.ready()); }

inline bool land(bool forced) {  // the copies whose time has come, or one of the others
  bool moved = false;
  for (size_t i = machine->flights.size(); i > 0; --i) {
    auto flight = std::move(machine->flights.front());
    machine->flights.pop_front();
    if (flight.first > 0 && !(forced && !moved)) {
      flight.first -= flight.first != NEVER_BY_ITSELF;
      machine->flights.push_back(std::move(flight));
    } else {
      flight.second();
      moved = true;
    }
  }
  return moved;
}

inline bool step_all() {  // every thread that can goes on to its next wait
  bool moved = land(false) || !machine->flights.empty();
  for (auto& fiber : machine->fibers) {
    if (!can_resume(*fiber)) continue;
    moved |= !fiber->spins;
    resume(*fiber);
  }
  return moved;
}

inline bool step_first(std::vector<int>& ranks) {  // the first warp that can goes on to its next wait
  land(false);
  const size_t changed = machine->random() % (200 * ranks.size());
  if (changed < ranks.size()) {
    ranks.push_back(ranks[changed]);
    ranks.erase(ranks.begin() + changed);
  }
  for (size_t rank = 0, left = ranks.size(); left > 0; --left) {
    const int warp = ranks[rank], first = static_cast<int>(machine->random() % 32);
    bool moved = false, polled = false;
    for (int i = 0; i < 32; ++i) {
      Fiber& fiber = *machine->fibers[32 * warp + (first + i) % 32];
      if (!can_resume(fiber)) continue;
      (fiber.spins ? polled : moved) = true;
      resume(fiber);
    }
    if (polled) {
      ranks.erase(ranks.begin() + rank);
      ranks.push_back(warp);
    } else {
      ++rank;
    }
    if (moved) return true;
  }
  return land(true);
}

inline bool run(int blocks, int threads, uint32_t seed, bool uneven, int registers, std::function<void()> kernel) {
  Machine here;
  machine = &here;
  here.random.seed(seed), here.uneven = uneven, here.threads = threads, here.kernel = std::move(kernel);
  for (int b = 0; b < blocks; ++b) {
    here.blocks.push_back(std::make_unique<Block>());
    here.blocks.back()->warps.resize(threads / 32);
    for (Warp& warp : here.blocks.back()->warps) warp.registers = registers;
    for (int t = 0; t < threads; ++t) {
      auto fiber = std::make_unique<Fiber>();
      fiber->block = here.blocks.back().get(), fiber->thread = t, fiber->index = b;
      fiber->stack.reset(new char[1 << 16]);
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack.get(), fiber->context.uc_stack.ss_size = 1 << 16;
      fiber->context.uc_link = nullptr;
      makecontext(&fiber->context, enter, 0);
      here.fibers.push_back(std::move(fiber));
    }
  }
  std::vector<int> ranks(blocks * threads / 32);
  std::iota(ranks.begin(), ranks.end(), 0);
  std::shuffle(ranks.begin(), ranks.end(), here.random);
  const auto unfinished = [&here] {
    return std::count_if(here.fibers.begin(), here.fibers.end(), [](const auto& fiber) { return !fiber->done; });
  };
  for (int still = 0; still <= 8;) {  // steps in which nobody did more than look again
    still = (uneven ? step_first(ranks) : step_all()) ? 0 : still + 1;
    if (still > 0 && unfinished() == 0) return true;
  }
  std::fprintf(stderr, "deadlock: %d threads wait\n", static_cast<int>(unfinished()));
  return false;
}

}  // namespace cpu

DEV int thread_index() { return cpu::self().thread; }
DEV int block_index() { return cpu::self().index; }
DEV int num_blocks() { return static_cast<int>(cpu::machine->blocks.size()); }

template <int N>
void load_words(uint32_t at, uint32_t (&r)[N]) { std::memcpy(r, cpu::at(at, 4 * N), 4 * N); }
DEV void lds128(uint32_t at, uint32_t (&r)[4]) { load_words(at, r); }
DEV void lds64(uint32_t at, uint32_t (&r)[2]) { load_words(at, r); }
DEV uint32_t lds32(uint32_t at) {
  uint32_t r[1];
  load_words(at, r);
  return r[0];
}
DEV uint16_t lds16(uint32_t at) {
  uint16_t v;
  std::memcpy(&v, cpu::at(at, 2), 2);
  return v;
}
DEV float as_float(uint32_t v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
DEV uint32_t as_bits(float f) {
  uint32_t v;
  std::memcpy(&v, &f, 4);
  return v;
}
DEV float lds_float(uint32_t at) { return as_float(lds32(at)); }
DEV void sts128(uint32_t at, const uint32_t (&r)[4]) { std::memcpy(cpu::at(at, 16), r, 16); }
DEV void sts32(uint32_t at, uint32_t v) { std::memcpy(cpu::at(at, 4), &v, 4); }
DEV void sts16(uint32_t at, uint16_t v) { std::memcpy(cpu::at(at, 2), &v, 2); }
DEV void sts_float(uint32_t at, float v) { sts32(at, as_bits(v)); }
DEV void shared_or(uint32_t at, uint32_t v) { sts32(at, lds32(at) | v); }
DEV void shared_max(uint32_t at, uint32_t v) { sts32(at, lds32(at) > v ? lds32(at) : v); }

DEV void sync_block() { cpu::meet(cpu::self().block->groups[0], cpu::machine->threads); }
DEV void sync_warp() { cpu::meet(cpu::warp().group, 32); }
DEV void sync_group(int id, int threads) { cpu::meet(cpu::self().block->groups[id], threads); }
inline void hold_registers(int count, bool more) {
  cpu::Block& block = *cpu::self().block;
  cpu::Warp& warp = cpu::warp();
  cpu::meet(warp.group, 32, [&] {
    if (count % 8 || count < 24 || count > 256 || (more ? count < warp.registers : count > warp.registers))
      cpu::fail("registers taken or left the wrong way", count);
  });
  cpu::wait_until([&block, &warp, count] { return block.spare_registers >= count - warp.registers; });
  block.spare_registers -= count - warp.registers;
  warp.registers = count;
}
template <int REGISTERS>
void take_registers() { hold_registers(REGISTERS, true); }
template <int REGISTERS>
void leave_registers() { hold_registers(REGISTERS, false); }
DEV uint32_t shuffle(uint32_t v, const std::function<int(int)>& source) {
  cpu::Warp& warp = cpu::warp();
  int lane = cpu::self().thread % 32;
  warp.in[lane][0] = v;
  cpu::meet(warp.group, 32, [&] {
    for (int i = 0; i < 32; ++i) warp.out[i][0] = warp.in[source(i)][0];
  });
  return warp.out[lane][0];
}
DEV uint32_t shuffle_up(uint32_t v, int by) {
  return shuffle(v, [by](int i) { return i < by ? i : i - by; });
}
DEV float shuffle_xor(float v, int mask) {
  return as_float(shuffle(as_bits(v), [mask](int i) { return i ^ mask; }));
}

DEV void barrier_init(uint32_t bar, uint32_t arrivals) {
  cpu::Barrier fresh;
  fresh.expected = fresh.pending = static_cast<int>(arrivals);
  const bool fits = bar % 8 == 0 && cpu::self().block->barriers.emplace(bar, fresh).second;
  if (!fits) cpu::fail("barrier laid twice or crooked", bar);
}
DEV void barrier_init_fence() {}
DEV cpu::Barrier& barrier_at(uint32_t bar) {
  auto found = cpu::self().block->barriers.find(bar);
  if (found == cpu::self().block->barriers.end()) cpu::fail("no barrier", bar);
  return found->second;
}
DEV void barrier_arrive(uint32_t bar) {
  cpu::Barrier& b = barrier_at(bar);
  if (--b.pending < 0) cpu::fail("one arrival too many", bar);
  b.settle();
}
DEV void barrier_expect(uint32_t bar, uint32_t bytes) {
  cpu::Barrier& b = barrier_at(bar);
  b.bytes += bytes;
  if (--b.pending < 0) cpu::fail("one arrival too many", bar);
}
DEV void barrier_wait(uint32_t bar, uint32_t parity) {
  cpu::Barrier& b = barrier_at(bar);
  cpu::wait_until([&b, parity] { return (b.phase & 1) != parity; });
}

DEV void fence_async() {}
DEV uint64_t stream_policy() { return 0; }
DEV void prefetch_map(const TensorMap*) {}
DEV void copy_tile(uint32_t to, const TensorMap* map, int byte, int row, uint32_t bar, uint64_t) {
  const int box = static_cast<int>(map->box_bytes);
  if (to % 1024 || row < 0 || row + 16 > map->rows || byte < 0) cpu::fail("bad copy", to);
  uint8_t* shared = cpu::self().block->shared.data();
  cpu::at(to, 16), cpu::at(to + 16 * box - 16, 16);
  std::memset(shared + to, 0xff, 16 * box);
  cpu::Barrier& b = barrier_at(bar);
  cpu::launch_copy([=, &b] {
    for (int r = 0; r < 16; ++r)
      for (int i = 0; i < box; i += 16) {
        uint32_t place = to + r * box + i;
        place ^= (place >> 7 & (box == 64 ? 3 : 7)) << 4;
        for (int j = 0; j < 16; ++j)
          shared[place + j] = byte + i + j < map->row_bytes ? map->base[(row + r) * map->row_bytes + byte + i + j] : 0;
      }
    b.bytes -= 16 * box;
    b.settle();
  });
}
DEV void copy_word(uint32_t to, const void* from, bool inside) {
  uint8_t* place = cpu::at(to, 4);
  if (reinterpret_cast<uintptr_t>(from) % 4) cpu::fail("word not aligned in global memory", to);
  std::memset(place, 0xff, 4);
  uint32_t v = 0;
  if (inside) std::memcpy(&v, from, 4);
  cpu::self().words.push_back([=] { std::memcpy(place, &v, 4); });
}
DEV void copy_word_arrive(uint32_t bar) {
  cpu::Barrier& b = barrier_at(bar);
  cpu::launch_copy([&b, words = std::move(cpu::self().words)] {
    for (const auto& word : words) word();
    --b.pending;
    b.settle();
  });
  cpu::self().words.clear();
}

DEV void load_fresh(const void* from, uint32_t (&r)[4]) {
  if (reinterpret_cast<uintptr_t>(from) % 16) cpu::fail("load not aligned in global memory", 0);
  std::memcpy(r, from, 16);
}
DEV uint32_t load_acquire(const uint32_t* from) { return *from; }
DEV uint32_t load_steady(const uint32_t* from) { return *from; }
DEV void add_release(uint32_t* to, uint32_t v) { *to += v; }
DEV uint32_t increment_wrapping(uint32_t* to, uint32_t last) {
  uint32_t old = *to;
  *to = old >= last ? 0 : old + 1;
  return old;
}
DEV void pause() {
  cpu::self().spins = true;
  cpu::wait_until([passed = false]() mutable { return std::exchange(passed, true); });
}

DEV void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  cpu::Warp& warp = cpu::warp();
  const int lane = cpu::self().thread % 32;
  for (int i = 0; i < 4; ++i) warp.in[lane][i] = as_bits(d[i]), warp.in[lane][4 + i] = a[i];
  warp.in[lane][8] = b0, warp.in[lane][9] = b1;
  cpu::meet(warp.group, 32, [&warp] {
    float left[16][16], right[16][8];
    for (int i = 0; i < 32; ++i)
      for (int half = 0; half < 2; ++half) {
        const int g = i / 4, k = 2 * (i % 4) + half, shift = 16 * half;
        const auto value = [&](int word) { return cpu::bf16(warp.in[i][word] >> shift & 0xffff); };
        left[g][k] = value(4), left[g + 8][k] = value(5), left[g][k + 8] = value(6), left[g + 8][k + 8] = value(7);
        right[k][g] = value(8), right[k + 8][g] = value(9);
      }
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 4; ++j) {
        float sum = as_float(warp.in[i][j]);
        for (int k = 0; k < 16; ++k) sum += left[i / 4 + 8 * (j / 2)][k] * right[k][2 * (i % 4) + j % 2];
        warp.out[i][j] = as_bits(sum);
      }
  });
  for (int i = 0; i < 4; ++i) d[i] = as_float(warp.out[lane][i]);
}
DEV uint32_t keep_and_set(uint32_t v, uint32_t keep, uint32_t set) { return (v & keep) | set; }
DEV uint32_t blend(uint32_t a, uint32_t b, uint32_t from_a) { return (a & from_a) | (b & ~from_a); }
DEV int count_bits(uint32_t v) { return __builtin_popcount(v); }
DEV float half_to_float(uint16_t v) {
  const int exponent = v >> 10 & 31, mantissa = v & 1023;
  float size = exponent ? std::ldexp(1024.f + mantissa, exponent - 25) : std::ldexp(static_cast<float>(mantissa), -24);
  if (exponent == 31) size = mantissa ? NAN : INFINITY;
  return v & 0x8000 ? -size : size;
}
DEV uint32_t round_bf16(float v) {
  uint32_t bits = as_bits(v);
  return std::isnan(v) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEV uint32_t pack_bf16(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }
DEV float fast_exp(float v) { return std::exp(v); }
DEV float fast_divide(float a, float b) { return a / b; }
DEV float fast_tanh(float v) { return std::tanh(v); }
