// The linear kernel's machine on a CPU: see cuda_on_cpu_machine.h. Copies and words on their way to another block land
// late, and copies spoil their destination when they start.
#pragma once

#include <map>

#include "cuda_on_cpu_machine.h"

#define IN_CLUSTER

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

DEV int thread_index() { return cpu::self().thread; }
DEV int block_index() { return cpu::self().index; }
DEV int num_blocks() { return static_cast<int>(cpu::machine->blocks.size()); }
DEV uint32_t shared_start() { return SHARED_START; }
inline uint32_t shared_end = 0;  // of what the launch was given
inline uint8_t* cpu_place(uint32_t at, uint32_t size) {
  if (at + size > shared_end) cpu::fail("beyond what the launch was given", at);
  return cpu::at(at, size);
}
DEV void lds128(uint32_t at, uint32_t (&r)[4]) { std::memcpy(r, cpu_place(at, 16), 16); }
DEV void sts128(uint32_t at, const uint32_t (&r)[4]) { std::memcpy(cpu_place(at, 16), r, 16); }

DEV void sync_block() { cpu::meet(cpu::self().block->groups[0], cpu::machine->threads); }
DEV void sync_some(int threads) { cpu::meet(cpu::self().block->groups[1], threads); }
DEV void sync_warp() { cpu::meet(cpu::warp().group, 32); }
DEV int same_in_warp(int v) { return v; }
DEV bool elected() { return cpu::self().thread % 32 == 0; }

DEV void barrier_init(uint32_t bar, uint32_t arrivals) {
  cpu::Barrier fresh;
  fresh.expected = fresh.pending = static_cast<int>(arrivals);
  const bool fits = bar % 8 == 0 && cpu::self().block->barriers.emplace(bar, fresh).second;
  if (!fits) cpu::fail("barrier laid twice or crooked", bar);
}
DEV void barrier_init_fence() {}
DEV cpu::Barrier& barrier_of(cpu::Block& block, uint32_t bar) {
  auto found = block.barriers.find(bar);
  if (found == block.barriers.end()) cpu::fail("no barrier", bar);
  return found->second;
}
DEV void barrier_arrive(uint32_t bar) {
  cpu::Barrier& b = barrier_of(*cpu::self().block, bar);
  if (--b.pending < 0) cpu::fail("one arrival too many", bar);
  b.settle();
}
DEV void barrier_expect(uint32_t bar, uint32_t bytes) {
  barrier_of(*cpu::self().block, bar).bytes += bytes;
  barrier_arrive(bar);
}
DEV void barrier_wait(uint32_t bar, uint32_t parity) {
  cpu::Barrier& b = barrier_of(*cpu::self().block, bar);
  cpu::wait_until([&b, parity] { return (b.phase & 1) != parity; });
}
DEV void barrier_wait_cluster(uint32_t bar, uint32_t parity) { barrier_wait(bar, parity); }

DEV int cluster_threads() { return THERMOE_CLUSTER * cpu::machine->threads; }
DEV cpu::Block& cluster_block(int rank) {
  return *cpu::machine->blocks[cpu::self().index / THERMOE_CLUSTER * THERMOE_CLUSTER + rank];
}
DEV void cluster_arrive() {
  cpu::Group& group = cluster_block(0).groups[15];
  if (++group.arrived == cluster_threads()) ++group.generation;
}
DEV void cluster_wait() {
  cpu::Group& group = cluster_block(0).groups[15];
  cpu::wait_until([&group] { return group.generation != 0; });
}
DEV void send(uint32_t to, int rank, const uint32_t (&r)[4], uint32_t bar) {
  if (cluster_block(0).groups[15].generation == 0) cpu::fail("sent before all blocks have begun", to);
  cpu::Block& block = cluster_block(rank);
  cpu_place(to, 16);
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

DEV uint64_t stream_policy() { return 0; }
DEV void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t bar, uint64_t) {
  if (reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16 || bytes == 0) cpu::fail("crooked copy", to);
  cpu_place(to, 16), cpu_place(to + bytes - 16, 16);
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
DEV float load_bf16(const uint16_t* from) { return cpu::bf16(*from); }
DEV void store_half(uint16_t* to, uint32_t v) { *to = static_cast<uint16_t>(v); }
DEV void store_pair(uint16_t* to, uint32_t v) {
  if (reinterpret_cast<uintptr_t>(to) % 4) cpu::fail("pair not aligned in global memory", 0);
  std::memcpy(to, &v, 4);
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
DEV uint32_t round_bf16(float v) {
  const uint32_t bits = as_bits(v);
  return std::isnan(v) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEV uint32_t pack_bf16(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }
