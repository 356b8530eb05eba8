// What device/shared_memory.cuh, device/barriers.cuh and device/copies.cuh have, on the machine. Copies land late and
// spoil their destination when they start.
#pragma once

#include "machine.h"

#ifndef THERMOE_CLUSTER
#define THERMOE_CLUSTER 1
#endif
#define IN_CLUSTER

DEV uint32_t dynamic_start() { return SHARED_START; }
DEV void lds128(uint32_t at, uint32_t (&r)[4]) { std::memcpy(r, cpu::at(at, 16), 16); }
DEV void lds64(uint32_t at, uint32_t (&r)[2]) { std::memcpy(r, cpu::at(at, 8), 8); }
DEV uint32_t lds32(uint32_t at) {
  uint32_t v;
  std::memcpy(&v, cpu::at(at, 4), 4);
  return v;
}
DEV uint16_t lds16(uint32_t at) {
  uint16_t v;
  std::memcpy(&v, cpu::at(at, 2), 2);
  return v;
}
DEV float lds_float(uint32_t at) { return as_float(lds32(at)); }
DEV void sts128(uint32_t at, const uint32_t (&r)[4]) { std::memcpy(cpu::at(at, 16), r, 16); }
DEV void sts64(uint32_t at, const uint32_t (&r)[2]) { std::memcpy(cpu::at(at, 8), r, 8); }
DEV void sts32(uint32_t at, uint32_t v) { std::memcpy(cpu::at(at, 4), &v, 4); }
DEV void sts16(uint32_t at, uint16_t v) { std::memcpy(cpu::at(at, 2), &v, 2); }
DEV void sts_float(uint32_t at, float v) { sts32(at, as_bits(v)); }
DEV uint32_t shared_add(uint32_t at, uint32_t v) {
  const uint32_t old = lds32(at);
  sts32(at, old + v);
  return old;
}
DEV void shared_max(uint32_t at, uint32_t v) { sts32(at, lds32(at) > v ? lds32(at) : v); }

DEV int first_of_cluster() { return cpu::self().index / THERMOE_CLUSTER * THERMOE_CLUSTER; }
DEV cpu::Group& cluster_group() { return cpu::machine->blocks[first_of_cluster()]->groups[15]; }
DEV cpu::Block& block_of_cluster(int rank) {
  cpu::Block& block = *cpu::machine->blocks[first_of_cluster() + rank];
  if (block.left) cpu::fail("reached for the memory of a block that has left", rank);
  return block;
}

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
DEV cpu::Barrier& barrier_at(uint32_t bar) { return barrier_of(*cpu::self().block, bar); }
DEV void arrive(cpu::Barrier& b, uint32_t bar, uint32_t times) {
  b.pending -= times;
  if (b.pending < 0) cpu::fail("one arrival too many", bar);
  b.settle();
}
DEV void barrier_arrive(uint32_t bar, uint32_t times = 1) { arrive(barrier_at(bar), bar, times); }
DEV void barrier_arrive_in(uint32_t bar, int rank) { arrive(barrier_of(block_of_cluster(rank), bar), bar, 1); }
DEV void barrier_release_in(uint32_t bar, int rank) { barrier_arrive_in(bar, rank); }
DEV void barrier_leave(uint32_t bar) {
  --barrier_at(bar).expected;
  barrier_arrive(bar);
}
DEV void barrier_expect(uint32_t bar, uint32_t bytes) {
  barrier_at(bar).bytes += bytes;
  barrier_arrive(bar);
}
DEV void barrier_wait(uint32_t bar, uint32_t parity) {
  cpu::Barrier& b = barrier_at(bar);
  cpu::wait_until([&b, parity] { return (b.phase & 1) != parity; });
}
DEV void barrier_wait_cluster(uint32_t bar, uint32_t parity) { barrier_wait(bar, parity); }

DEV void fence_async() {}
DEV void fence_async_global() {}
DEV uint64_t stream_policy() { return 0; }
DEV void prefetch(const void*) {}
DEV void prefetch_map(const TensorMap*) {}

template <uint32_t BYTES>
void copy_by_thread(uint32_t to, const void* from, bool inside) {
  uint8_t* place = cpu::at(to, BYTES);
  if (reinterpret_cast<uintptr_t>(from) % BYTES) cpu::fail("a copy not aligned in global memory", to);
  std::memset(place, 0xff, BYTES);
  std::vector<uint8_t> kept(BYTES, 0);
  if (inside) std::memcpy(kept.data(), from, BYTES);
  cpu::self().copies.push_back([=] { std::memcpy(place, kept.data(), BYTES); });
}
DEV void copy_word(uint32_t to, const void* from, bool inside) { copy_by_thread<4>(to, from, inside); }
DEV void copy_piece(uint32_t to, const char* start, uint32_t pieces, bool inside) {
  copy_by_thread<16>(to, start + 16 * static_cast<uint64_t>(pieces), inside);
}
DEV void copies_arrive(uint32_t bar) {
  cpu::Barrier& b = barrier_at(bar);
  cpu::launch_copy([&b, copies = std::move(cpu::self().copies)] {
    for (const auto& copy : copies) copy();
    --b.pending;
    b.settle();
  });
  cpu::self().copies.clear();
}
