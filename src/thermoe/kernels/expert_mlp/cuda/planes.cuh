// Weights in bit planes (weights.py, PlaneMatrices): 2, 4 or 8 bits, the same for all experts or each its own.
//
// A masked code set under the bits of 128.0 in bf16 is 128 + code, exactly: no subtraction and no scale for a weight.
// The 128 and the middle of the code range leave through the sums of the activations (stage.cuh), once a scale group:
// a group's product starts from -(128 + middle) * sum, and is scaled as a whole. Codes of 8 bits are taken as two
// codes of 4, their products joined as 16 * high + low.
#pragma once

#include "job.cuh"

constexpr uint32_t NIBBLES = 0x000f000fu, PAIRS = 0x00030003u, BASE = 0x43004300u;
constexpr uint32_t HIGH_HALVES = 0xccccccccu;

// Two words of the 2-bit planes, joined into codes of 4 bits: slots 0 and 2 of each byte, and slots 1 and 3.
DEV uint32_t join_even(uint32_t first, uint32_t second) { return blend(first << 2, second, HIGH_HALVES); }
DEV uint32_t join_odd(uint32_t first, uint32_t second) { return blend(first, second >> 2, HIGH_HALVES); }

// Where a lane reads: neighbouring groups in rows whose swizzles differ, so that sixteen lanes meet all banks.
struct PlaneLanes {
  DEV static int row(int group) { return (group & 1) | (group & 2) << 1 | (group & 4) >> 1; }
  DEV static uint32_t narrow(const Lane& lane) {  // rows of 64 bytes, 16-byte units exchanged by row / 2
    int r = row(lane.group);
    return static_cast<uint32_t>(64 * r + (8 * lane.quad ^ (r / 2 & 3) * 16));
  }
  DEV static uint32_t wide(const Lane& lane) {  // rows of 128 bytes, 16-byte units exchanged by row
    int r = row(lane.group);
    return static_cast<uint32_t>(128 * r + (8 * lane.quad ^ r * 16));
  }
};

// A lane's codes of one chunk of 128 columns, 16 rows: words [low][i] of rows row() and row() + 8.
template <int BITS>
struct Codes {
  uint32_t even[2][2], odd[2][2];  // 2 bits: the word itself in `even`
  uint32_t last[2][2][2];          // the 4-bit plane: [low][slot / 2][i]

  DEV void load(const Job& job, uint32_t narrow, uint32_t wide, int half, int chunk) {
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      const uint32_t at = job.data + 1024 * half + 512 * low + (narrow ^ 32u * chunk);
      lds64(at, even[low]);
      if (BITS == 2) continue;
      uint32_t second[2];
      lds64(at + 2048, second);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        odd[low][i] = join_odd(even[low][i], second[i]);
        even[low][i] = join_even(even[low][i], second[i]);
      }
      if (BITS == 4) continue;
#pragma unroll
      for (int k = 0; k < 2; ++k)
        lds64(job.data + 4096 + 2048 * half + 1024 * low + (wide ^ (64u * chunk + 32u * k)), last[low][k]);
    }
  }

  // Columns (0, 2) or (1, 3) of word i of a slot, as 128 + code.
  DEV uint32_t pair(int slot, int low, int i, int odd_columns) const {
    if (BITS == 2) return keep_and_set(even[low][i] >> (2 * slot + 8 * odd_columns), PAIRS, BASE);
    uint32_t word = slot & 1 ? odd[low][i] : even[low][i];
    return keep_and_set(word >> (4 * (slot / 2) + 8 * odd_columns), NIBBLES, BASE);
  }
  DEV uint32_t last_pair(int slot, int low, int i, int odd_columns) const {
    return keep_and_set(last[low][slot / 2][i] >> (4 * (slot & 1) + 8 * odd_columns), NIBBLES, BASE);
  }
};

// GROUP columns share a scale: 32, 64 or 128. MAX_BITS: 2, 4 or 8; NESTED: each expert has bits of its own.
template <int MAX_BITS, int GROUP, bool NESTED, bool ZEROS>
struct Planes {
  static constexpr int JOB_COLUMNS = 256, JOB_SUMS = JOB_COLUMNS / GROUP, FULL_ARRIVALS = 33;
  static constexpr int GROUP_SLOTS = GROUP / 32;
  static constexpr int ROW_SCALE_BYTES = 2 * JOB_SUMS;                  // of one row in one job
  static constexpr int ZEROS_AT = 32 * ROW_SCALE_BYTES;
  static constexpr int SCALE_BYTES = (ZEROS ? 2 : 1) * 32 * ROW_SCALE_BYTES;
  static constexpr bool ROW_SCALES = false, NARROW_PLANES = true;
  static constexpr float UNIT = 1.f;

  DEV static constexpr int depth(int bits) {  // planes that are read
    const int read = NESTED && bits < MAX_BITS ? bits : MAX_BITS;
    return read <= 2 ? 1 : read <= 4 ? 2 : 3;
  }
  DEV static constexpr uint32_t slot_bytes(int bits) { return 1024u << depth(bits); }
  DEV static int row(int group) { return PlaneLanes::row(group); }

  DEV static void issue(const Problem& p, const Place& at, int index, const Job& job, uint64_t policy, int lane) {
    const int planes = depth(at.bits), matrix = at.matrix;
    const int groups = p.groups[matrix], first = index * JOB_SUMS;
    const int expert_rows = Place::rows_of(p, matrix);
    int row = at.expert * expert_rows + (lane < 16 ? at.row : at.lower(p)) + (lane & 15);
    if (NESTED && p.scale_precisions > 1) row += (planes - 1) * p.experts * expert_rows;
    const int64_t from = static_cast<int64_t>(row) * groups + first;
#pragma unroll
    for (int i = 0; i < JOB_SUMS; i += 2) {  // two scales are a word
      bool inside = first + i < groups;
      const uint32_t to = job.scales + ROW_SCALE_BYTES * lane + 2 * i;
      const int64_t at_group = inside ? from + i : 0;
      copy_word(to, static_cast<const uint16_t*>(p.scale[matrix]) + at_group, inside);
      if (ZEROS) copy_word(to + ZEROS_AT, p.zero[matrix] + at_group, inside);
    }
    copy_word_arrive(job.full);
    if (!elected()) return;
    barrier_expect(job.full, 1024u << planes);
#pragma unroll
    for (int plane = 0; plane < 3; ++plane)
      if (plane < planes)
        copy_tile(job.data + 2048 * plane, &p.map[matrix][plane], (plane == 2 ? 128 : 64) * index, at.row, at.expert,
                  job.full, policy);
  }

  DEV static uint32_t stage(uint32_t (&v)[4], int octet) {
    swap_middles(v);
    return 16u * octet;
  }

  template <int TILES>
  DEV static void multiply(const Place& at, const Job& job, const uint32_t (&rows)[TILES], const Lane& lane,
                           float (&sum)[TILES][2][4]) {
    const int planes = depth(at.bits);
    if (planes == 1) {
      if (NESTED || MAX_BITS == 2) multiply_bits<2, TILES>(job, rows, lane, sum);
    } else if (planes == 2) {
      if (MAX_BITS == 4 || (NESTED && MAX_BITS > 2)) multiply_bits<4, TILES>(job, rows, lane, sum);
    } else {
      if (MAX_BITS == 8) multiply_bits<8, TILES>(job, rows, lane, sum);
    }
  }

  template <int BITS, int TILES>
  DEV static void multiply_bits(const Job& job, const uint32_t (&rows)[TILES], const Lane& lane,
                                float (&sum)[TILES][2][4]) {
    constexpr int CHUNKS = TILES == 1 && BITS < 8 ? 2 : 1;  // of 128 columns, in turn: their sums do not wait for each other
    const uint32_t narrow = PlaneLanes::narrow(lane), wide = PlaneLanes::wide(lane);
    float high[CHUNKS][TILES][2][4], last[CHUNKS][TILES][2][4];
#pragma unroll
    for (int first = 0; first < 2; first += CHUNKS) {
      Codes<BITS> codes[CHUNKS][2];
#pragma unroll
      for (int i = 0; i < 2 * CHUNKS; ++i) codes[i / 2][i % 2].load(job, narrow, wide, i % 2, first + i / 2);
#pragma unroll
      for (int slot = 0; slot < 4; ++slot)
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
          const int group = (4 * (first + chunk) + slot) / GROUP_SLOTS;
          if (slot % GROUP_SLOTS == 0) begin_group<BITS, TILES>(job, lane, group, high[chunk], last[chunk]);
#pragma unroll
          for (int tile = 0; tile < TILES; ++tile) {
            uint32_t b[4];
            lds128(rows[tile] + 256 * (first + chunk) + 64 * slot, b);
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                const Codes<BITS>& c = codes[chunk][half];
                const uint32_t a[4] = {c.pair(slot, 0, i, 0), c.pair(slot, 1, i, 0), c.pair(slot, 0, i, 1),
                                       c.pair(slot, 1, i, 1)};
                mma(high[chunk][tile][half], a, b[2 * i], b[2 * i + 1]);
                if (BITS < 8) continue;
                const uint32_t l[4] = {c.last_pair(slot, 0, i, 0), c.last_pair(slot, 1, i, 0),
                                       c.last_pair(slot, 0, i, 1), c.last_pair(slot, 1, i, 1)};
                mma(last[chunk][tile][half], l, b[2 * i], b[2 * i + 1]);
              }
          }
          if (slot % GROUP_SLOTS == GROUP_SLOTS - 1)
            end_group<BITS, TILES>(job, lane, group, high[chunk], last[chunk], sum);
        }
    }
  }

  DEV static float row_value(uint32_t from, int half, int low, int group, const Lane& lane) {
    return half_to_float(lds16(from + ROW_SCALE_BYTES * (16 * half + 8 * low + row(lane.group)) + 2 * group));
  }

  // What a group's product starts from: it cancels the 128 and the middle, or the zero, of every code.
  template <int BITS, int TILES>
  DEV static void begin_group(const Job& job, const Lane& lane, int group, float (&high)[TILES][2][4],
                              float (&last)[TILES][2][4]) {
    const float middle = BITS == 2 ? 1.5f : 7.5f;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        float shift = 128.f + middle;
        if (ZEROS) shift = 128.f + row_value(job.scales + ZEROS_AT, half, low, group, lane) - (BITS == 8 ? 120.f : 0.f);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
          uint32_t sums[2];
          lds64(job.sums + group * job.sums_stride + 32 * tile, sums);
#pragma unroll
          for (int token = 0; token < 2; ++token) {
            if (BITS == 8) last[tile][half][2 * low + token] = -shift * as_float(sums[token]);
            high[tile][half][2 * low + token] = -(BITS == 8 ? 135.5f : shift) * as_float(sums[token]);
          }
        }
      }
  }

  template <int BITS, int TILES>
  DEV static void end_group(const Job& job, const Lane& lane, int group, const float (&high)[TILES][2][4],
                            const float (&last)[TILES][2][4], float (&sum)[TILES][2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        const float scale = row_value(job.scales, half, low, group, lane);
#pragma unroll
        for (int i = 0; i < 2 * TILES; ++i) {
          const int tile = i / 2, token = 2 * low + i % 2;
          float value = high[tile][half][token];
          if (BITS == 8) value = 16.f * value + last[tile][half][token];
          sum[tile][half][token] += scale * value;
        }
      }
  }
};
