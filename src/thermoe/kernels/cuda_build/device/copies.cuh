// Copies into shared memory that run by themselves.
#pragma once

#include "barriers.cuh"
#include "hints.cuh"

struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

// ---- by the copy engine: a barrier counts the bytes
DEV void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEV void fence_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
DEV void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

DEV void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t bar, uint64_t policy) {  // in 16s
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          address_of(to)), "l"(from), "r"(bytes), "r"(address_of(bar)), "l"(policy) : "memory");
}

// A box of a tensor, from these coordinates on, innermost first; into all of BLOCKS blocks of the cluster at the same
// place, and each one's barrier counts the bytes.
#define COPY_BOX_AS(RANK, CORNER, BAR, TO_ALL, HINT, ENDS, ...)                                                 \
  asm volatile("cp.async.bulk.tensor." RANK "d.shared::cluster.global.mbarrier::complete_tx::bytes" TO_ALL HINT \
               " [%1], [%2, {" CORNER "}], [" BAR "]" ENDS ";" ::"l"(policy),                                   \
               "r"(address_of(to)), "l"(map), __VA_ARGS__                                                       \
               : "memory")
#define COPY_BOX(RANK, CORNER, BAR, MASK, ...)                                                                  \
  constexpr uint16_t mask = (1 << BLOCKS) - 1;                                                                  \
  const uint32_t counter = address_of(bar);                                                                     \
  if constexpr (BLOCKS == 1 && !HINTED)                                                                         \
    COPY_BOX_AS(RANK, CORNER, BAR, "", "", "", __VA_ARGS__, "r"(counter));                                      \
  else if constexpr (BLOCKS == 1)                                                                               \
    COPY_BOX_AS(RANK, CORNER, BAR, "", ".L2::cache_hint", ", %0", __VA_ARGS__, "r"(counter));                   \
  else if constexpr (!HINTED)                                                                                   \
    COPY_BOX_AS(RANK, CORNER, BAR, ".multicast::cluster", "", ", " MASK, __VA_ARGS__, "r"(counter), "h"(mask)); \
  else                                                                                                          \
    COPY_BOX_AS(RANK, CORNER, BAR, ".multicast::cluster", ".L2::cache_hint", ", " MASK ", %0", __VA_ARGS__,     \
                "r"(counter), "h"(mask))
template <int BLOCKS = 1, bool HINTED = false>
DEV void copy_box_2d(uint32_t to, const TensorMap* map, int x, int y, uint32_t bar, uint64_t policy = 0) {
  COPY_BOX("2", "%3, %4", "%5", "%6", "r"(x), "r"(y));
}
template <int BLOCKS = 1, bool HINTED = false>
DEV void copy_box_3d(uint32_t to, const TensorMap* map, int x, int y, int z, uint32_t bar, uint64_t policy = 0) {
  COPY_BOX("3", "%3, %4, %5", "%6", "%7", "r"(x), "r"(y), "r"(z));
}
template <int BLOCKS = 1, bool HINTED = false>
DEV void copy_box_4d(uint32_t to, const TensorMap* map, int x, int y, int z, int w, uint32_t bar, uint64_t policy = 0) {
  COPY_BOX("4", "%3, %4, %5, %6", "%7", "%8", "r"(x), "r"(y), "r"(z), "r"(w));
}
#undef COPY_BOX
#undef COPY_BOX_AS

DEV void prefetch_box_2d(const TensorMap* map, int x, int y) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(x), "r"(y) : "memory");
}
DEV void prefetch_box_4d(const TensorMap* map, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];" ::"l"(map), "r"(x), "r"(y), "r"(z),
               "r"(w)
               : "memory");
}

// ---- by threads: a barrier counts the thread once its copies have landed
DEV void copy_word(uint32_t to, const void* from, bool inside) {  // 4 bytes, zero where not inside
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address_of(to)), "l"(from), "r"(inside ? 4 : 0)
               : "memory");
}
// 16 bytes, zeros where not inside. The address is computed here, for the compiler would keep it in two registers.
DEV void copy_piece(uint32_t to, const char* start, uint32_t pieces, bool inside) {
  asm volatile(
      "{\n"
      ".reg .u64 from;\n"
      "mad.wide.u32 from, %2, 16, %1;\n"
      "cp.async.cg.shared.global.L2::128B [%0], [from], 16, %3;\n"
      "}" ::"r"(address_of(to)), "l"(start), "r"(pieces), "r"(inside ? 16 : 0) : "memory");
}
DEV void copies_arrive(uint32_t bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(address_of(bar)) : "memory");
}
