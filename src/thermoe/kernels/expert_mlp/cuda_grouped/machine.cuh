// The machine: what the grouped kernel takes from the device that plain C++ has no word for.
//
// A place in shared memory is named by its offset in the block's own, SHARED_START and on. A test defines
// THERMOE_MACHINE to the path of another implementation of the same functions and runs the whole kernel on a CPU.
#pragma once

#include "team.cuh"

#ifdef THERMOE_MACHINE
#include THERMOE_MACHINE
#else

#define THERMOE_PLACES_MOVE THERMOE_PAIR
#include "device/arithmetic.cuh"
#include "device/barriers.cuh"
#include "device/clusters.cuh"
#include "device/copies.cuh"
#include "device/global_memory.cuh"
#include "device/products.cuh"
#include "device/shared_memory.cuh"
#include "device/threads.cuh"
#include "device/words.cuh"

DEV bool starts_where_expected() { return (dynamic_start() & 0xffffff) == SHARED_START; }

// ---- the blocks of a team
DEV int team_rank() {
  if constexpr (TEAM == 1) return 0;
  return cluster_rank();
}
DEV void sync_team() {
  if constexpr (TEAM == 1) return sync_block();
  sync_cluster();
}
DEV void team_arrive(uint32_t bar, int rank) {
  if constexpr (TEAM == 1) return barrier_arrive(bar);
  barrier_arrive_in(bar, rank);
}

// ---- what the second-level cache is told. Copies of tokens tell it nothing: with a hint, ptxas 13.0 adds uniform
// registers that nobody has written to their place in a cluster's memory.
constexpr bool WEIGHTS_GO_FIRST = THERMOE_KEEP & 1, OUTPUTS_GO_FIRST = THERMOE_KEEP & 2;

// Rows `row` and on, into this block.
DEV void copy_alone(uint32_t to, const TensorMap* map, int byte, int row, uint32_t bar) {
  copy_box_2d(to, map, byte, row, bar);
}
// Into all blocks of the team, at the same place, and each one's barrier counts the bytes.
DEV void copy_box(uint32_t to, const TensorMap* map, int byte, int row, uint32_t bar) {
  copy_box_2d<TEAM, WEIGHTS_GO_FIRST>(to, map, byte, row, bar, GO_FIRST);
}
DEV void copy_box(uint32_t to, const TensorMap* map, int byte, int half, int group, uint32_t bar) {
  copy_box_4d<TEAM, WEIGHTS_GO_FIRST>(to, map, byte, 0, half, group, bar, GO_FIRST);
}
DEV void prefetch_box(const TensorMap* map, int byte, int row) { prefetch_box_2d(map, byte, row); }
DEV void prefetch_box(const TensorMap* map, int byte, int half, int group) {
  prefetch_box_4d(map, byte, 0, half, group);
}
// The same for rows of a piece of codes, whose map has a box of its own.
DEV void copy_codes(uint32_t to, const TensorMap* map, int row, uint32_t bar) { copy_box(to, map, 0, row, bar); }
DEV void prefetch_codes(const TensorMap* map, int row) { prefetch_box(map, 0, row); }
DEV void store_output(void* to, const uint32_t (&r)[4]) {
  if constexpr (OUTPUTS_GO_FIRST) return store_piece(to, r, GO_FIRST);
  store_piece(to, r);
}

#endif
