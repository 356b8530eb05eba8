// What device/arithmetic.cuh has: numbers, their bits and their formats.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

inline float as_float(uint32_t v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline uint32_t as_bits(float f) {
  uint32_t v;
  std::memcpy(&v, &f, 4);
  return v;
}
inline float from_bf16(uint16_t v) { return as_float(static_cast<uint32_t>(v) << 16); }
inline float from_f16(uint16_t v) {
  const int exponent = v >> 10 & 31, mantissa = v & 1023;
  float size = exponent ? std::ldexp(1024.f + mantissa, exponent - 25) : std::ldexp(static_cast<float>(mantissa), -24);
  if (exponent == 31) size = mantissa ? NAN : INFINITY;
  return v & 0x8000 ? -size : size;
}
inline uint32_t round_bf16(float v) {
  const uint32_t bits = as_bits(v);
  return std::isnan(v) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_bf16(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }

template <class Operation>
uint32_t of_pairs(Operation&& operation) {
  return pack_bf16(operation(0), operation(16));
}
inline uint32_t add_bf16(uint32_t a, uint32_t b) {
  return of_pairs([=](int by) { return from_bf16(a >> by) + from_bf16(b >> by); });
}
inline uint32_t add_product_bf16(uint32_t a, uint32_t b, uint32_t c) {
  return of_pairs([=](int by) { return from_bf16(a >> by) * from_bf16(b >> by) + from_bf16(c >> by); });
}
inline uint32_t keep_and_set(uint32_t v, uint32_t keep, uint32_t set) { return (v & keep) | set; }
inline uint32_t blend(uint32_t a, uint32_t b, uint32_t from_a) { return (a & from_a) | (b & ~from_a); }
inline uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t which) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i) picked |= static_cast<uint32_t>(both >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
  return picked;
}
inline int sum_of_bytes(uint32_t v) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(v >> 8 * i & 0xff);
  return sum;
}
inline float fast_exp(float v) { return std::exp(v); }
inline float fast_divide(float a, float b) { return a / b; }
inline float power_of_two(float v) { return std::exp2(v); }
