// Shared memory: what lies where, and reading and writing it.
//
// A place is a 32-bit address. Where THERMOE_PLACES_MOVE is 1 it is an offset in the block's own memory, SHARED_START
// and on: what the device calls its address has the block's rank in its cluster above that, and is added where a place
// is used.
#pragma once

#include "base.cuh"

#ifndef THERMOE_PLACES_MOVE
#define THERMOE_PLACES_MOVE 0
#endif

DEV uint32_t shared_address(const void* own) { return static_cast<uint32_t>(__cvta_generic_to_shared(own)); }

extern __shared__ __align__(1024) unsigned char dynamic_shared[];
DEV uint32_t dynamic_start() { return shared_address(dynamic_shared); }

constexpr uint32_t SHARED_START = 1024;  // the driver keeps the first kilobyte; kernels that count on it check it
DEV uint32_t address_of(uint32_t place) {
  if constexpr (THERMOE_PLACES_MOVE) return dynamic_start() - SHARED_START + place;
  return place;
}

template <class S>
DEV S& shared_memory() {  // a kernel's structure, of a size that the compiler knows
  __shared__ __align__(16) unsigned char raw[sizeof(S)];
  return *reinterpret_cast<S*>(raw);
}
template <class S>
DEV S& dynamic_memory() {  // in the memory that the launch gives
  return *reinterpret_cast<S*>(dynamic_shared);
}

DEV void lds128(uint32_t at, uint32_t (&r)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address_of(at)) : "memory");
}
DEV void lds64(uint32_t at, uint32_t (&r)[2]) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address_of(at)) : "memory");
}
DEV uint32_t lds32(uint32_t at) {
  uint32_t r;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(address_of(at)) : "memory");
  return r;
}
DEV uint16_t lds16(uint32_t at) {
  uint16_t r;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(r) : "r"(address_of(at)) : "memory");
  return r;
}
DEV float lds_float(uint32_t at) { return __uint_as_float(lds32(at)); }
DEV void sts128(uint32_t at, const uint32_t (&r)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address_of(at)), "r"(r[0]), "r"(r[1]), "r"(r[2]),
               "r"(r[3])
               : "memory");
}
DEV void sts64(uint32_t at, const uint32_t (&r)[2]) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address_of(at)), "r"(r[0]), "r"(r[1]) : "memory");
}
DEV void sts32(uint32_t at, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address_of(at)), "r"(v) : "memory");
}
DEV void sts16(uint32_t at, uint16_t v) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(address_of(at)), "h"(v) : "memory");
}
DEV void sts_float(uint32_t at, float v) { sts32(at, __float_as_uint(v)); }
DEV uint32_t shared_add(uint32_t at, uint32_t v) {
  uint32_t old;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "r"(address_of(at)), "r"(v) : "memory");
  return old;
}
DEV void shared_max(uint32_t at, uint32_t v) {
  asm volatile("red.shared.max.u32 [%0], %1;" ::"r"(address_of(at)), "r"(v) : "memory");
}
