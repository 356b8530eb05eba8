// Products of a warp: its slice of the columns, of tokens that stay in registers and of weights that come by.
//
// Lane l takes columns 8 (l % 4) to 8 (l % 4) + 7 of each block of 32, both of the tokens and of the weights: the matrix
// units sum over columns in any order, as long as it is one.
#pragma once

#include "layout.cuh"

struct Rows {
  uint32_t v[SLICE_BLOCKS][TOKEN_TILES][2][4];  // of tokens l / 4 and l / 4 + 8
  const uint16_t* from;
  int tokens, left;  // from this lane's first on; columns likewise

  DEV Rows(const Problem& p, const Work& work, int slice, int lane) {
    const int column = slice * SLICE_BLOCKS * BLOCK_COLUMNS + 8 * (lane % 4), token = lane / 4;
    from = p.x + static_cast<int64_t>(token) * COLUMNS + work.first_column + column;
    tokens = p.tokens - token, left = work.row_bytes / 2 - column;
  }
  DEV void load() {
#pragma unroll
    for (int block = 0; block < SLICE_BLOCKS; ++block)
#pragma unroll
      for (int tile = 0; tile < TOKEN_TILES; ++tile)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          const int token = 16 * tile + 8 * upper, column = block * BLOCK_COLUMNS;
          const bool inside = token < tokens && (WHOLE || column < left);
          if (EIGHT && upper) {
            v[block][tile][upper][0] = v[block][tile][upper][1] = 0;
            v[block][tile][upper][2] = v[block][tile][upper][3] = 0;
          } else {
            load_fresh(from + token * COLUMNS + column, inside, v[block][tile][upper]);
          }
        }
  }
};

// Some blocks of a warp's slice of the tiles of a stage; `at` is where this lane's first 16 bytes are.
constexpr int CHUNK = 2;  // blocks that are loaded while those before them are multiplied
template <int TILES>
struct Weights {
  uint32_t v[TILES][CHUNK][4];

  DEV void load(uint32_t at, int first) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i)
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
        if (first + i < SLICE_BLOCKS) lds128(at + tile * TILE * PITCH + (first + i) * BLOCK_BYTES, v[tile][i]);
  }
};

template <int TILES>
struct Sums {
  static constexpr int CHAINS = TILES * TOKEN_TILES < 4 ? 2 : 1;  // products that need not wait for each other
  float v[TILES][TOKEN_TILES][CHAINS][4];

  DEV void clear() {
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int t = 0; t < TOKEN_TILES; ++t)
#pragma unroll
        for (int chain = 0; chain < CHAINS; ++chain)
#pragma unroll
          for (int i = 0; i < 4; ++i) v[tile][t][chain][i] = 0.0f;
  }

  DEV void add(const Weights<TILES>& weights, const Rows& x, int first) {
#pragma unroll
    for (int block = first; block < first + CHUNK && block < SLICE_BLOCKS; ++block)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
          for (int t = 0; t < TOKEN_TILES; ++t) {
            const uint32_t(&low)[4] = x.v[block][t][0], (&high)[4] = x.v[block][t][1];
            const uint32_t a[4] = {low[2 * half], high[2 * half], low[2 * half + 1], high[2 * half + 1]};
            const uint32_t(&w)[4] = weights.v[tile][block - first];
            mma(v[tile][t][half % CHAINS], a, w[2 * half], w[2 * half + 1]);
          }
  }

  // To `at` for the first tile and the first 16 tokens.
  DEV void store(uint32_t at, int tile_pitch) const {
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int t = 0; t < TOKEN_TILES; ++t) {
        uint32_t bits[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          bits[i] = as_bits(CHAINS == 2 ? v[tile][t][0][i] + v[tile][t][CHAINS - 1][i] : v[tile][t][0][i]);
        sts128(at + tile * tile_pitch + t * BLOCK_BYTES, bits);
      }
  }
};

// Where a slice's parts lie: in the first places of what it has read, or in room of their own.
struct Parts {
  uint32_t start;
  int row, tile, slice;  // bytes from one to the next

  DEV explicit Parts(const Problem& p) {
    constexpr int OWN_PITCH = pitch_of(SLICES * TOKEN_TILES * BLOCK_BYTES);
    start = dynamic_start() + (p.apart ? p.parts_at : p.stages_at);
    row = p.apart ? OWN_PITCH : PITCH;
    tile = TILE * row;
    slice = BLOCK_BYTES * (p.apart ? TOKEN_TILES : SLICE_BLOCKS);
  }
  DEV uint32_t at(int index, int of_slice, int lane) const {
    return start + index * tile + lane / 4 * row + of_slice * slice + lane % 4 * 16;
  }
};

// One stage, or the last one's only tile. `release` is called when its weights are in registers.
template <int TILES, class Release>
DEV void multiply_stage(const Rows& x, uint32_t weights_at, uint32_t parts_at, int tile_pitch, Release release) {
  constexpr int CHUNKS = over(SLICE_BLOCKS, CHUNK);
  Weights<TILES> weights[CHUNKS];
  Sums<TILES> sums;
  sums.clear();
  weights[0].load(weights_at, 0);
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    if (chunk + 1 < CHUNKS) weights[chunk + 1].load(weights_at, CHUNK * (chunk + 1));
    if (chunk == (CHUNKS > 1 ? CHUNKS - 2 : 0)) release();  // the last ones are loaded
    sums.add(weights[chunk], x, CHUNK * chunk);
  }
  sums.store(parts_at, tile_pitch);
}
