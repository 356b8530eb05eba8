// Numbers: their bits, their formats, and functions that are one instruction.
#pragma once

#include "base.cuh"

DEV float as_float(uint32_t v) { return __uint_as_float(v); }
DEV uint32_t as_bits(float v) { return __float_as_uint(v); }
DEV float from_bf16(uint16_t v) { return __uint_as_float(static_cast<uint32_t>(v) << 16); }
DEV float from_f16(uint16_t v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
  return r;
}
DEV uint32_t pack_bf16(float low, float high) {  // rounded
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// ---- pairs of bf16
DEV uint32_t add_bf16(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEV uint32_t add_product_bf16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

// ---- bits; one instruction each, which the compiler does not find where both constants are immediate
DEV uint32_t keep_and_set(uint32_t v, uint32_t keep, uint32_t set) {  // (v & keep) | set
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(v), "r"(keep), "r"(set));
  return r;
}
DEV uint32_t blend(uint32_t a, uint32_t b, uint32_t from_a) {  // bits of a where the mask is 1, of b elsewhere
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(r) : "r"(a), "r"(b), "r"(from_a));
  return r;
}
DEV uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t which) { return __byte_perm(a, b, which); }
DEV int sum_of_bytes(uint32_t v) { return __dp4a(static_cast<int>(v), 0x01010101, 0); }  // each of either sign

// ---- approximations
DEV float fast_exp(float v) { return __expf(v); }
DEV float fast_divide(float a, float b) { return __fdividef(a, b); }
DEV float power_of_two(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
