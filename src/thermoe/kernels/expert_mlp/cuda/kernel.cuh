// One launch for a layer of experts: every block makes the plan, streams its share of all weights, and joins in the
// sum over slots. Warps have one role each, and meet through barriers in shared memory.
#pragma once

#include "multiply.cuh"
#include "stage.cuh"

template <class Format>
DEV void prepare(const Problem& p, int thread) {
  if (thread < MAX_RING) barrier_init(BAR_FULL + 8 * thread, Format::FULL_ARRIVALS);
  if (thread < 2 * WARPS) barrier_init(BAR_PART_FULL + 8 * thread, 1);
  if (thread < WARPS) barrier_init(BAR_PART_EMPTY + 8 * thread, 1);
  if (thread < 2) {
    barrier_init(BAR_ROWS_FULL + 8 * thread, STAGERS);
    barrier_init(BAR_ROWS_EMPTY + 8 * thread, WARPS);
  }
  if (thread < MAX_RING) barrier_init_fence();
  const int map = thread - 32;
  if (map >= 0 && map < 2 * p.planes) prefetch_map(&p.map[map & 1][map / 2]);
  make_plan<Format>(p, thread);  // ends with a barrier of the block
}

template <class Format>
DEV void decode_block(const Problem& p) {
  const int thread = thread_index(), role = same_in_warp(thread / 32);
  const uint32_t generation = load_steady(p.counters + COUNTER_GENERATION);
  prepare<Format>(p, thread);
  if (block_index() == 0)
    for (int i = thread; i < MAX_SLOTS; i += THREADS) finished_units(p, generation + 1)[i] = 0;
  const Split split = split_shared<Format>(p);
  if (role < WARPS) {
    Multiplier<Format>(p, split, role, thread, generation).all();
    sync_group(1, 32 * WARPS);
    if (thread == 0) barrier_of_blocks(p, generation);
  } else {
    stage_all<Format>(p, split, generation, thread - 32 * WARPS);
  }
  sync_block();
  combine(p, thread);
}
