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
  if (matrix == 0) {
    // Off by a quarter of what keeps it from the next whole number.
    const float share = fast_divide(static_cast<float>(WHOLE_SHARE), static_cast<float>(p.top_k));
    return {p.x, static_cast<uint32_t>(share) + 1, p.columns[0], p.columns[0] >> 3};
  }
  const int first = run.split * columns, left = p.columns[1] - first;
  return {p.hidden + first, WHOLE_SHARE, p.columns[1], left >> 3};
}

constexpr int BATCH = 4;  // loads of a warp in flight

// A warp takes 32 octets of a row at a time, and the warps take turns. `meanwhile` is done once, behind the first
// loads; where `read`, they are in `v` already. A run past the last has no rows. The octets are staged in a loop of one
// copy, whose code is fetched once.
template <class Format, class Meanwhile>
DEV void stage_rows(const Problem& p, const Split& split, const Runs& run, uint32_t to, int warp, int warps, int lane,
                    uint32_t (&v)[BATCH][4], bool read, Meanwhile meanwhile) {
  const int columns = p.jobs[run.matrix] * Format::JOB_COLUMNS, octets = columns >> 3, whole = (octets + 31) & ~31;
  const RowSource source = row_source(p, run.matrix, run, columns);
  const Segment segment = segment_at(run.segment);
  const int rows = run.more() ? segment.rows : 0;
  const uint32_t pitch = row_pitch<Format>(p);
  const auto settle = [whole](int& row, int& piece) {
    for (; piece >= whole; ++row) piece -= whole;
  };
  int row = 0, piece = 32 * warp;
  settle(row, piece);
  for (bool first = true; first || row < rows; first = read = false) {
    int next_row = row, next = piece;
    if (!read) {
#pragma unroll
      for (int i = 0; i < BATCH; ++i) {
        v[i][0] = v[i][1] = v[i][2] = v[i][3] = 0;
        if (next_row < rows && next + lane < source.octets)
          load_fresh(source.row_of(lds16(ROW_SLOT + 2 * (segment.first_row + next_row))) + 8 * (next + lane), v[i]);
        next += 32 * warps;
        settle(next_row, next);
      }
    }
    if (first) meanwhile();
#pragma unroll 1
    for (int i = 0; i < BATCH && row < rows; ++i) {
      if (Format::JOB_COLUMNS % 256 == 0 || piece + lane < octets)  // lanes that meet are all there
        Format::stage(v[0], piece + lane, row, to, pitch, split.sums, split.sums_stride);
#pragma unroll
      for (int j = 0; j < 4 * (BATCH - 1); ++j) v[j / 4][j % 4] = v[j / 4 + 1][j % 4];
      piece += 32 * warps;
      settle(row, piece);
    }
  }
}

// What a thread of a single token's launch reads with the ids: the octets that it will stage.
struct OnlyToken {
  static constexpr int EACH = 2;
  uint32_t v[BATCH][4];
  bool read;

  DEV OnlyToken(const Problem& p, int thread) : read(p.tokens == 1 && p.columns[0] <= 8 * EACH * THREADS) {
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      const int octet = thread + i * THREADS;
      v[i][0] = v[i][1] = v[i][2] = v[i][3] = 0;
      if (i < EACH && read && octet < p.columns[0] / 8) load_fresh(p.x + 8 * octet, v[i]);
    }
  }
};

// The first run of the block, by all warps: nobody has anything to multiply yet.
template <class Format, class Meanwhile>
DEV void stage_first(const Problem& p, const Split& split, OnlyToken& only, int role, int lane, Meanwhile meanwhile) {
  const Runs run(p, 0, static_cast<int>(lds32(INFO_WAVES)));
  const bool read = only.read && lds32(INFO_MAX_ROWS) == 1;  // the token may have the same expert twice
  stage_rows<Format>(p, split, run, split.rows, role, ALL_WARPS, lane, only.v, read, meanwhile);
  sync_warp();
  if (lane > 0) return;
  if (role < WARPS || role == TELLER)
    barrier_leave(BAR_ROWS_FULL);  // those that stage the other runs stay
  else if (run.more())
    barrier_arrive(BAR_ROWS_FULL);
}

// The others, by the warps that stage.
template <class Format>
DEV void stage_all(const Problem& p, const Split& split, uint32_t generation, int warp, int lane) {
  const int waves = static_cast<int>(lds32(INFO_WAVES));
  int block = 0;  // of activations
  uint32_t v[BATCH][4];
  for (int phase = 0; phase < 2 * waves; ++phase)
    for (Runs run(p, phase, waves); run.more(); run.next(), ++block) {
      const int at = split.place_of(block), turn = split.turn_of(block);
      if (phase == 0 && block == 0) continue;  // staged already
      if (run.matrix == 1) {
        const uint32_t* finished = finished_units(p, generation) + run.segment;
        if (warp == 0 && lane == 0)
          while (load_acquire(finished) != static_cast<uint32_t>(p.columns[1] / 16)) pause(20);
        named_wait<2>(STAGER_THREADS);
      }
      barrier_wait(BAR_ROWS_EMPTY + 8 * at, (turn & 1) ^ 1);
      stage_rows<Format>(p, split, run, split.rows + at * split.rows_bytes, warp, STAGERS, lane, v, false, [] {});
      sync_warp();
      if (lane == 0) barrier_arrive(BAR_ROWS_FULL + 8 * at);
    }
}
