// Weights of whole bytes: bf16, and e4m3 with scales for rows or for blocks of 128 x 128.
//
// Both fill a job with 16 tiles of 8 rows by 128 bytes, swizzled by the copy engine (16-byte units of a row exchanged
// by its number), and a lane reads 16 bytes of a row at a time: 8 columns of bf16 or 16 of e4m3. The order of columns
// within a product is free, so long as the activations (stage.cuh) lie in the same one.
#pragma once

#include "job.cuh"

struct ByteLanes {
  // Rows in such an order that two neighbouring groups, which are read together, differ in bit 2: the other half of
  // the banks.
  DEV static int row(int group) { return group / 2 | (group & 1) << 2; }
  DEV static uint32_t offset(const Lane& lane) {
    int r = row(lane.group);
    return static_cast<uint32_t>(128 * r + (16 * lane.quad ^ 16 * r));
  }
};

// Two boxes of 32 rows by 128 bytes.
DEV void copy_byte_tiles(const Problem& p, const Place& at, int index, const Job& job, uint64_t policy) {
  const TensorMap* map = &p.map[at.matrix][0];
  for (int box = 0; box < 2; ++box)
    copy_tile(job.data + 4096 * box, map, 256 * index + 128 * box, at.row, at.expert, job.full, policy);
}

// What both have in common: a token is a column of a tile of eight.
struct ByteRows {
  static constexpr bool PLANES_DIFFER = false;
  DEV static constexpr int depth(int) { return 1; }
  static constexpr int TILE_TOKENS = 8, TILE_COST = 8, RUN_COST = 0, ONE_WAVE_ROWS = MAX_TILES * TILE_TOKENS + 1;

  // Where a lane finds its column of a tile; past the last token it is the last one's, and nobody looks at the product.
  DEV static uint32_t column(uint32_t rows_at, int tile, int rows, const Lane& lane, uint32_t pitch) {
    const int token = 8 * tile + lane.group;
    return rows_at + (token < rows ? token : rows - 1) * pitch + 16 * lane.quad;
  }
  // From the format's tiles to tiles of eight tokens.
  template <int TILES, int FOLDED>
  DEV static void fold(const float (&sum)[TILES][2][4], float (&folded)[FOLDED][2][4], const Lane&) {
#pragma unroll
    for (int i = 0; i < 8 * TILES; ++i) folded[i / 8][i / 4 % 2][i % 4] = sum[i / 8][i / 4 % 2][i % 4];
  }
};

struct Bf16 : ByteRows {
  static constexpr int JOB_COLUMNS = 128, COLUMN_BYTES = 256, JOB_SUMS = 0, SCALE_BYTES = 0, FULL_ARRIVALS = 1;
  static constexpr bool ROW_SCALES = false;
  static constexpr float UNIT = 1.f;
  DEV static constexpr uint32_t slot_bytes(int) { return 8192; }
  DEV static int row(int group) { return ByteLanes::row(group); }

  // Starts the copy of the unit's job `index`.
  DEV static void issue(const Problem& p, const Place& at, int index, const Job& job, uint64_t policy, int) {
    if (!elected()) return;
    barrier_expect(job.full, 8192);
    copy_byte_tiles(p, at, index, job, policy);
  }

  // Eight activations on their way into a row of a block of activations.
  DEV static void stage(uint32_t (&v)[4], int octet, int row, uint32_t to, uint32_t pitch, uint32_t, int) {
    sts128(to + row * pitch + 16 * octet, v);
  }

  template <int TILES, int PLANES>
  DEV static void multiply(const Place&, const Job& job, const uint32_t (&rows)[TILES], const Lane& lane,
                           float (&sum)[TILES][2][4]) {
    const uint32_t from[2] = {job.data + ByteLanes::offset(lane), job.data + (ByteLanes::offset(lane) ^ 64u)};
#pragma unroll
    for (int step = 0; step < 4; ++step) {  // 32 columns
      uint32_t a[2][2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int low = 0; low < 2; ++low)
          lds128(from[step & 1] + 4096 * (step / 2) + 2048 * half + 1024 * low, a[half][low]);
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        uint32_t b[4];
        lds128(rows[tile] + 64 * step, b);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const uint32_t words[4] = {a[half][0][2 * k], a[half][1][2 * k], a[half][0][2 * k + 1],
                                       a[half][1][2 * k + 1]};
            mma(sum[tile][half], words, b[2 * k], b[2 * k + 1]);
          }
        }
      }
    }
  }
};

// e4m3 codes become bf16 by moving bits: exactly the weight times 2^-120, which activations times 2^64 lift into the
// middle of the float range; UNIT takes out the rest.
template <bool BLOCKS>
struct Fp8 : ByteRows {
  static constexpr int JOB_COLUMNS = 256, COLUMN_BYTES = 512, JOB_SUMS = 0, SCALE_BYTES = BLOCKS ? 16 : 0, FULL_ARRIVALS = BLOCKS ? 33 : 1;
  static constexpr bool ROW_SCALES = !BLOCKS;
  static constexpr float UNIT = 72057594037927936.f;  // 2^56
  DEV static constexpr uint32_t slot_bytes(int) { return 8192; }
  DEV static int row(int group) { return ByteLanes::row(group); }

  DEV static void issue(const Problem& p, const Place& at, int index, const Job& job, uint64_t policy, int lane) {
    if (BLOCKS) {  // two rows of blocks, two blocks along the columns
      if (lane < 4) {
        const int per_expert = Place::rows_of(p, at.matrix), row = lane < 2 ? at.row : at.lower(p);
        int block_row = at.expert * ((per_expert + 127) / 128) + row / 128, column = 2 * index + (lane & 1);
        bool inside = column < p.groups[at.matrix];
        const float* scales = static_cast<const float*>(p.scale[at.matrix]);
        const float* from = scales + static_cast<int64_t>(block_row) * p.groups[at.matrix];
        copy_word(job.scales + 4 * lane, from + (inside ? column : 0), inside);
      }
      copies_arrive(job.full);
    }
    if (!elected()) return;
    barrier_expect(job.full, 8192);
    copy_byte_tiles(p, at, index, job, policy);
  }

  // A lane reads 16 codes, hence two octets: even ones lie in the first half of 64 columns, odd ones in the second.
  DEV static void stage(uint32_t (&v)[4], int octet, int row, uint32_t to, uint32_t pitch, uint32_t, int) {
    for (int i = 0; i < 4; ++i) {
      constexpr float LIFT = 18446744073709551616.f;
      float low = as_float(v[i] << 16) * LIFT, high = as_float(v[i] & 0xffff0000u) * LIFT;
      v[i] = as_bits(low) >> 16 | (as_bits(high) & 0xffff0000u);  // times 2^64, which rounds nothing
    }
    swap_middles(v);
    sts128(to + row * pitch + 128 * (octet / 8) + 64 * (octet & 1) + 16 * (octet / 2 & 3), v);
  }

  DEV static uint32_t widen(uint32_t codes) {  // bytes 1 and 3
    return keep_and_set(codes >> 4, 0x07f007f0u, codes & 0x80008000u);
  }

  template <int TILES, int PLANES>
  DEV static void multiply(const Place&, const Job& job, const uint32_t (&rows)[TILES], const Lane& lane,
                           float (&sum)[TILES][2][4]) {
    const uint32_t from[2] = {job.data + ByteLanes::offset(lane), job.data + (ByteLanes::offset(lane) ^ 64u)};
    float block[TILES][2][4];
    float(&into)[TILES][2][4] = BLOCKS ? block : sum;
#pragma unroll
    for (int part = 0; part < 4; ++part) {  // 64 columns
      if (BLOCKS && part % 2 == 0) set_zero(block);
      uint32_t codes[2][2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int low = 0; low < 2; ++low)
          lds128(from[part & 1] + 4096 * (part / 2) + 2048 * half + 1024 * low, codes[half][low]);
#pragma unroll
      for (int octet = 0; octet < 2; ++octet) {
        uint32_t a[2][2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) {  // columns 0 and 2 of both rows, then 1 and 3
              uint32_t word = codes[half][i & 1][2 * octet + k];
              a[half][k][i] = widen(i < 2 ? word << 8 : word);
            }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
          uint32_t b[4];
          lds128(rows[tile] + 64 * (2 * part + octet), b);
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int k = 0; k < 2; ++k) mma(into[tile][half], a[half][k], b[2 * k], b[2 * k + 1]);
        }
      }
      if (BLOCKS && part % 2 == 1) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float scale = lds_float(job.scales + 8 * half + 4 * (part / 2));
#pragma unroll
          for (int i = 0; i < 4 * TILES; ++i) sum[i / 4][half][i % 4] += scale * block[i / 4][half][i % 4];
        }
      }
    }
  }
};
