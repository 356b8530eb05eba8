// Weights in bit planes (weights.py, PlaneMatrices): 2, 4 or 8 bits, the same for all experts or each its own.
//
// Codes are multiplied as they are, as bytes by bytes: an activation of a scale group is s * (256 * high + low) with
// two signed bytes and s the group's largest magnitude / 32639, which is more precise than a rounding to bf16 of what
// it is added to. The two bytes are columns of one product: a tile has four tokens, their high bytes in columns 0 to 3
// and their low bytes in 4 to 7. Sums of whole numbers below 2^22 are exact; started from the bits of 1.5 * 2^23 they
// are a float already. The middle of the code range leaves through the sums of the bytes (stage_planes.cuh).
#pragma once

#include "job.cuh"
#include "stage_planes.cuh"

constexpr uint32_t NIBBLES = 0x0f0f0f0fu, PAIRS = 0x03030303u, HIGH_NIBBLES = 0xf0f0f0f0u;
constexpr uint32_t HIGH_HALVES = 0xccccccccu;
constexpr int32_t WHOLE_BITS = 0x4b400000;  // of WHOLE
constexpr int WORDS_OF_ROW = 4;             // of 8 bytes, in a piece: what the maps of planes count

// Two words of the 2-bit planes, joined into codes of 4 bits: slots 0 and 2 of each byte, and slots 1 and 3.
DEV uint32_t join_even(uint32_t first, uint32_t second) { return blend(first << 2, second, HIGH_HALVES); }
DEV uint32_t join_odd(uint32_t first, uint32_t second) { return blend(first, second >> 2, HIGH_HALVES); }

// A lane's codes of one chunk of 128 columns, 16 rows: words [low][i] of rows `group` and `group` + 8. In a job each
// piece has its 32 rows together, 32 bytes each, so that a warp reads 256 bytes in a row.
template <int BITS>
struct Codes {
  uint32_t even[2][2], odd[2][2];  // 2 bits: the word itself in `even`
  uint32_t last[2][2][2];          // the 4-bit plane: [low][slot / 2][i]

  DEV void load(const Job& job, const Lane& lane, int half, int chunk) {
    const uint32_t own = job.data + 32 * lane.group + 8 * lane.quad;
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      const uint32_t at = own + 1024 * chunk + 512 * half + 256 * low;
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
        lds64(own + 4096 + 2048 * chunk + 1024 * k + 512 * half + 256 * low, last[low][k]);
    }
  }

  // Codes of some slots are left where they lie in their bytes, as multiples: slots of a kind have the same multiple.
  DEV static constexpr int kind(int slot) { return BITS == 2 ? slot & 1 : BITS == 4 ? slot / 2 : 0; }
  DEV static constexpr float unit(int kind) { return kind == 0 ? 1.f : BITS == 2 ? 0.25f : 0.0625f; }

  // Four columns of a slot, a code a byte.
  DEV uint32_t bytes(int slot, int low, int i) const {
    if (BITS == 2) return even[low][i] >> 4 * (slot / 2) & PAIRS << 2 * (slot & 1);
    const uint32_t word = slot & 1 ? odd[low][i] : even[low][i];
    if (BITS == 4) return word & NIBBLES << 4 * (slot / 2);
    const uint32_t end = last[low][slot / 2][i];
    return blend(slot / 2 ? word : word << 4, slot & 1 ? end >> 4 : end, HIGH_NIBBLES);
  }
};

// GROUP columns share a scale: 32, 64 or 128. MAX_BITS: 2, 4 or 8; NESTED: each expert has bits of its own.
template <int MAX_BITS, int GROUP, bool NESTED, bool ZEROS>
struct Planes {
  static constexpr int JOB_COLUMNS = 256, JOB_SUMS = JOB_COLUMNS / GROUP, FULL_ARRIVALS = 1, TILE_TOKENS = 4;
  static constexpr int COLUMN_BYTES = JOB_COLUMNS, TILE_COST = 24, RUN_COST = 170, ONE_WAVE_ROWS = 3;
  static constexpr int GROUP_SLOTS = GROUP / 32;
  static constexpr int GROUP_SCALE_BYTES = 2 * 32;  // of one group in one job
  static constexpr int ZEROS_AT = JOB_SUMS * GROUP_SCALE_BYTES;
  static constexpr int SCALE_BYTES = (ZEROS ? 2 : 1) * ZEROS_AT;
  static constexpr bool ROW_SCALES = false, PLANES_DIFFER = NESTED && MAX_BITS > 2;
  static constexpr float UNIT = 1.f;

  DEV static constexpr int depth(int bits) {  // planes that are read
    const int read = NESTED && bits < MAX_BITS ? bits : MAX_BITS;
    return read < 4 ? 1 : read < 8 ? 2 : 3;
  }
  DEV static constexpr uint32_t slot_bytes(int planes) { return 1024u << planes; }
  DEV static int row(int group) { return group; }

  DEV static void issue(const Problem& p, const Place& at, int index, const Job& job, uint64_t policy, int) {
    if (!elected()) return;
    const int planes = PLANES_DIFFER ? at.planes : depth(MAX_BITS);
    const TensorMap* map = p.map[at.matrix];
    barrier_expect(job.full, slot_bytes(planes) + SCALE_BYTES);
#pragma unroll
    for (int plane = 0; plane < 3; ++plane)
      if (plane == 0 || plane < planes)
        copy_rows(job.data + 2048 * plane, map + plane, WORDS_OF_ROW * at.row, (plane == 2 ? 4 : 2) * index,
                  at.expert, job.full, policy);
    const int of = (NESTED ? (planes - 1) * p.experts : 0) + at.expert;
    copy_rows(job.scales, map + SCALE_MAP, at.row, JOB_SUMS * index, of, job.full, policy);
    if (ZEROS) copy_rows(job.scales + ZEROS_AT, map + ZERO_MAP, at.row, JOB_SUMS * index, of, job.full, policy);
  }

  // Where a lane finds its column of a tile: a token's high bytes, or its low ones half a row on.
  DEV static uint32_t column(uint32_t rows_at, int tile, int rows, const Lane& lane, uint32_t pitch) {
    const int token = 4 * tile + (lane.group & 3);
    return rows_at + (token < rows ? token : rows - 1) * pitch + (lane.group >> 2) * low_bytes_at(pitch) + 16 * lane.quad;
  }
  DEV static void stage(uint32_t (&v)[4], int octet, int row, uint32_t to, uint32_t pitch, uint32_t sums, int stride) {
    stage_bytes<GROUP>(v, octet, row, to, pitch, sums, stride);
  }

  template <int TILES, int PLANES>
  DEV static void multiply(const Place& at, const Job& job, const uint32_t (&rows)[TILES], const Lane& lane,
                           float (&sum)[TILES][2][4]) {
    const int planes = PLANES > 0 ? PLANES : PLANES_DIFFER ? at.planes : depth(MAX_BITS);
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
    constexpr int AT_ONCE = TILES < 4 ? TILES : 4;  // tiles whose sums a lane holds
    constexpr int CHUNKS = TILES <= 2 ? 2 : 1;      // of 128 columns, whose sums do not wait for each other
#pragma unroll
    for (int tile = 0; tile < TILES; tile += AT_ONCE)
#pragma unroll
      for (int chunk = 0; chunk < 2; chunk += CHUNKS) {
        Codes<BITS> codes[CHUNKS][2];
#pragma unroll
        for (int i = 0; i < 2 * CHUNKS; ++i) codes[i / 2][i % 2].load(job, lane, i % 2, chunk + i / 2);
        multiply_chunks<BITS, CHUNKS, AT_ONCE, TILES>(job, codes, rows, lane, chunk, tile, sum);
      }
  }

  template <int BITS, int CHUNKS, int AT_ONCE, int TILES>
  DEV static void multiply_chunks(const Job& job, const Codes<BITS> (&codes)[CHUNKS][2], const uint32_t (&rows)[TILES],
                                  const Lane& lane, int first_chunk, int first_tile, float (&sum)[TILES][2][4]) {
    int32_t product[CHUNKS][2][AT_ONCE][2][4];  // of either kind of slot
    uint32_t b[CHUNKS][AT_ONCE][4];             // of two slots
#pragma unroll
    for (int slot = 0; slot < 4; ++slot)
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        const int chunk = first_chunk + c, kind = Codes<BITS>::kind(slot), start = slot / GROUP_SLOTS * GROUP_SLOTS;
#pragma unroll
        for (int t = 0; t < AT_ONCE; ++t) {
          if (slot % 2 == 0) lds128(rows[first_tile + t] + 128 * chunk + 64 * (slot / 2), b[c][t]);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const Codes<BITS>& code = codes[c][half];
            const uint32_t a[4] = {code.bytes(slot, 0, 0), code.bytes(slot, 1, 0), code.bytes(slot, 0, 1),
                                   code.bytes(slot, 1, 1)};
            const uint32_t b0 = b[c][t][2 * (slot % 2)], b1 = b[c][t][2 * (slot % 2) + 1];
            if (is_first<BITS>(start, slot))
              mma_bytes_from(product[c][kind][t][half], a, b0, b1, WHOLE_BITS);
            else
              mma_bytes(product[c][kind][t][half], a, b0, b1);
          }
        }
        if (slot % GROUP_SLOTS == GROUP_SLOTS - 1)
          end_group<BITS, AT_ONCE, TILES>(job, lane, chunk, start, product[c], first_tile, sum);
      }
  }

  // Whether no slot before it in its group, which begins at `start`, is of its kind.
  template <int BITS>
  DEV static constexpr bool is_first(int start, int slot) {
    for (int other = start; other < slot; ++other)
      if (Codes<BITS>::kind(other) == Codes<BITS>::kind(slot)) return false;
    return true;
  }

  DEV static float row_value(uint32_t from, int half, int low, int group, const Lane& lane) {
    return from_f16(lds16(from + GROUP_SCALE_BYTES * group + 32 * half + 16 * low + 2 * lane.group));
  }

  // The group of slots from `start` on. A sum of whole numbers with WHOLE in it is rounded to a unit of the last place,
  // that is a step of an activation times a code of one: far below what rounding the activations has cost.
  template <int BITS, int AT_ONCE, int TILES>
  DEV static void end_group(const Job& job, const Lane& lane, int chunk, int start,
                            const int32_t (&product)[2][AT_ONCE][2][4], int first_tile, float (&sum)[TILES][2][4]) {
    const int group = (4 * chunk + start) / GROUP_SLOTS, kind = Codes<BITS>::kind(start);
    const bool both = kind != Codes<BITS>::kind(start + GROUP_SLOTS - 1);
    const float unit = Codes<BITS>::unit(kind), other = both ? Codes<BITS>::unit(1) : 0.f;  // both: the first is 1
    float scale[2][2], zero[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scale[i / 2][i % 2] = unit * row_value(job.scales, i / 2, i % 2, group, lane);
      if (ZEROS) zero[i / 2][i % 2] = row_value(job.scales + ZEROS_AT, i / 2, i % 2, group, lane) / unit;
    }
    constexpr float MIDDLE = ZEROS ? 0.f : BITS == 2 ? 1.5f : BITS == 4 ? 7.5f : 127.5f;
#pragma unroll
    for (int t = 0; t < AT_ONCE; ++t) {
      uint32_t column[4];  // of the lane's two columns: step, sum of bytes
      lds128(job.sums + group * job.sums_stride + COLUMN_SUM_BYTES * (first_tile + t), column);
      float base[2];
      for (int token = 0; token < 2; ++token)
        base[token] = -(1.f + other) * WHOLE - MIDDLE / unit * as_float(column[2 * token + 1]);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int half = i / 4, low = i / 2 % 2, token = i % 2;
        float value = as_float(static_cast<uint32_t>(product[kind][t][half][i % 4])) + base[token];
        if (both) value += other * as_float(static_cast<uint32_t>(product[1][t][half][i % 4]));
        if (ZEROS) value -= zero[half][low] * as_float(column[2 * token + 1]);
        sum[first_tile + t][half][i % 4] += scale[half][low] * as_float(column[2 * token]) * value;
      }
    }
  }

  // High and low bytes of the same token are two columns apart in quads; two tiles of four tokens make one of eight.
  template <int TILES, int FOLDED>
  DEV static void fold(const float (&sum)[TILES][2][4], float (&folded)[FOLDED][2][4], const Lane& lane) {
#pragma unroll
    for (int i = 0; i < 8 * FOLDED; ++i) {
      const int tile = 2 * (i / 8), half = i / 4 % 2, at = i % 4;
      const float first = sum[tile][half][at] + shuffle_xor(sum[tile][half][at], 2);
      folded[i / 8][half][at] = first;
      if (tile + 1 == TILES) continue;
      const float second = sum[tile + 1][half][at] + shuffle_xor(sum[tile + 1][half][at], 2);
      if (lane.quad >= 2) folded[i / 8][half][at] = second;
    }
  }
};
