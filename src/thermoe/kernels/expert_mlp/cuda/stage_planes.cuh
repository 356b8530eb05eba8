// Activations as two bytes each, for the products of bit planes: see planes.cuh.
#pragma once

#include "layout.cuh"

constexpr float LARGEST = 32639.f;        // 256 * 127 + 127
constexpr float SMALLEST = 1e-30f;        // a group below it counts as zero
constexpr float WHOLE = 12582912.f;  // 1.5 * 2^23: whole numbers within 2^22 of it are floats, one unit apart
constexpr uint32_t COLUMN_SUM_BYTES = 64;  // step and sum of bytes of eight columns

DEV uint32_t low_bytes_at(uint32_t pitch) { return (pitch - 64) / 2; }

// Byte `index` of each of four words.
DEV uint32_t gather_bytes(const uint32_t (&v)[4], int index) {
  const uint32_t pick = index == 0 ? 0x0040u : 0x0051u;
  return pick_bytes(pick_bytes(v[0], v[1], pick), pick_bytes(v[2], v[3], pick), 0x5410u);
}

DEV uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Bits of the largest magnitude of 16 bits each; NaN is the largest of all.
DEV uint32_t largest_of(const uint32_t (&v)[4]) {
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) most = larger(most, larger(v[i] & 0x7fffu, v[i] >> 16 & 0x7fffu));
  return most;
}

// Eight activations of a token's row, where the lanes of a group meet (all must call). The eight high bytes lie 8 bytes
// from those of the next slot, so that a lane reads what it needs of two slots at once.
template <int GROUP>
DEV void stage_bytes(const uint32_t (&v)[4], int octet, int row, uint32_t to, uint32_t pitch, uint32_t sums,
                     int stride) {
  constexpr int LANES = GROUP / 8;
  uint32_t most = largest_of(v);
#pragma unroll
  for (int mask = 1; mask < LANES; mask *= 2) most = larger(most, shuffle_xor_bits(most, mask));
  const float largest = as_float(most << 16), inverse = largest > SMALLEST ? fast_divide(LARGEST, largest) : 0.f;
  uint32_t high[2], low[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t whole[4];  // in the lower bytes, of either sign
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t word = v[2 * i + j / 2];
      whole[j] = as_bits(as_float(j % 2 ? word & 0xffff0000u : word << 16) * inverse + WHOLE);
    }
    low[i] = gather_bytes(whole, 0);
    for (int j = 0; j < 4; ++j) whole[j] += 128;
    high[i] = gather_bytes(whole, 1);
  }
  int sums_both = (sum_of_bytes(high[0]) + sum_of_bytes(high[1])) * 65536 + sum_of_bytes(low[0]) + sum_of_bytes(low[1]);
#pragma unroll
  for (int mask = 1; mask < LANES; mask *= 2)
    sums_both += static_cast<int>(shuffle_xor_bits(static_cast<uint32_t>(sums_both), mask));
  const int sum_low = static_cast<int16_t>(sums_both & 0xffff), sum_high = (sums_both - sum_low) / 65536;
  const uint32_t place = to + row * pitch + 128 * (octet / 16) + 64 * (octet / 8 & 1) + 16 * (octet & 3) + 8 * (octet / 4 & 1);
  sts64(place, high), sts64(place + low_bytes_at(pitch), low);
  if (octet % LANES != 0) return;
  const float step = largest > SMALLEST ? largest / LARGEST : most > 0x7f80u ? as_float(most << 16) : 0.f;
  const uint32_t column = to + sums + octet / LANES * stride + COLUMN_SUM_BYTES * (row / 4) + 8 * (row & 3);
  const uint32_t of_high[2] = {as_bits(256.f * step), as_bits(static_cast<float>(sum_high))};
  const uint32_t of_low[2] = {as_bits(step), as_bits(static_cast<float>(sum_low))};
  sts64(column, of_high), sts64(column + 32, of_low);
}
