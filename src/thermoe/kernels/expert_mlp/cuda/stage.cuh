// Activations on their way into shared memory: the rows of a run, in the order of columns that the format multiplies
// in, with zeros past the end. Before the second matrix this is where a block
// waits for the others; its weights are on their way meanwhile.
#pragma once

#include "finish.cuh"
#include "plan.cuh"

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

// A warp takes 32 octets of a row at a time, and the warps take turns.
template <class Format>
DEV void stage_rows(const Split& split, const RowSource& source, const Segment& segment, int octets, uint32_t to,
                    uint32_t pitch, int warp, int lane) {
  constexpr int BATCH = 4;  // loads in flight
  for (int row = 0, piece = 32 * warp; row < segment.rows;) {
    uint32_t v[BATCH][4];
    int rows[BATCH], octet[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      for (; piece >= octets && row < segment.rows; ++row) piece -= (octets + 31) / 32 * 32;
      rows[i] = row, octet[i] = piece + lane;
      v[i][0] = v[i][1] = v[i][2] = v[i][3] = 0;
      if (row < segment.rows && octet[i] < source.octets)
        load_fresh(source.row_of(lds16(ROW_SLOT + 2 * (segment.first_row + row))) + 8 * octet[i], v[i]);
      piece += 32 * STAGERS;
    }
#pragma unroll
    for (int i = 0; i < BATCH; ++i)
      if (rows[i] < segment.rows && octet[i] < octets)  // where lanes meet, octets are a multiple of 32
        Format::stage(v[i], octet[i], rows[i], to, pitch, split.sums, split.sums_stride);
  }
}

template <class Format>
DEV void stage_all(const Problem& p, const Split& split, uint32_t generation, int thread) {
  const int warp = same_in_warp(thread / 32);
  int block = 0;  // of activations, counted over both matrices
  for (int matrix = 0; matrix < 2; ++matrix) {
    const int columns = p.jobs[matrix] * Format::JOB_COLUMNS;
    for (Runs run(p, matrix); run.more(); run.next(), ++block) {
      const int at = block % split.row_blocks, turn = block / split.row_blocks;
      const Segment segment = segment_at(run.segment);
      if (matrix == 1) {
        const uint32_t* finished = finished_units(p, generation) + run.segment;
        if (thread == 0)
          while (load_acquire(finished) != static_cast<uint32_t>(p.columns[1] / 16)) pause();
        sync_group(2, STAGER_THREADS);
      }
      barrier_wait(BAR_ROWS_EMPTY + 8 * at, (turn & 1) ^ 1);
      const uint32_t to = split.rows + at * split.rows_bytes;
      stage_rows<Format>(split, row_source(p, matrix, run, columns), segment, columns / 8, to, row_pitch<Format>(p),
                         warp, thread % 32);
      sync_warp();
      if (thread % 32 == 0) barrier_arrive(BAR_ROWS_FULL + 8 * at);
    }
  }
}
