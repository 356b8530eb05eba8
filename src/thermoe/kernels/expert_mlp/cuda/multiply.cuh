// The stream of weights: warps take a block's jobs in turn. A warp that is done with a slot of the ring starts the
// copy of the job that will use it next, so that the ring is always full of copies on their way, across units, runs
// and the two matrices.
#pragma once

#include "job.cuh"
#include "plan.cuh"

// A walk over the block's jobs, both matrices, some at a time.
struct Walk {
  int matrix, job, left;  // units left in this matrix, the current one included
  Runs run;               // `run.row` follows the unit

  DEV explicit Walk(const Problem& p) : matrix(0), job(0), run(p, 0) {
    left = run.end - run.unit;
    if (left <= 0) enter_second(p);
  }
  DEV void enter_second(const Problem& p) {
    matrix = 1;
    run = Runs(p, 1);
    left = run.end - run.unit;
    if (left <= 0) matrix = 2;
  }
  DEV bool more() const { return matrix < 2; }
  DEV void advance(const Problem& p, int jobs) {
    job += jobs;
    while (matrix < 2 && job >= p.jobs[matrix]) {
      job -= p.jobs[matrix];
      ++run.row;
      if (--left == 0) {
        if (matrix == 0) enter_second(p); else matrix = 2;
      } else if (run.row == run.in_run) {
        run.row = 0;
        if (matrix == 0 || ++run.split == p.splits) run.split = 0, ++run.segment;
      }
    }
  }
  DEV Place place(const Problem& p) const {
    Segment segment = segment_at(run.segment);
    Place at;
    at.matrix = matrix, at.expert = segment.expert, at.bits = segment.bits;
    if (matrix == 0) {
      at.upper = segment.expert * 2 * p.columns[1] + 16 * run.row;
      at.lower = at.upper + p.columns[1];
    } else {
      at.upper = segment.expert * p.columns[0] + 32 * run.row;
      at.lower = at.upper + 16;
    }
    at.job = (matrix == 1 ? run.split * p.jobs[1] : 0) + job;
    return at;
  }
};

struct Ring {  // a place in the ring, and how often the ring has gone round
  int slot;
  uint32_t turn;

  DEV void advance(const Split& split, int by) {
    slot += by;
    while (slot >= split.ring) slot -= split.ring, turn ^= 1;
  }
  template <class Format>
  DEV Job job(const Split& split) const {
    Job j;
    j.data = split.data + slot * split.slot_bytes;
    j.scales = split.scales + slot * Format::SCALE_BYTES;
    j.full = BAR_FULL + 8 * slot;
    j.sums = 0, j.sums_stride = split.sums_stride;
    return j;
  }
};

template <class Format>
struct Multiplier {
  const Problem& p;
  const Split split;
  const int warp, lane_index;
  const Lane lane;
  const uint64_t policy;
  Walk ahead;     // the job whose copy starts when this warp's current slot is free
  Ring here;      // of the current job
  int next;       // first job of this warp in the coming unit
  uint32_t parts; // results this warp has handed over so far

  DEV Multiplier(const Problem& problem, const Split& s, int thread)
      : p(problem), split(s), warp(thread / 32), lane_index(thread % 32), lane(thread % 32), policy(stream_policy()),
        ahead(problem), here{0, 0}, next(thread / 32), parts(0) {}

  DEV void issue(const Job& job) { Format::issue(p, ahead.place(p), job, policy, lane_index); }

  DEV void fill_ring() {
    Ring at{0, 0};
    at.advance(split, warp);
    here = at;
    ahead.advance(p, warp);
    for (int i = warp; i < split.ring && ahead.more(); i += WARPS) {
      issue(at.job<Format>(split));
      ahead.advance(p, WARPS);
      at.advance(split, WARPS);
    }
    ahead = Walk(p);
    ahead.advance(p, warp + split.ring);
  }

  template <int TILES>
  DEV void unit(int matrix, const Segment& segment, uint32_t rows_at, const uint32_t (&rows)[TILES]) {
    const int jobs = p.jobs[matrix];
    if (next < jobs) {
      float sum[TILES][2][4];
      set_zero(sum);
      Place at{};
      at.matrix = matrix, at.bits = segment.bits;
      for (; next < jobs; next += WARPS) {
        Job job = here.job<Format>(split);
        job.sums = rows_at + split.sums + next * Format::JOB_SUMS * split.sums_stride + 8 * lane.quad;
        uint32_t from[TILES];
        for (int tile = 0; tile < TILES; ++tile) from[tile] = rows[tile] + 2 * Format::JOB_COLUMNS * next;
        barrier_wait(job.full, here.turn);
        Format::template multiply<TILES>(at, job, from, lane, sum);
        sync_warp();
        if (ahead.more()) issue(job);
        ahead.advance(p, WARPS);
        here.advance(split, WARPS);
      }
      for (int tile = 0; tile * 8 < segment.rows && tile < TILES; ++tile) hand_over(sum[tile]);
    }
    next -= jobs;
  }

  // A warp's share of a unit's 32 rows by 8 tokens goes to the helpers that add the shares up. The place belongs to
  // this warp: what it waits for is always the turn before its own, so the turn's parity tells it.
  DEV void hand_over(const float (&sum)[2][4]) {
    const uint32_t index = 2 * warp + (parts & 1), turn = parts++ / 2 & 1;
    const uint32_t to = PARTS + index * PART_BYTES + 2 * lane.quad * PART_ROW + 4 * Format::row(lane.group);
    barrier_wait(BAR_PART_EMPTY + 8 * index, turn ^ 1);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      sts_float(to + i / 4 * PART_HALF + i % 2 * PART_ROW + i / 2 % 2 * 32, sum[i / 4][i % 4]);
    sync_warp();
    if (lane_index == 0) barrier_arrive(BAR_PART_FULL + 8 * index);
  }

  template <int TILES>
  DEV void run_units(int matrix, int units, const Segment& segment, uint32_t rows_at) {
    uint32_t rows[TILES];
    for (int tile = 0; tile < TILES; ++tile) {  // rows past the last repeat it; nobody looks at their products
      int row = 8 * tile + lane.group < segment.rows ? 8 * tile + lane.group : segment.rows - 1;
      rows[tile] = rows_at + row * row_pitch<Format>(p) + 16 * lane.quad;
    }
    for (int i = 0; i < units; ++i) unit<TILES>(matrix, segment, rows_at, rows);
  }

  DEV void all() {
    fill_ring();
    int block = 0;
    for (int matrix = 0; matrix < 2; ++matrix)
      for (Runs run(p, matrix); run.more(); run.next(), ++block) {
        const int at = block % split.row_blocks, turn = block / split.row_blocks;
        const Segment segment = segment_at(run.segment);
        const uint32_t rows_at = split.rows + at * split.rows_bytes;
        barrier_wait(BAR_ROWS_FULL + 8 * at, turn & 1);
        switch (tiles_of(segment.rows)) {
          case 1: run_units<1>(matrix, run.length, segment, rows_at); break;
          case 2: run_units<2>(matrix, run.length, segment, rows_at); break;
          default: run_units<4>(matrix, run.length, segment, rows_at);
        }
        sync_warp();
        if (lane_index == 0) barrier_arrive(BAR_ROWS_EMPTY + 8 * at);
      }
  }
};
