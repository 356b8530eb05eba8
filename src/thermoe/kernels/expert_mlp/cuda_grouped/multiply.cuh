// The two warpgroups that multiply. Each has 128 rows of a tile's weights as two products of 64 rows, whose sums stay in
// registers; both share the tile's tokens. One is LEAD steps ahead: while it stores, the other has the matrix units.
#pragma once

#include "finish.cuh"

// A stage is given back to all blocks that copy into it.
DEV void give_back(uint32_t empty) {
  const int lane = thread_index() % 32;
  if (lane < TEAM) barrier_arrive_in(empty, lane);
}

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
    if (step == told) named_arrive(LEADER_AHEAD, 32 * MULTIPLY_WARPS);
    done = BAR_EMPTY + 8 * turn.at;
  }
  products_wait<0>();
  give_back(done);
}

// The narrowest product that holds all places: its width is part of the instruction.
template <int OF_8>
DEV void multiply_width(Sums& sums, Turn<STAGES>& turn, int steps, int group, int told, const Tile& tile) {
  if constexpr (OF_8 < OCTETS)
    if (tile.count > 8 * OF_8) return multiply_width<OF_8 + 1>(sums, turn, steps, group, told, tile);
  multiply_steps<8 * OF_8>(sums, turn, steps, group, told, tile.matrix == 0);
}

DEV void multiply(Sums& sums, Turn<STAGES>& turn, int steps, int group, const Tile& tile) {
  const bool led = LEAD > 0 && steps >= 2 * STAGES;  // else the leader might be a whole tile ahead
  const int told = led && group == 0 ? LEAD - 1 : -1;
  if (led && group == 1) named_wait(LEADER_AHEAD, 32 * MULTIPLY_WARPS);
  multiply_width<1>(sums, turn, steps, group, told, tile);
}

DEV void multiply_tiles(const Problem& p, int thread) {
  const int group = thread / 128, warp = thread / 32 % 4, lane = thread % 32;
  Turn<STAGES> turn;
  for (Turn<TILES> place;; place.next()) {
    barrier_wait(BAR_TILE_FULL + 8 * place.at, place.parity);
    const Tile tile = read_tile(place.at);
    if (tile.matrix < 0) return;
    const Finisher finisher(p, tile, group, warp, lane);
    Sums sums;
    multiply(sums, turn, steps_of(p, tile.matrix), group, tile);
    if (tile.matrix == 0)
      finisher.store_hidden(sums);
    else
      finisher.store_out(sums);
    sync_warp();
    if (lane == 0) barrier_arrive(BAR_STORED + 8 * place.at);
  }
}
