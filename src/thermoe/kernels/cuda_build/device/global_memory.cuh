// Global memory: which caches may answer, and what blocks say to each other there.
#pragma once

#include "hints.cuh"

DEV void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// ---- what others write while the kernel runs, past the first-level cache
DEV void load_fresh(const void* from, uint32_t (&r)[4]) {
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(from) : "memory");
}
DEV void load_fresh(const void* from, bool inside, uint32_t (&r)[4]) {  // zeros where not inside
  asm volatile(
      "{\n"
      ".reg .pred inside;\n"
      "setp.ne.u32 inside, %5, 0;\n"
      "mov.u32 %0, 0;\n"
      "mov.u32 %1, 0;\n"
      "mov.u32 %2, 0;\n"
      "mov.u32 %3, 0;\n"
      "@inside ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}" : "=&r"(r[0]), "=&r"(r[1]), "=&r"(r[2]), "=&r"(r[3]) : "l"(from), "r"(static_cast<uint32_t>(inside))
      : "memory");
}

// ---- what a launch before this one wrote, never from a cache that may be older
DEV unsigned load_new_pair(const void* from) {
  unsigned pair;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(pair) : "l"(from) : "memory");
  return pair;
}
DEV uint2 load_new(const void* from) {
  uint2 pair;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(pair.x), "=r"(pair.y) : "l"(from) : "memory");
  return pair;
}
DEV uint4 load_new_four(const void* from) {
  uint4 four;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w) : "l"(from) : "memory");
  return four;
}

// ---- what nobody writes
DEV uint32_t load_half(const uint16_t* from) {
  uint16_t v;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(from));
  return v;
}

// ---- stores
DEV void store_half(uint16_t* to, uint32_t v) { *to = static_cast<uint16_t>(v); }
DEV void store_pair(uint16_t* to, uint32_t v) { *reinterpret_cast<uint32_t*>(to) = v; }
DEV void store_piece(void* to, const uint32_t (&r)[4]) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
DEV void store_piece(void* to, const uint32_t (&r)[4], uint64_t policy) {
  asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(to), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3]), "l"(policy)
               : "memory");
}
