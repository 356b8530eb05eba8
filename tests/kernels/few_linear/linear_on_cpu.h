// The linear kernel's machine on a CPU: see machine.h. Copies and words on their way to another block land
// late, and copies spoil their destination when they start.
#pragma once

#include <map>

#include "machine_memory.h"
#include "machine_warps.h"

namespace cpu {
inline bool before_waited_for = false, before_ended = false;  // the launch before this one
inline std::function<void()> end_before;
// Copies that one barrier waits for take about as long: were each drawn for itself, one of many would always be the
// last thing to happen, and no warp could run ahead of another.
inline std::map<std::pair<const Barrier*, uint32_t>, int> delays;
inline void launch_copy_for(const Barrier& b, std::function<void()> land) {
  const int choices[] = {0, 40, 400, NEVER_BY_ITSELF}, choice = static_cast<int>(machine->random() % 4);
  const auto drawn = delays.emplace(std::make_pair(&b, b.phase), machine->uneven ? choices[choice] : choice).first;
  machine->flights.emplace_back(drawn->second, std::move(land));
}
}  // namespace cpu

DEV int cluster_threads() { return THERMOE_CLUSTER * cpu::machine->threads; }
DEV void cluster_arrive() {
  cpu::Group& group = cluster_group();
  if (++group.arrived == cluster_threads()) ++group.generation;
}
DEV void cluster_wait() {
  cpu::Group& group = cluster_group();
  cpu::wait_until([&group] { return group.generation != 0; });
}
DEV void send(uint32_t to, int rank, const uint32_t (&r)[4], uint32_t bar) {
  if (cluster_group().generation == 0) cpu::fail("sent before all blocks have begun", to);
  cpu::Block& block = block_of_cluster(rank);
  cpu::at(to, 16);
  cpu::Barrier& b = barrier_of(block, bar);
  std::vector<uint32_t> words(r, r + 4);
  cpu::launch_copy_for(b, [=, &block, &b] {
    if (block.left) return cpu::complain("words landed in a block that has left", to);
    std::memcpy(block.shared.data() + to, words.data(), 16);
    b.bytes -= 16;
    b.settle();
  });
}

DEV void wait_for_launch_before() {
  const auto end = [] {
    cpu::end_before();
    cpu::before_ended = true;
  };
  if (!std::exchange(cpu::before_waited_for, true)) cpu::launch_copy(end);
  cpu::wait_until([] { return cpu::before_ended; });
}
DEV void let_next_launch_begin() {
  if (!cpu::before_ended) cpu::fail("the next launch let in too early", 0);
}

DEV void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t bar, uint64_t) {
  if (reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16 || bytes == 0) cpu::fail("crooked copy", to);
  cpu::at(to, 16), cpu::at(to + bytes - 16, 16);
  cpu::Block& block = *cpu::self().block;
  std::memset(block.shared.data() + to, 0xff, bytes);
  cpu::Barrier& b = barrier_of(block, bar);
  cpu::launch_copy_for(b, [=, &block, &b] {
    if (block.left) return cpu::complain("a copy landed in a block that has left", to);
    std::memcpy(block.shared.data() + to, from, bytes);
    b.bytes -= bytes;
    b.settle();
  });
}
DEV void load_fresh(const void* from, bool inside, uint32_t (&r)[4]) {
  if (!cpu::before_ended) cpu::fail("tokens read too early", 0);
  if (reinterpret_cast<uintptr_t>(from) % 16) cpu::fail("load not aligned in global memory", 0);
  std::memset(r, 0, 16);
  if (inside) std::memcpy(r, from, 16);
}
DEV void store_half(uint16_t* to, uint32_t v) { *to = static_cast<uint16_t>(v); }
DEV void store_pair(uint16_t* to, uint32_t v) {
  if (reinterpret_cast<uintptr_t>(to) % 4) cpu::fail("pair not aligned in global memory", 0);
  std::memcpy(to, &v, 4);
}

