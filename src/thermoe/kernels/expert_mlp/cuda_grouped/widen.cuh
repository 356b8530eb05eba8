// The warps that widen codes: planes of two bits become bf16 weights in the shared memory that products read.
//
// A thread takes 16 bytes of each plane for one row of each product: of a chunk's 128 columns the 16 neighbours in each
// of four slots of 32. A step is two of these slots. The code's two parts meet at bits 1..4 of a byte, beside which lies
// the byte 0x43: the bf16 number 128 + 2 c, from which 143 is taken exactly. The scale, halved, is the sum of two bf16
// numbers, so that the weight is rounded once.
#pragma once

#include "schedule.cuh"

struct Codes {  // of one row and chunk
  uint32_t high[4], low[4], scale;
};

template <int BY>
DEV uint32_t shifted(uint32_t v) {
  if constexpr (BY >= 0)
    return v << BY;
  else
    return v >> -BY;
}

template <int SLOT>
DEV void widen_word(const Codes& codes, int word, uint32_t by, uint32_t by_rest, uint32_t& first, uint32_t& second) {
  const uint32_t low = shifted<1 - 2 * SLOT>(codes.low[word]) & 0x06060606u;
  const uint32_t twice = (shifted<3 - 2 * SLOT>(codes.high[word]) & 0x18181818u) | low;
  const uint32_t a = add_bf16(pick_bytes<0x4140>(twice, 0x43434343u), 0xc30fc30fu);  // - 143
  const uint32_t b = add_bf16(pick_bytes<0x4342>(twice, 0x43434343u), 0xc30fc30fu);
  first = add_product_bf16(a, by, multiply_bf16(a, by_rest));
  second = add_product_bf16(b, by, multiply_bf16(b, by_rest));
}

// 16 neighbouring columns of a slot: two pieces of a swizzled row.
template <int SLOT>
DEV void widen_slot(const Codes& codes, uint32_t to, int row, int half) {
  const float scale = 0.5f * float_of_f16(codes.scale);
  const uint32_t by = pack_bf16(scale, scale);
  const float rest = scale - as_float(by << 16);
  const uint32_t by_rest = pack_bf16(rest, rest);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t out[4];
    widen_word<SLOT>(codes, 2 * i, by, by_rest, out[0], out[1]);
    widen_word<SLOT>(codes, 2 * i + 1, by, by_rest, out[2], out[3]);
    const int piece = 4 * (SLOT % 2) + 2 * half + i;
    sts128(to + ((piece ^ row) & 7) * 16, out);
  }
}

struct Widener {
  const Problem& p;
  const int matrix, row, half, steps;  // row of a product
  const int start;                     // of the first product, that row among those of all experts

  DEV Widener(const Problem& problem, const Tile& tile, int r, int h)
      : p(problem), matrix(tile.matrix), row(r), half(h), steps(steps_of(problem, tile.matrix)),
        start(matrix ? tile.expert * p.columns[0] + tile.block * OUT_COLUMNS + 32 * (row / 16) + row % 16
                     : tile.expert * 2 * p.columns[1] + tile.block * HIDDEN_COLUMNS + row) {}

  DEV void load(Codes& codes, int box, int chunk) const {
    const int width = p.columns[1 - matrix], last = p.experts * (matrix ? width : 2 * width) - 1;
    const int wide = box / 2, second = box % 2;
    const int at = start + (matrix ? 128 * wide + 16 * second : 64 * wide + second * width);
    const uint32_t chunks = ceil_div(p.columns[matrix], 128);
    const uint64_t from = static_cast<uint64_t>(at < last ? at : last) * chunks + chunk;  // past an expert: not stored
    load_piece(codes.high, p.plane[matrix][0] + 32 * from + 16 * half);
    load_piece(codes.low, p.plane[matrix][1] + 32 * from + 16 * half);
    codes.scale = load_half(p.scale[matrix] + from);
  }

  template <int PART>  // of a chunk
  DEV void widen(Codes (&codes)[4], Turn<STAGES>& turn, int step) const {
    const uint32_t to = STAGE + turn.at * STAGE_BYTES + row * STEP_BYTES;
    barrier_wait(BAR_EMPTY + 8 * turn.at, turn.parity ^ 1);
#pragma unroll
    for (int box = 0; box < 4; ++box) {
      widen_slot<2 * PART>(codes[box], to + box * WEIGHT_BOX, row, half);
      widen_slot<2 * PART + 1>(codes[box], to + box * WEIGHT_BOX, row, half);
      if (PART == 1 && step + 1 < steps) load(codes[box], box, (step + 1) / 2);
    }
    fence_async();  // the matrix units read it
    sync_warp();
    if (thread_index() % 32 == 0) barrier_arrive(BAR_FULL + 8 * turn.at);
    turn.next();
  }
};

DEV void widen_tiles(const Problem& p, int thread) {
  const int half = thread % 2, number = thread / 2;
  // Eight lanes that store together have rows 0, 1, 4, 5 of eight: 16 bytes of all banks.
  const int row = (number & ~6) | (number & 2) << 1 | (number & 4) >> 1;
  Turn<STAGES> turn;
  for (Turn<TILES> place;; place.next()) {
    barrier_wait(BAR_TILE_FULL + 8 * place.at, place.parity);
    const Tile tile = read_tile(place.at);
    sync_warp();
    if (thread % 32 == 0) barrier_arrive(BAR_TILE_EMPTY + 8 * place.at);
    if (tile.matrix < 0) return;
    const Widener widener(p, tile, row, half);
    Codes codes[4];
#pragma unroll
    for (int box = 0; box < 4; ++box) widener.load(codes[box], box, 0);
    for (int step = 0; step < widener.steps; step += 2) {
      widener.widen<0>(codes, turn, step);
      if (step + 1 < widener.steps) widener.widen<1>(codes, turn, step + 1);
    }
  }
}

// Rows of neighbouring weights are neighbours in memory with all their columns: a tile's codes are a few long pieces.
DEV void ask_rows(const Problem& p, int matrix, int row, int rows) {
  const uint64_t chunks = ceil_div(p.columns[matrix], 128);
  for (int plane = 0; plane < 2; ++plane)
    for (int done = 0; done < rows; done += 16)
      ask_bytes(p.plane[matrix][plane] + 32 * chunks * (row + done),
                32 * chunks * (rows - done < 16 ? rows - done : 16));
}

DEV void ask_codes(const Problem& p) {  // one thread; as soon as a tile is known
  for (Turn<TILES> place;; place.next()) {
    barrier_wait(BAR_TILE_FULL + 8 * place.at, place.parity);
    const Tile tile = read_tile(place.at);
    barrier_arrive(BAR_TILE_EMPTY + 8 * place.at);
    if (tile.matrix < 0) return;
    if (AHEAD == 0 || tile.first != offset_of(tile.expert)) continue;
    const int width = p.columns[1 - tile.matrix], most = tile.matrix ? OUT_COLUMNS : HIDDEN_COLUMNS;
    const int start = tile.block * most, rows = width - start < most ? width - start : most;
    const int first = tile.expert * (tile.matrix ? width : 2 * width) + start;
    ask_rows(p, tile.matrix, first, rows);
    if (tile.matrix == 0) ask_rows(p, 0, first + width, rows);
  }
}
