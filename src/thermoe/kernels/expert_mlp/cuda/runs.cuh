// What the plan gives the warps of a block to walk through: runs, and the jobs of each.
#pragma once

#include "plan.cuh"

struct Segment {
  int expert, first_row, rows, planes;
};

DEV Segment segment_at(int index) {
  uint32_t where = lds32(SEGMENT + 4 * index), what = lds32(SEGMENT_ROWS + 4 * index);
  return {static_cast<int>(where >> 16), static_cast<int>(where & 0xffff), static_cast<int>(what & 0xffff),
          static_cast<int>(what >> 16)};
}

// The block's runs of one phase, in order: what all its warps walk through alike.
struct Runs {
  int matrix;
  int left;                 // units of the block's range, this run's included
  int in_run, splits;       // units of a whole run, runs of a segment
  int segment, split, row;  // of the run; its first unit in the whole
  int length;               // units of the block in the run

  DEV Runs(const Problem& p, int phase, int waves) : matrix(phase >= waves) {
    uint32_t range[4];
    lds128(INFO_RANGE + 16 * phase, range);
    in_run = matrix == 0 ? p.columns[1] >> 4 : p.columns[0] >> 5;
    splits = matrix == 0 ? 1 : p.splits;
    segment = static_cast<int>(range[0]);
    left = static_cast<int>(range[2] - range[0]) * splits * in_run + static_cast<int>(range[3] - range[1]);
    split = splits == 1 ? 0 : quotient(static_cast<int>(range[1]), in_run);
    row = static_cast<int>(range[1]) - split * in_run;
    measure();
  }
  DEV void measure() { length = in_run - row < left ? in_run - row : left; }
  DEV int turn() const { return static_cast<int>(static_cast<uint32_t>(5 * (segment + split) + 3 * matrix) % WARPS); }
  DEV bool more() const { return left > 0; }
  DEV void next() {
    left -= length, row = 0;
    if (++split == splits) split = 0, ++segment;
    measure();
  }
};

// The jobs of a run that a warp takes: neighbours, as many as any other warp's give or take one. Which warps have one
// more changes from run to run (`turn`).
DEV int first_job(int jobs, int warp, int turn) {
  return static_cast<int>(static_cast<uint32_t>(jobs * warp + turn) / WARPS);
}
