// One launch for a layer of experts: every block makes the plan, streams its share of all weights, and joins in the
// sum over slots. Warps have one role each, and meet through barriers in shared memory.
#pragma once

#include "multiply.cuh"
#include "stage.cuh"

template <class Format>
DEV uint32_t arrivals_at(int barrier) {
  const uint32_t address = BAR_FULL + 8 * barrier;
  if (address < BAR_PART_FULL) return Format::FULL_ARRIVALS;
  if (address < BAR_ROWS_FULL) return 1;
  return address < BAR_ROWS_DONE ? STAGERS : address < BAR_ROWS_EMPTY ? WARPS : 1;
}

template <class Format>
DEV void prepare(const Problem& p, int thread, int role) {
  const Slots read(p, thread);
  if (thread == THREADS - 1) sts32(INFO_GENERATION, load_steady(p.counters + COUNTER_GENERATION));
  if (thread == THREADS - 2) sts32(INFO_BASE, load_steady(p.counters + COUNTER_BASE));
  if (thread == THREADS - 32)  // translations of addresses that are met later
    prefetch(p.x), prefetch(p.hidden), prefetch(p.product), prefetch(p.out);
  for (int barrier = role; barrier < NUM_BARRIERS; barrier += ALL_WARPS)
    if (elected()) barrier_init(BAR_FULL + 8 * barrier, arrivals_at<Format>(barrier));
  barrier_init_fence();
  if (role < 2 * p.planes && elected()) prefetch_map(&p.map[role & 1][role / 2]);
  make_plan<Format>(p, read, thread);  // ends with a barrier of the block
}

constexpr int FIRST_SLOTS = 2;  // of a warp's ring, while the first activations are read: they keep the memory busy

template <class Format>
DEV void decode_block(const Problem& p) {
  const int thread = thread_index(), role = same_in_warp(thread / 32);
  prepare<Format>(p, thread, role);
  const uint32_t generation = lds32(INFO_GENERATION);
  const Split split = split_shared<Format>(p);
  const int lane = thread % 32;
  if (role < WARPS) {
    Multiplier<Format> multiplier(p, split, role, thread);
    stage_first<Format>(p, split, role, lane, [&multiplier] { multiplier.fill_ring(FIRST_SLOTS); });
    sync_block();
    multiplier.all();
  } else {
    stage_first<Format>(p, split, role, lane, [] {});
    sync_block();
    if (role == TELLER) {
      if (lane == 0) tell_all(p, split, generation);
    } else {
      stage_all<Format>(p, split, generation, role - WARPS, lane);
      if (block_index() == 0)  // nobody counts in those of the next launch yet
        for (int i = thread - 32 * WARPS; i < MAX_SLOTS; i += STAGER_THREADS) finished_units(p, generation + 1)[i] = 0;
    }
  }
  sync_block();
  combine(p, thread);
}
