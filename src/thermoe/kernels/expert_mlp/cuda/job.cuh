// What the weight formats share: where a job lies in a tensor and in shared memory, and who holds what in a product.
//
// A format is a struct with
//   JOB_COLUMNS   columns of a job;
//   JOB_SUMS      scale groups of a job, 0 for none;
//   TILE_TOKENS   tokens of a tile;
//   TILE_COST     of a job for each tile beyond the first, where 64 bytes of weights cost 1 (as measured on an H200);
//   ONE_WAVE_ROWS tokens of a segment, on average, from which both matrices go in one wave (as measured on an H200);
//   RUN_COST      of a run beside its jobs, for each of its tokens and for six more (as measured on an H200);
//   COLUMN_BYTES  of a job's activations in one column of a tile;
//   SCALE_BYTES   of a job in the ring, beside its data;
//   FULL_ARRIVALS on the barrier of a slot: the thread that expects bytes, and 32 where words are copied;
//   ROW_SCALES    whether a finished row is multiplied by a float32 scale of its own; UNIT, by a constant;
//   PLANES_DIFFER whether experts differ in the number of planes that are read, depth(bits);
//   slot_bytes(planes), row(group), issue(...), column(...), stage(...), multiply<TILES, PLANES>(...) and fold(...), explained at
//   Bf16.
#pragma once

#include "layout.cuh"

struct Lane {  // matrix products see a warp as eight groups of four lanes
  int group, quad;
  DEV explicit Lane(int lane) : group(lane >> 2), quad(lane & 3) {}
};

// Where a unit lies among the weights.
struct Place {
  int matrix, expert, planes;
  int row;       // its first, in the expert's half (matrix 0: of gates; matrix 1: there is one half)
  int first_job; // along the columns, of the run
  DEV int lower(const Problem& p) const { return row + (matrix == 0 ? p.columns[1] : 16); }
  DEV static int rows_of(const Problem& p, int matrix) { return matrix == 0 ? 2 * p.columns[1] : p.columns[0]; }
};

// Where a job lies in shared memory.
struct Job {
  uint32_t data, scales, full;  // its slot, and the barrier that says it has landed
  uint32_t sums;                // of the job's first scale group, for the lane's first two columns
  int sums_stride;
};

template <int TILES>
DEV void set_zero(float (&v)[TILES][2][4]) {
#pragma unroll
  for (int i = 0; i < 8 * TILES; ++i) v[i / 8][i / 4 % 2][i % 4] = 0.f;
}

// Swaps the middle columns of each four: pairs are then (0, 2) and (1, 3), as masks pick them out of a word of codes.
DEV void swap_middles(uint32_t (&v)[4]) {
  for (int i = 0; i < 4; i += 2) {
    uint32_t first = v[i], second = v[i + 1];
    v[i] = (first & 0xffffu) | second << 16;
    v[i + 1] = first >> 16 | (second & 0xffff0000u);
  }
}
