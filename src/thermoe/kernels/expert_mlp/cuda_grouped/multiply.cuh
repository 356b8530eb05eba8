// The two warpgroups that multiply. Each has 128 rows of a tile's weights as two products of 64 rows, whose sums stay
// in registers; both share the tile's tokens. One is LEAD steps ahead: while it stores, the other has the matrix units.
#pragma once

#include "codes.cuh"

template <int WIDTH>
DEV void multiply_steps(Sums& sums, Turn<STAGES>& turn, int steps, int group, int told, bool gathered) {
  uint32_t done = 0;  // the barrier of the step before
  for (int step = 0; step < steps; ++step, turn.next()) {
    const uint32_t at = STAGE + turn.at * STAGE_BYTES;
    const uint64_t weights = operand(at + 2 * WEIGHT_BOX * group), tokens = operand(at + WEIGHT_BYTES);
    barrier_wait(BAR_FULL + 8 * turn.at, turn.parity);
    if (EIGHT || gathered) fence_async();  // by threads, not by the copy engine; EIGHT has no register to spare
    products_open();
#pragma unroll
    for (int k = 0; k < STEP_BYTES / 32; ++k) {
      Product<WIDTH>::add(sums.first, weights + 2 * k, tokens + 2 * k, step | k);
      Product<WIDTH>::add(sums.second, weights + WEIGHT_BOX / 16 + 2 * k, tokens + 2 * k, step | k);
    }
    products_close();
    products_wait<1>();
    if (step > 0) give_back(done);
    if (step == told) named_arrive<LEADER_AHEAD>(32 * MULTIPLY_WARPS);
    done = BAR_EMPTY + 8 * turn.at;
  }
  products_wait<0>();
  give_back(done);
}

// The narrowest product that holds all places: its width is part of the instruction.
template <int OF_8>
DEV void multiply_width(Sums& sums, Turn<STAGES>& turn, int stages, int group, int told, const Tile& tile) {
  if constexpr (OF_8 < OCTETS)
    if (tile.count > 8 * OF_8) return multiply_width<OF_8 + 1>(sums, turn, stages, group, told, tile);
  multiply_steps<8 * OF_8>(sums, turn, stages, group, told, tile.matrix == 0);
}
template <int BITS, int OF_8>
DEV void multiply_width(Sums& sums, Turn<STAGES>& turn, int stages, Coded<BITS>& coded, int told, const Tile& tile) {
  if constexpr (OF_8 < OCTETS)
    if (tile.count > 8 * OF_8) return multiply_width<BITS, OF_8 + 1>(sums, turn, stages, coded, told, tile);
  multiply_chunks<8 * OF_8>(sums, turn, stages, coded, told);
}

template <int BITS>
DEV void multiply_codes(const Problem& p, Sums& sums, Turn<STAGES>& turn, int group, int told, const Tile& tile) {
  Coded<BITS> coded(p, tile, group, thread_index() / 32 % 4, thread_index() % 32);
  multiply_width<BITS, 1>(sums, turn, stages_of(p, tile.matrix), coded, told, tile);
}

DEV void multiply(const Problem& p, Sums& sums, Turn<STAGES>& turn, int group, const Tile& tile) {
  const int stages = stages_of(p, tile.matrix);
  const bool led = LEAD > 0 && stages >= 2 * STAGES;  // else the leader might be a whole tile ahead
  const int told = led && group == 0 ? LEAD - 1 : -1;
  if (led && group == 1) named_wait<LEADER_AHEAD>(32 * MULTIPLY_WARPS);
  if constexpr (PLANES == 0) {
    multiply_width<1>(sums, turn, stages, group, told, tile);
  } else {
    constexpr int MOST = 1 << PLANES;
    const int bits = NESTED && p.bits ? p.bits[tile.expert] : MOST;
    if constexpr (NESTED && MOST > 2)
      if (bits < 4) return multiply_codes<2>(p, sums, turn, group, told, tile);
    if constexpr (NESTED && MOST > 4)
      if (bits < 8) return multiply_codes<4>(p, sums, turn, group, told, tile);
    multiply_codes<MOST>(p, sums, turn, group, told, tile);
  }
}

DEV void multiply_tiles(const Problem& p, int thread) {
  const int group = thread / 128, warp = thread / 32 % 4, lane = thread % 32;
  Turn<STAGES> turn;
  for (Turn<TILES> place;; place.next()) {
    barrier_wait(BAR_TILE_FULL + 8 * place.at, place.parity);
    const Tile tile = read_tile(place.at);
    if (tile.matrix < 0) return;
    Finisher finisher(p, tile, group, warp, lane);
    Sums sums;
    multiply(p, sums, turn, group, tile);
    finisher.take_units(sums);
    if (tile.matrix == 0)
      finisher.store_hidden(sums);
    else
      finisher.store_out(sums);
    sync_warp();
    if (lane == 0) barrier_arrive(BAR_STORED + 8 * place.at);
  }
}
