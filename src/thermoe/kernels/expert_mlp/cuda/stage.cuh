// Activations on their way into shared memory: the rows of a run, in the order of columns that the format multiplies
// in, with zeros past the end and with their sums over scale groups. Before the second matrix this is where a block
// waits for the others; its weights are on their way meanwhile.
#pragma once

#include "finish.cuh"
#include "plan.cuh"

struct RowSource {
  const uint16_t* base;
  int slots_a_row;  // slots that share a row of the source
  int64_t pitch;    // columns from row to row
  int octets;       // groups of 8 columns that exist; zeros follow
};

DEV RowSource row_source(const Problem& p, int matrix, const Runs& run, int columns) {
  if (matrix == 0) return {p.x, p.top_k, p.columns[0], p.columns[0] / 8};
  int first = run.split * columns, left = p.columns[1] - first;
  return {p.hidden + first, 1, p.columns[1], left / 8};
}

DEV float sum_of(const uint32_t (&v)[4]) {
  float sum = 0.f;
  for (int i = 0; i < 4; ++i) sum += as_float(v[i] << 16) + as_float(v[i] & 0xffff0000u);
  return sum;
}

template <class Format>
DEV void stage_rows(const Problem& p, const Split& split, const RowSource& source, const Segment& segment, int octets,
                    uint32_t to, int thread) {
  constexpr int BATCH = 4;  // loads in flight
  const int total = segment.rows * octets;
  const uint32_t pitch = row_pitch<Format>(p);
  for (int first = thread; first < total; first += BATCH * STAGER_THREADS) {
    uint32_t v[BATCH][4];
    int row[BATCH], octet[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      int index = first + i * STAGER_THREADS;
      row[i] = index / octets, octet[i] = index - row[i] * octets;
      v[i][0] = v[i][1] = v[i][2] = v[i][3] = 0;
      if (index < total && octet[i] < source.octets) {
        int slot = lds16(ROW_SLOT + 2 * (segment.first_row + row[i]));
        load_fresh(source.base + (slot / source.slots_a_row) * source.pitch + 8 * octet[i], v[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      // Whole warps leave together where sums are made: a row then has a multiple of 32 octets.
      if (first + i * STAGER_THREADS >= total) break;
      if (Format::JOB_SUMS > 0) {
        constexpr int LANES = Format::JOB_COLUMNS / 8 / (Format::JOB_SUMS > 0 ? Format::JOB_SUMS : 1);
        float sum = sum_of(v[i]);
        for (int mask = 1; mask < LANES; mask *= 2) sum += shuffle_xor(sum, mask);
        if (octet[i] % LANES == 0) sts_float(to + split.sums + octet[i] / LANES * split.sums_stride + 4 * row[i], sum);
      }
      uint32_t place = Format::stage(v[i], octet[i]);
      sts128(to + row[i] * pitch + place, v[i]);
    }
  }
}

template <class Format>
DEV void stage_all(const Problem& p, const Split& split, uint32_t generation, int thread) {
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
      stage_rows<Format>(p, split, row_source(p, matrix, run, columns), segment, columns / 8, to, thread);
      sync_warp();
      if (thread % 32 == 0) barrier_arrive(BAR_ROWS_FULL + 8 * at);
    }
  }
}
