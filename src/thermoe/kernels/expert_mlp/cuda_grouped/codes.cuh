// Codes become operands in registers: the left side of a matrix product may lie there.
//
// A thread holds, of a product's 64 rows, rows r and r + 8 of its warp's 16 (r = lane / 4), and of every 16 positions
// the pairs 2 q and 2 q + 8 (q = lane % 4). A chunk's 128 columns are multiplied in an order that suits the planes:
// thread q has bytes 8 q .. 8 q + 7 of each part, and of a word's four bytes the even ones are a pair, the odd ones
// another. Position bits, from the highest: slot & 1, slot / 2, word, odd, q (2), second; column_at turns them into a
// column. Tokens and hidden values lie in that order, and so do the rows that give the latter.
//
// A code's parts meet in a nibble, which is laid at bits 1..4 of the bf16 number 128: 143 is taken from 128 + 2 c, both
// exactly. What is left to multiply by is half the scale of a row and chunk. Sums are kept in units of it: they are
// multiplied by the ratio of two neighbouring scales instead of each weight by its own, so no weight is rounded.
#pragma once

#include "finish.cuh"
#include "ring.cuh"

template <int BITS>
constexpr int PARTS_READ = BITS == 8 ? 4 : BITS / 2;

template <int BITS>
struct Words {  // of one product
  uint32_t part[2][PARTS_READ<BITS>][2];  // of rows r and r + 8
};

// Bits of a where the mask has them, bits of b elsewhere.
template <uint32_t MASK>
DEV uint32_t mixed(uint32_t a, uint32_t b) { return (a & MASK) | (b & ~MASK); }

// Eight bytes' codes of slots HALF and HALF + 2 in the lower and upper four bits of each byte.
template <int HALF>
DEV uint32_t of_two_planes(uint32_t high, uint32_t low) {
  return HALF == 0 ? mixed<0xccccccccu>(high << 2, low) : mixed<0xccccccccu>(high, low >> 2);
}
template <int HALF>
DEV uint32_t of_last_plane(uint32_t first, uint32_t second) {
  return HALF == 0 ? mixed<0xf0f0f0f0u>(second << 4, first) : mixed<0xf0f0f0f0u>(second, first >> 4);
}

// The pair of nibbles that starts at a bit: 2 c - 15, or 2 c - 3 for codes of two bits.
template <int BIT, bool TWO_BITS>
DEV uint32_t odd_pair(uint32_t word) {
  const uint32_t moved = BIT == 0 ? word << 1 : word >> (BIT - 1);
  return add_bf16((moved & (TWO_BITS ? 0x00060006u : 0x001e001eu)) | 0x43004300u, TWO_BITS ? 0xc303c303u : 0xc30fc30fu);
}

template <int BITS, int HALF, int BIT>
DEV uint32_t widened(const uint32_t (&part)[PARTS_READ<BITS>][2], int word) {
  if constexpr (BITS == 2) {
    return odd_pair<BIT, true>(HALF == 0 ? part[0][word] : part[0][word] >> 2);
  } else {
    const uint32_t upper = odd_pair<BIT, false>(of_two_planes<HALF>(part[0][word], part[1][word]));
    if constexpr (BITS == 8) {  // 16 (2 a - 15) + 2 b - 15 = 2 c - 255
      const uint32_t lower = of_last_plane<HALF>(part[2][word], part[3][word]);
      return add_product_bf16(upper, 0x41804180u, odd_pair<BIT, false>(lower));
    }
    return upper;
  }
}

// Half a chunk: four products of 16 positions.
template <int BITS, int HALF>
DEV void widen(const Words<BITS>& words, uint32_t (&a)[4][4]) {
#pragma unroll
  for (int row = 0; row < 2; ++row)
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      a[word][row] = widened<BITS, HALF, 0>(words.part[row], word);
      a[word][2 + row] = widened<BITS, HALF, 8>(words.part[row], word);
      a[2 + word][row] = widened<BITS, HALF, 4>(words.part[row], word);
      a[2 + word][2 + row] = widened<BITS, HALF, 12>(words.part[row], word);
    }
}

// Where a thread's four rows lie: r and r + 8 of the first product, then of the second.
template <int BITS>
struct Coded {
  const uint16_t* scale;
  uint32_t first_row, to_lower, to_second;  // in a stage, bytes
  uint32_t index[4], next[4];               // of scales: of a row's first; of the chunk to come
  uint32_t rows;                            // of an expert, whose scales of one chunk lie together
  float unit[4];

  DEV Coded(const Problem& p, const Tile& tile, int group, int warp, int lane) {
    const int m = tile.matrix, width = p.columns[1 - m], chunks = ceil_div(p.columns[m], CHUNK);
    const int row = m ? 128 * group + 32 * warp + lane / 4 : column_at(64 * group + 16 * warp + lane / 4);
    const int lower = m ? 8 : 1, second = m ? 16 : width;
    const int count = m ? width : 2 * width, start = tile.block * (m ? OUT_COLUMNS : HIDDEN_COLUMNS) + row;
    rows = static_cast<uint32_t>(count);
    first_row = row * CODE_BYTES + lane % 4 * 8, to_lower = lower * CODE_BYTES;
    to_second = m ? 16 * CODE_BYTES : CODE_BOX;
    scale = p.scale[m];
    if constexpr (NESTED) scale += static_cast<int64_t>(BITS == 8 ? 2 : BITS / 4) * p.experts * count * chunks;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = start + (i & 1) * lower + (i / 2) * second;
      const int inside = at < count ? at : count - 1;  // past an expert: not stored
      index[i] = static_cast<uint32_t>(tile.expert * chunks) * rows + static_cast<uint32_t>(inside);
      next[i] = load_half(scale + index[i]);
      unit[i] = 1.0f;
    }
  }

  DEV void load(Words<BITS>& words, uint32_t stage, int product) const {
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int part = 0; part < PARTS_READ<BITS>; ++part)
        lds64(stage + 2 * part * CODE_BOX + first_row + row * to_lower + product * to_second, words.part[row][part]);
  }

  // Ratios of the units so far to those of a chunk, which are the units from here on.
  DEV void change_units(float (&by)[4], int following) {
    constexpr float NO_SCALE = 9.0949470177292824e-13f;  // 2^-40 instead of 0, which nothing can be divided by
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float half = 0.5f * from_f16(next[i]), to = half == 0.0f ? NO_SCALE : half;
      by[i] = fast_divide(unit[i], to);
      unit[i] = to;
      next[i] = load_half(scale + index[i] + static_cast<uint32_t>(following) * rows);
    }
  }
};

// Not before sums are there, which the compiler cannot know.
DEV void change_unit(float (&sums)[VALUES], float upper, float lower, int width) {
#pragma unroll
  for (int i = 0; i < VALUES; ++i)
    if (i < width / 2) stays_behind(sums[i]);
#pragma unroll
  for (int i = 0; i < VALUES; ++i)
    if (i < width / 2) sums[i] *= i & 2 ? lower : upper;
}

// Half a chunk of one product: its codes become operands while the other product is under way.
template <int HALF, bool FIRST_CHUNK, int WIDTH, int BITS>
DEV void multiply_half(float (&sums)[VALUES], uint32_t (&a)[4][4], const Words<BITS>& words, uint64_t tokens,
                       const float* by) {
  widen<BITS, HALF>(words, a);
  if (HALF == 0 && !FIRST_CHUNK) change_unit(sums, by[0], by[1], WIDTH);
  products_open();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    Product<WIDTH>::add(sums, a[k], tokens + HALF * (STEP_TOKENS / 16) + 2 * k, !FIRST_CHUNK || HALF || k);
  products_close();
}

// A warpgroup's two products take turns: before one's operands and sums are touched, all but the other's last half of a
// chunk has to be over.
template <int WIDTH, int BITS>
struct Chunks {
  Sums& sums;
  Turn<STAGES>& turn;
  Coded<BITS>& coded;
  uint32_t first[4][4], second[4][4];
  uint32_t stage = 0;
  uint64_t tokens = 0;

  template <bool FIRST_CHUNK>
  DEV void begin(int following) {
    const uint32_t done = BAR_EMPTY + 8 * turn.at;  // of the chunk before
    float by[4];
    Words<BITS> words;
    coded.change_units(by, following);
    if (!FIRST_CHUNK) turn.next();
    stage = STAGE + turn.at * STAGE_BYTES, tokens = operand(stage + WEIGHT_BYTES);
    barrier_wait(BAR_FULL + 8 * turn.at, turn.parity);
    fence_async();
    coded.load(words, stage, 0);
    if (!FIRST_CHUNK) products_wait<0>();  // the compiler takes sums from a loop's last round only so
    multiply_half<0, FIRST_CHUNK, WIDTH>(sums.first, first, words, tokens, by);
    coded.load(words, stage, 1);
    if (!FIRST_CHUNK) products_wait<1>(), give_back(done);
    multiply_half<0, FIRST_CHUNK, WIDTH>(sums.second, second, words, tokens, by + 2);
  }
  DEV void end() {
    Words<BITS> words;
    coded.load(words, stage, 0);
    products_wait<1>();
    multiply_half<1, false, WIDTH>(sums.first, first, words, tokens, nullptr);
    coded.load(words, stage, 1);
    products_wait<1>();
    multiply_half<1, false, WIDTH>(sums.second, second, words, tokens, nullptr);
  }
};

template <int WIDTH, int BITS>
DEV void multiply_chunks(Sums& sums, Turn<STAGES>& turn, int count, Coded<BITS>& coded, int told) {
  Chunks<WIDTH, BITS> chunks{sums, turn, coded};
  chunks.template begin<true>(count > 1);
  for (int chunk = 0;;) {
    chunks.end();
    if (chunk == told) named_arrive<LEADER_AHEAD>(32 * MULTIPLY_WARPS);
    if (++chunk == count) break;
    chunks.template begin<false>(chunk + 1 < count ? chunk + 1 : chunk);
  }
  products_wait<0>();
  give_back(BAR_EMPTY + 8 * turn.at);
  turn.next();
#pragma unroll
  for (int i = 0; i < 4; ++i) sums.unit[i] = coded.unit[i];
}
