// One launch for a layer of experts: every block makes the plan, streams its share of all weights, and joins in the
// sum over slots. Warps have one role each, and meet through barriers in shared memory.
#pragma once

#include "multiply.cuh"
#include "stage.cuh"

// By one thread of each warp: its own barriers, and those of all by the last.
template <class Format>
DEV void lay_barriers(int role) {
  if (role < WARPS) {
    for (int slot = 0; slot < MAX_RING; ++slot)
      barrier_init(BAR_FULL + 8 * (MAX_RING * role + slot), Format::FULL_ARRIVALS);
    for (int odd = 0; odd < 2; ++odd) barrier_init(BAR_PART_FULL + 8 * (2 * role + odd), 1);
    barrier_init(BAR_PART_EMPTY + 8 * role, 1);
  }
  if (role == TELLER)
    for (int at = 0; at < 2; ++at) {
      barrier_init(BAR_ROWS_FULL + 8 * at, at == 0 ? ALL_WARPS : STAGERS);  // all stage the first run
      barrier_init(BAR_ROWS_DONE + 8 * at, WARPS);
      barrier_init(BAR_ROWS_EMPTY + 8 * at, 1);
    }
  barrier_init_fence();
}

template <class Format>
DEV void prepare(const Problem& p, int role) {  // while the last launch ends: what needs nothing of it
  if (!elected()) return;
  lay_barriers<Format>(role);
  if (role < 2 * p.planes) prefetch_map(&p.map[role & 1][role / 2]);
  if (Format::JOB_SUMS > 0 && role / 2 == 3) prefetch_map(&p.map[role & 1][SCALE_MAP]);
  if (role == TELLER - 1)  // translations of addresses that are met later
    prefetch(p.x), prefetch(p.hidden), prefetch(p.product), prefetch(p.out);
}

template <class Format>
DEV void plan(const Problem& p, int thread, int role, bool alone, const Slots& read) {
  if (role == TELLER && elected()) {
    const uint32_t generation = load_steady(p.counters + COUNTER_GENERATION);
    const uint32_t base = load_steady(p.counters + COUNTER_BASE);
    sts32(INFO_GENERATION, generation), sts32(INFO_BASE, base);
  }
  if (alone) {
    if (p.bits)
      for (int i = 0; i < 2; ++i)
        if (2 * thread + i < p.experts) sts16(EXPERT_PLANES + 2 * (2 * thread + i), Format::depth(read.bits[i]));
    sync_block();
    if (plan_alone<Format>(p, read, thread % 32)) return;
  }
  make_plan<Format>(p, alone ? Slots(p, thread, false) : read, thread);  // ends with a barrier of the block
}

template <class Format>
DEV void decode_block(const Problem& p) {
  const int thread = thread_index(), role = same_in_warp(thread >> 5);
  const bool alone = p.tokens * p.top_k <= 32;
  prepare<Format>(p, role);
  wait_for_launch_before();  // whatever is read or written from here on may be its
  let_next_launch_begin();
  const Slots read(p, thread, alone);
  OnlyToken only(p, thread);
  plan<Format>(p, thread, role, alone, read);
  const uint32_t generation = lds32(INFO_GENERATION);
  const Split split = split_shared<Format>(p);
  const int lane = thread & 31;
  Multiplier<Format> multiplier(p, split, role, thread);  // nobody's, beyond the warps that multiply
  stage_first<Format>(p, split, only, role, lane, [&multiplier, role] {
    if (role < WARPS) multiplier.fill_ring();
  });
  if (role < WARPS) {
    multiplier.all();
  } else {
    if (role == TELLER) {
      if (lane == 0) tell_all(p, split, generation);
    } else {
      stage_all<Format>(p, split, generation, role - WARPS, lane);
      if (block_index() == 0)  // nobody counts in those of the next launch yet
        for (int i = thread - 32 * WARPS; i < MAX_SLOTS; i += STAGER_THREADS) finished_units(p, generation + 1)[i] = 0;
    }
  }
  combine(p, thread);
}
