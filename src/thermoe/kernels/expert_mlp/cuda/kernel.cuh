// One launch for a layer of experts: every block makes the plan, streams its share of all weights, and joins in the
// sum over slots. Warps have one role each, and meet through barriers in shared memory.
#pragma once

#include "finish.cuh"
#include "multiply.cuh"
#include "stage.cuh"

template <class Format>
DEV void prepare(const Problem& p, int thread) {
  if (thread < MAX_RING) barrier_init(BAR_FULL + 8 * thread, Format::FULL_ARRIVALS);
  if (thread < NUM_PARTS) {
    barrier_init(BAR_PART_FULL + 8 * thread, 1);
    barrier_init(BAR_PART_EMPTY + 8 * thread, HELPERS);
  }
  if (thread < 2) {
    barrier_init(BAR_ROWS_FULL + 8 * thread, HELPERS);
    barrier_init(BAR_ROWS_EMPTY + 8 * thread, WARPS);
  }
  if (thread < MAX_RING) barrier_init_fence();
  const int map = thread - 32;
  if (map >= 0 && map < 2 * p.planes) prefetch_map(&p.map[map & 1][map / 2]);
  make_plan<Format>(p, thread);  // ends with a barrier of the block
}

template <class Format>
DEV void decode_block(const Problem& p) {
  const int thread = thread_index();
  const uint32_t generation = load_steady(p.counters + COUNTER_GENERATION);
  prepare<Format>(p, thread);
  if (block_index() == 0 && thread < MAX_SLOTS)
    p.counters[COUNTER_UNITS + ((generation & 1) ^ 1) * MAX_SLOTS + thread] = 0;
  const Split split = split_shared<Format>(p);
  const int role = thread / 32;
  if (role < WARPS) {
    take_registers<MULTIPLIER_REGISTERS>();
    Multiplier<Format>(p, split, thread).all();
    leave_registers<REGISTERS>();
  } else {
    leave_registers<HELPER_REGISTERS>();
    if (role < WARPS + HELPERS) {
      stage_all<Format>(p, split, generation, thread - 32 * WARPS);
    } else {
      const int helper = thread - 32 * (WARPS + HELPERS);
      Finisher<Format>(p, helper).all(generation);
      sync_group(1, HELPER_THREADS);
      if (helper == 0) barrier_of_blocks(p, generation);
    }
    sync_warp();
    take_registers<REGISTERS>();
  }
  sync_block();
  combine(p, thread);
}
