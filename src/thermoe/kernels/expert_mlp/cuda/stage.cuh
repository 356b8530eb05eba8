// Activations on their way into shared memory: the rows of a run, in the order of columns that the format multiplies
// in, with zeros past the end. Before the second matrix this is where a block
// waits for the others; its weights are on their way meanwhile.
#pragma once

#include "finish.cuh"
#include "runs.cuh"

struct RowSource {
  const uint16_t* base;
  uint32_t slot_share;  // 2^20 / (slots that share a row of the source), rounded up
  int64_t pitch;        // columns from row to row
  int octets;           // groups of 8 columns that exist; zeros follow

  DEV const uint16_t* row_of(int slot) const { return base + (slot * slot_share >> 20) * pitch; }
};

DEV RowSource row_source(const Problem& p, int matrix, const Runs& run, int columns) {
  constexpr uint32_t WHOLE_SHARE = 1u << 20;  // slots are below 512: no quotient is rounded wrongly
  if (matrix == 0) return {p.x, WHOLE_SHARE / p.top_k + 1, p.columns[0], p.columns[0] / 8};
  const int first = run.split * columns, left = p.columns[1] - first;
  return {p.hidden + first, WHOLE_SHARE, p.columns[1], left / 8};
}

// A warp takes 32 octets of a row at a time, and the warps take turns. `meanwhile` is done once, behind the first loads.
template <class Format, class Meanwhile>
DEV void stage_rows(const Problem& p, const Split& split, const Runs& run, uint32_t to, int warp, int warps, int lane,
                    Meanwhile meanwhile) {
  constexpr int BATCH = 4;  // loads in flight
  const int columns = p.jobs[run.matrix] * Format::JOB_COLUMNS, octets = columns / 8, whole = (octets + 31) / 32 * 32;
  const RowSource source = row_source(p, run.matrix, run, columns);
  const Segment segment = segment_at(run.segment);
  const uint32_t pitch = row_pitch<Format>(p);
  bool first = true;
  for (int row = 0, piece = 32 * warp; row < segment.rows;) {
    uint32_t v[BATCH][4];
    int rows[BATCH], octet[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      for (; piece >= whole; ++row) piece -= whole;
      rows[i] = row, octet[i] = piece + lane;
      v[i][0] = v[i][1] = v[i][2] = v[i][3] = 0;
      if (row < segment.rows && octet[i] < source.octets)
        load_fresh(source.row_of(lds16(ROW_SLOT + 2 * (segment.first_row + row))) + 8 * octet[i], v[i]);
      piece += 32 * warps;
    }
    if (first) meanwhile();
    first = false;
#pragma unroll
    for (int i = 0; i < BATCH; ++i)
      if (rows[i] < segment.rows && octet[i] < octets)  // where lanes meet, octets are a multiple of 32
        Format::stage(v[i], octet[i], rows[i], to, pitch, split.sums, split.sums_stride);
    for (; piece >= whole; ++row) piece -= whole;
  }
}

// The first run of the block, if it has one, by all warps: nobody has anything to multiply yet.
template <class Format, class Meanwhile>
DEV void stage_first(const Problem& p, const Split& split, int role, int lane, Meanwhile meanwhile) {
  const Runs run(p, 0, static_cast<int>(lds32(INFO_WAVES)));
  if (!run.more()) return;
  stage_rows<Format>(p, split, run, split.rows, role, ALL_WARPS, lane, meanwhile);
  if (role >= WARPS && role < TELLER && lane == 0) barrier_arrive(BAR_ROWS_FULL);  // the block meets before anybody reads
}

// A single token does not wait for the plan: it is read with the ids.
struct OnlyToken {
  static constexpr int EACH = 2;
  uint32_t v[EACH][4];
  bool read;

  DEV OnlyToken(const Problem& p, int thread) : read(p.tokens == 1 && p.columns[0] <= 8 * EACH * THREADS) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int octet = thread + i * THREADS;
      v[i][0] = v[i][1] = v[i][2] = v[i][3] = 0;
      if (read && octet < p.columns[0] / 8) load_fresh(p.x + 8 * octet, v[i]);
    }
  }
  template <class Format>
  DEV void stage(const Problem& p, const Split& split, int thread) {
    if (!Runs(p, 0, static_cast<int>(lds32(INFO_WAVES))).more()) return;
    const int octets = p.jobs[0] * Format::JOB_COLUMNS / 8;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int octet = thread + i * THREADS;  // where lanes meet, octets are a multiple of 32
      if (octet < octets)
        Format::stage(v[i], octet, 0, split.rows, row_pitch<Format>(p), split.sums, split.sums_stride);
    }
    if (thread >= 32 * WARPS && thread < 32 * TELLER && thread % 32 == 0) barrier_arrive(BAR_ROWS_FULL);
  }
};

// The others, by the warps that stage.
template <class Format>
DEV void stage_all(const Problem& p, const Split& split, uint32_t generation, int warp, int lane) {
  const int waves = static_cast<int>(lds32(INFO_WAVES));
  int block = 0;  // of activations
  for (int phase = 0; phase < 2 * waves; ++phase)
    for (Runs run(p, phase, waves); run.more(); run.next(), ++block) {
      const int at = block % split.row_blocks, turn = block / split.row_blocks;
      if (phase == 0 && block == 0) continue;  // staged already
      if (run.matrix == 1) {
        const uint32_t* finished = finished_units(p, generation) + run.segment;
        if (warp == 0 && lane == 0)
          while (load_acquire(finished) != static_cast<uint32_t>(p.columns[1] / 16)) pause();
        sync_group(2, STAGER_THREADS);
      }
      barrier_wait(BAR_ROWS_EMPTY + 8 * at, (turn & 1) ^ 1);
      stage_rows<Format>(p, split, run, split.rows + at * split.rows_bytes, warp, STAGERS, lane, [] {});
      sync_warp();
      if (lane == 0) barrier_arrive(BAR_ROWS_FULL + 8 * at);
    }
}
