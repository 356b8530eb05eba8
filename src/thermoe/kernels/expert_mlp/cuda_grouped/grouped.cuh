// The grouped kernel: a block (or each pair of blocks) on each processor takes tiles from one list until none is left.
#pragma once

#include "bring.cuh"
#include "list.cuh"
#include "multiply.cuh"

DEV void prepare(const Problem& p, int thread) {
  if (thread == 0) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(BAR_FULL + 8 * i, 1 + GATHER_THREADS);
      barrier_init(BAR_EMPTY + 8 * i, TEAM * MULTIPLY_WARPS);
    }
    for (int i = 0; i < TILES; ++i) {
      barrier_init(BAR_TILE_FULL + 8 * i, 1);
      barrier_init(BAR_TILE_EMPTY + 8 * i, TILE_READERS);
      barrier_init(BAR_STORED + 8 * i, MULTIPLY_WARPS);
    }
    barrier_init(BAR_TICKET_FULL, 1);
    barrier_init(BAR_TICKET_EMPTY, 1);
    barrier_init_fence();
    for (int m = 0; m < 2; ++m) {
      if constexpr (PLANES == 0) prefetch_map(&p.map[m]);
      for (int plane = 0; plane < PLANES; ++plane) prefetch_map(&p.plane[m][plane]);
    }
    prefetch_map(&p.hidden_map);
  }
  load_offsets(p, thread);
  sync_team();
}

DEV void grouped_block(const Problem& p) {
  const int thread = thread_index();
  prepare(p, thread);
  if (thread >= MULTIPLY_START) {
    take_registers<MULTIPLY_REGISTERS>();
    multiply_tiles(p, thread - MULTIPLY_START);
  } else {
    leave_registers<BRING_REGISTERS>();
    const int warp = thread / 32, lane = thread % 32;
    if (warp == WEIGHT_WARP) {
      if (lane == 0) bring_weights(p);
    } else if (warp == LIST_WARP) {
      count_tiles(p, lane);
      list_tiles(p, lane);
    } else {
      gather_tiles(p, thread - 32);
    }
  }
  if constexpr (TEAM > 1) sync_team();  // a block's memory is there as long as its mate may reach for it
}
