// A machine of warps whose threads are coroutines; whatever they may wait for is a condition.
//
// Two schedules. In the even one all threads take turns. In the uneven one warps are ranked, and the first that can go
// on does: it runs as far ahead as its barriers let it, while the last stand still until nobody else can move. Ranks
// change at random, some copies land only when nothing else can happen, and warps that poll fall behind.
//
// fibers.h is another machine, for kernels that speak with CUDA's own words: their threads use pointers, meet in every
// collective, and send each other words that may arrive in any order.
#pragma once

#include <ucontext.h>

#include <algorithm>
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

#include "alignment.h"
#include "numbers.h"

#define DEV inline

struct alignas(64) TensorMap {  // 128 bytes, as on the device
  const uint8_t* base;
  int64_t row_bytes, rows, halves, experts, box_bytes;
  uint64_t unused[10];
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
  uint32_t in[32][10];
  uint32_t out[32][4];
};
struct Block {
  SharedMemory shared = SharedMemory(SHARED_SIZE, 0xff);
  std::unordered_map<uint32_t, Barrier> barriers;
  Group groups[16];
  std::vector<Warp> warps;
  int running = 0;
  bool left = false;  // all its threads have: its memory is another's
};
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Block* block;
  int thread, index;
  bool done = false, spins = false;
  bool waited = false;  // for the launch before this one
  std::function<bool()> ready;
  std::vector<std::function<void()>> copies;  // not yet joined to a barrier
};
struct Machine {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Fiber>> fibers;  // 32 of a warp, warps of a block, blocks
  std::deque<std::pair<int, std::function<void()>>> flights;  // steps left, what lands
  bool uneven = false, failed = false;
  ucontext_t scheduler;
  Fiber* current = nullptr;
  std::mt19937 random;
  int threads = 0;
  uint32_t shared_end = SHARED_SIZE;  // of what the launch was given
  std::function<void()> kernel;
};
inline Machine* machine = nullptr;
inline Fiber& self() { return *machine->current; }

inline void complain(const char* what, uint32_t at) {  // the run ends with the step that is under way
  std::fprintf(stderr, "thread %d of block %d: %s at %u\n", self().thread, self().index, what, at);
  machine->failed = true;
}
[[noreturn]] inline void fail(const char* what, uint32_t at) {
  complain(what, at);
  swapcontext(&self().context, &machine->scheduler);
  std::abort();  // nothing goes on after a failure
}
inline void wait_until(std::function<bool()> ready) {
  if (ready()) return;
  self().ready = std::move(ready);
  swapcontext(&self().context, &machine->scheduler);
}
inline uint8_t* at(uint32_t address, uint32_t size, Block& block) {
  if (address < SHARED_START || address + size > machine->shared_end) fail("outside shared memory", address);
  if (address % size) fail("not aligned in shared memory", address);
  return block.shared.data() + address;
}
inline uint8_t* at(uint32_t address, uint32_t size) { return at(address, size, *self().block); }
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

inline void enter() {
  machine->kernel();
  self().done = true;
  Block& block = *self().block;
  block.left = --block.running == 0;
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
    if (machine->failed) return false;
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
      if (machine->failed) return false;
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

inline bool run(int blocks, int threads, uint32_t seed, bool uneven, std::function<void()> kernel,
                uint32_t shared_end = SHARED_SIZE) {
  Machine here;
  machine = &here;
  here.random.seed(seed), here.uneven = uneven, here.threads = threads, here.shared_end = shared_end;
  here.kernel = std::move(kernel);
  for (int b = 0; b < blocks; ++b) {
    here.blocks.push_back(std::make_unique<Block>());
    here.blocks.back()->warps.resize(threads / 32);
    here.blocks.back()->running = threads;
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
  for (int still = 0; still <= 8 && !here.failed;) {  // steps in which nobody did more than look again
    still = (uneven ? step_first(ranks) : step_all()) ? 0 : still + 1;
    if (still > 0 && unfinished() == 0) return true;
  }
  if (!here.failed) std::fprintf(stderr, "deadlock: %d threads wait\n", static_cast<int>(unfinished()));
  return false;
}

}  // namespace cpu
