// The grouped kernel: a block on each processor takes tiles from one list until none is left.
#pragma once

#include "bring.cuh"
#include "multiply.cuh"

DEV void prepare(const Problem& p, int thread) {
  if (thread == 0) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(BAR_FULL + 8 * i, 1 + GATHER_THREADS);
      barrier_init(BAR_EMPTY + 8 * i, MULTIPLY_WARPS);
    }
    for (int i = 0; i < TILES; ++i) {
      barrier_init(BAR_TILE_FULL + 8 * i, 1);
      barrier_init(BAR_TILE_EMPTY + 8 * i, TILE_READERS);
      barrier_init(BAR_STORED + 8 * i, MULTIPLY_WARPS);
    }
    barrier_init_fence();
    prefetch_map(&p.map[0]);
    prefetch_map(&p.map[1]);
  }
  load_offsets(p, thread);
  sync_block();
}

DEV void grouped_block(const Problem& p) {
  const int thread = thread_index();
  prepare(p, thread);
  if (thread >= 128) {
    take_registers<MULTIPLY_REGISTERS>();
    multiply_tiles(p, thread - 128);
  } else {
    leave_registers<BRING_REGISTERS>();
    const int warp = thread / 32, lane = thread % 32;
    if (warp == 0) {
      count_tiles(p, lane);
      if (lane == 0) take_tiles(p);
    } else if (warp == 3) {
      if (lane == 0) tell_stored(p);
    } else {
      gather_tiles(p, thread - 32);
    }
  }
}
