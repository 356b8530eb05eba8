// The stream of weights. In every run of the block a warp takes neighbouring jobs, hence whole units but for the first
// and the last. When it is done with a slot of its ring it starts the copy of the job that will use it next, so that
// the ring is always full of copies on their way, across units, runs and the two matrices.
#pragma once

#include "finish.cuh"
#include "job.cuh"
#include "runs.cuh"

// The jobs of one warp, in order, over all phases.
struct Stream {
  Runs run;
  Place at;
  int phase, waves, warp;
  int job, left;  // job of the unit; jobs of the warp in the run that are left, this one included

  DEV Stream(const Problem& p, int num_waves, int own_warp)
      : run(p, 0, num_waves), at{}, phase(0), waves(num_waves), warp(own_warp), job(0), left(0) {
    find(p);
  }
  DEV bool more() const { return left > 0; }
  DEV void find(const Problem& p) {  // the first run from here on in which the warp has a job
    for (;; run.next()) {
      while (!run.more()) {
        if (++phase >= 2 * waves) return;
        run = Runs(p, phase, waves);
      }
      at.matrix = run.matrix;
      const int jobs = p.jobs[at.matrix], total = run.length * jobs, first = first_job(total, warp, run.turn());
      left = first_job(total, warp + 1, run.turn()) - first;
      if (left == 0) continue;
      const uint32_t what = lds32(SEGMENT_ROWS + 4 * run.segment), where = lds32(SEGMENT + 4 * run.segment);
      const int unit = quotient(first, jobs);
      job = first - unit * jobs;
      at.expert = static_cast<int>(where >> 16), at.planes = static_cast<int>(what >> 16);
      at.row = (at.matrix == 0 ? 16 : 32) * (run.row + unit), at.first_job = run.split * jobs;
      return;
    }
  }
  DEV void next(const Problem& p) {
    if (--left == 0) {
      run.next();
      find(p);
    } else if (++job == p.jobs[at.matrix]) {
      job = 0, at.row += at.matrix == 0 ? 16 : 32;
    }
  }
};

struct Ring {  // a place in the warp's ring, and how often the ring has gone round
  int slot;
  uint32_t turn;

  DEV void next(const Split& split) {
    if (++slot == split.ring) slot = 0, turn ^= 1;
  }
  template <class Format>
  DEV Job job(const Split& split, int warp) const {
    const int index = warp * split.ring + slot;
    Job j;
    j.data = split.data + index * split.slot_bytes;
    j.scales = split.scales + index * Format::SCALE_BYTES;
    j.full = BAR_FULL + 8 * index;
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
  const int waves;
  Stream ahead;    // the job whose copy starts when this warp's current slot is free
  Ring here;       // of the current job
  uint32_t given;  // whether warp `lane_index` has handed over an odd number of shares: in even runs, in odd ones

  DEV Multiplier(const Problem& problem, const Split& s, int own_warp, int thread)
      : p(problem), split(s), warp(own_warp), lane_index(thread & 31), lane(thread & 31), policy(stream_policy()),
        waves(same_in_warp(lds32(INFO_WAVES))),
        ahead(problem, waves, own_warp), here{0, 0}, given(0) {}

  DEV void issue(const Job& job) {
    Format::issue(p, ahead.at, ahead.at.first_job + ahead.job, job, policy, lane_index);
    ahead.next(p);
  }

  // Starts copies into all slots of the ring.
  DEV void fill_ring() {
    Ring filled{0, 0};
#pragma unroll 1
    for (; filled.turn == 0 && ahead.more(); filled.next(split)) issue(filled.job<Format>(split, warp));
  }

  // Products of the unit's jobs `job` up to `end`.
  template <int TILES, int PLANES>
  DEV void multiply(const Place& at, int job, int end, uint32_t rows_at, const uint32_t (&rows)[TILES],
                    float (&sum)[TILES][2][4]) {
    for (; job < end; ++job) {
      Job slot = here.job<Format>(split, warp);
      slot.sums = rows_at + split.sums + job * Format::JOB_SUMS * split.sums_stride + 16 * lane.quad;
      uint32_t from[TILES];
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) from[tile] = rows[tile] + Format::COLUMN_BYTES * job;
      barrier_wait(slot.full, here.turn);
      Format::template multiply<TILES, PLANES>(at, slot, from, lane, sum);
      sync_warp();
      if (ahead.more()) issue(slot);
      here.next(split);
    }
  }

  // A share of a unit that another warp has begun, in a place that is this warp's own. Even and odd runs have barriers
  // of their own, because the warp that waits for a share may be a run ahead, which no parity would tell it.
  template <int TILES>
  DEV void hand_over(const float (&sum)[TILES][2][4], int tiles, int odd_run) {
    const uint32_t turns = shuffle_from(given, warp);
    barrier_wait(BAR_PART_EMPTY + 8 * warp, (turns ^ turns >> 1 ^ 1) & 1);
#pragma unroll
    for (int i = 0; i < 2 * TILES; ++i)
      if (i / 2 < tiles) {
        const float(&v)[4] = sum[i / 2][i % 2];
        const uint32_t words[4] = {as_bits(v[0]), as_bits(v[1]), as_bits(v[2]), as_bits(v[3])};
        sts128(split.parts + warp * split.part_bytes + 512 * i + 16 * lane_index, words);
      }
    sync_warp();
    if (lane_index == 0) barrier_arrive(BAR_PART_FULL + 8 * (2 * warp + odd_run));
  }

  // The shares of the warps that go on with a unit, whose last job comes before job `end` of the run.
  template <int TILES>
  DEV void gather(float (&sum)[TILES][2][4], int tiles, int total, int end, int turn, int odd_run) {
    for (int other = warp + 1; other < WARPS; ++other) {
      const int first = first_job(total, other, turn);
      if (first >= end) break;
      const uint32_t turns = shuffle_from(given, other);
      if (first == first_job(total, other + 1, turn)) continue;
      barrier_wait(BAR_PART_FULL + 8 * (2 * other + odd_run), turns >> odd_run & 1);
#pragma unroll
      for (int i = 0; i < 2 * TILES; ++i)
        if (i / 2 < tiles) {
          uint32_t words[4];
          lds128(split.parts + other * split.part_bytes + 512 * i + 16 * lane_index, words);
          for (int j = 0; j < 4; ++j) sum[i / 2][i % 2][j] += as_float(words[j]);
        }
      sync_warp();
      if (lane_index == 0) barrier_arrive(BAR_PART_EMPTY + 8 * other);
    }
  }

  template <int TILES, int PLANES>
  DEV void run_units(const Runs& run, int block, const Segment& segment) {
    const int at_block = split.place_of(block), odd_run = block & 1;
    const uint32_t rows_at = split.rows + at_block * split.rows_bytes;
    const int matrix = run.matrix;
    constexpr int FOLDED = (TILES * Format::TILE_TOKENS + 7) / 8;  // tiles of eight tokens
    uint32_t rows[TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
      rows[tile] = Format::column(rows_at, tile, segment.rows, lane, row_pitch<Format>(p));
    const int jobs = p.jobs[matrix], total = run.length * jobs, tiles = (segment.rows + 7) >> 3;
    const int turn = run.turn();
    int next = first_job(total, warp, turn);
    const int last = first_job(total, warp + 1, turn);
    int unit = quotient(next, jobs), job = next - unit * jobs;
    Place at{matrix, segment.expert, segment.planes, (matrix == 0 ? 16 : 32) * (run.row + unit), 0};
    barrier_wait(BAR_ROWS_FULL + 8 * at_block, split.turn_of(block) & 1);
    for (; next < last; ++unit, job = 0, at.row += matrix == 0 ? 16 : 32) {
      const int end = jobs - job < last - next ? jobs : job + last - next;
      const Finish<Format> finish(p, at, run, lane);
      float products[TILES][2][4], sum[FOLDED][2][4];
      set_zero(products);
      multiply<TILES, PLANES>(at, job, end, rows_at, rows, products);
      Format::template fold<TILES, FOLDED>(products, sum, lane);
      next += end - job;
      if (job > 0) {
        hand_over<FOLDED>(sum, tiles, odd_run);
        continue;
      }
      if (end < jobs) gather<FOLDED>(sum, tiles, total, (unit + 1) * jobs, turn, odd_run);
      finish.template store<FOLDED>(p, segment, run, lane, sum);
    }
    if (lane_index < WARPS) {
      const int first = first_job(total, lane_index, turn);
      const bool begins_unit = first == quotient(first, jobs) * jobs;
      if (!begins_unit && first_job(total, lane_index + 1, turn) > first) given ^= 1u << odd_run;
    }
    sync_warp();
  }

  // Where experts differ in bits, each number of planes has a loop of its own: one for all is short of registers.
  template <int TILES>
  DEV void run_planes(const Runs& run, int block, const Segment& segment) {
    if constexpr (!Format::PLANES_DIFFER) return run_units<TILES, 0>(run, block, segment);
    switch (segment.planes) {
      case 1: return run_units<TILES, 1>(run, block, segment);
      case 2: return run_units<TILES, 2>(run, block, segment);
      default: return run_units<TILES, 3>(run, block, segment);
    }
  }

  DEV void all() {
    int block = 0;
    for (int phase = 0; phase < 2 * waves; ++phase)
      for (Runs run(p, phase, waves); run.more(); run.next(), ++block) {
        const Segment segment = segment_at(run.segment);
        switch (tiles_of(segment.rows, Format::TILE_TOKENS)) {
          case 1: run_planes<1>(run, block, segment); break;
          case 2: run_planes<2>(run, block, segment); break;
          default: run_planes<4>(run, block, segment);
        }
        if (lane_index == 0) barrier_arrive(BAR_ROWS_DONE + 8 * split.place_of(block));
      }
  }
};
