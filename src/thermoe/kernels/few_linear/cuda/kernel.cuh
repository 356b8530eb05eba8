// Linear layers side by side in one launch: weights are asked for before the launch before has ended, tokens after it.
#pragma once

#include "bring.cuh"
#include "join.cuh"

// Each warp some of them.
DEV void lay_barriers(const Problem& p, const Work& work, int warp) {
  if (!elected()) return;
  const bool again = work.stages() > p.stages;
  for (int slot = warp; slot < p.stages; slot += WARPS + ASKERS) {
    barrier_init(full_barrier(slot), ASKERS);
    if (again) barrier_init(empty_barrier(slot), SLICES);
  }
  if (CLUSTER > 1 && warp < 2) barrier_init(inbox_barrier(warp), 1);
  barrier_init_fence();
}

DEV void multiply_all(const Problem& p, const Work& work, int warp, int lane) {
  const int slice = warp % SLICES, group = warp / SLICES;
  Rows x(p, work, slice, lane);
  wait_for_launch_before();
  let_next_launch_begin();
  x.load();
  const Parts parts(p);
  const bool again = work.stages() > p.stages;
  Slot slot(group, p.stages);
  int stage = group;
  for (Round round{0, 0, 0}; round.first_tile < work.tiles; ++round.number, round.first_tile += p.round_tiles) {
    const int left = work.tiles - round.first_tile;
    round.tiles = left < p.round_tiles ? left : p.round_tiles;
    for (; STAGE_TILES * stage < round.first_tile + round.tiles; stage += GROUPS) {
      barrier_wait(full_barrier(slot.at), slot.odd);
      const uint32_t own = lane / 4 * PITCH + slice * SLICE_BLOCKS * BLOCK_BYTES + lane % 4 * 16;
      const uint32_t from = dynamic_start() + p.stages_at + slot.at * STAGE_ROWS * PITCH + own;
      const uint32_t to = parts.at(STAGE_TILES * stage - (p.apart ? round.first_tile : 0), slice, lane);
      const auto release = [&] {
        if (!again) return;
        sync_warp();
        if (elected()) barrier_arrive(empty_barrier(slot.at));
        sync_warp();
      };
      if (STAGE_TILES * stage + 1 < work.tiles)
        multiply_stage<2>(x, from, to, parts.tile, release);
      else
        multiply_stage<1>(x, from, to, parts.tile, release);
      slot.forward(GROUPS, p.stages);
    }
    join(p, work, parts, round, warp, lane);
    if (round.first_tile + p.round_tiles < work.tiles) named_wait<PARTS_READY>(32 * WARPS);  // parts are written anew
  }
}

DEV void linear_block(const Problem& p) {
  const int thread = thread_index(), warp = same_in_warp(thread / 32);
  const Work work(p);
  lay_barriers(p, work, warp);
  clear_gaps(p, work, thread);
  sync_block();
  if (CLUSTER > 1) cluster_arrive();
  if (warp < WARPS) {
    multiply_all(p, work, warp, thread % 32);
  } else {
    ask_for_all(p, work, warp - WARPS);
    if (CLUSTER > 1) cluster_wait();
  }
}
