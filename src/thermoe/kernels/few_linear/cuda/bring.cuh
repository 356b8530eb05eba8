// Weights on their way into shared memory, row by row, by warps that do nothing else: a queue of copies that is full
// makes whoever asks for more wait, and with it whatever that warp would have read next.
#pragma once

#include "layout.cuh"

struct Source {
  const uint16_t* row;
  int left;  // of its matrix, this row included

  DEV Source(const Problem& p, int output) {
    const bool first = output < p.ends[0], second = output < p.ends[1];
    const int begin = first ? 0 : second ? p.ends[0] : p.ends[1];
    row = first ? p.weight[0] : second ? p.weight[1] : p.weight[2];
    row += static_cast<int64_t>(output - begin) * COLUMNS;
    left = (first ? p.ends[0] : second ? p.ends[1] : p.ends[2]) - output;
  }
};

// Gaps at the ends of rows hold zeros: they meet columns of x that are not there, and may not be infinite.
DEV void clear_gaps(const Problem& p, const Work& work, int thread) {
  if constexpr (!WHOLE) {
    const uint32_t zeros[4] = {0, 0, 0, 0};
    const int gap = (ROW_BYTES - work.row_bytes) / 16;
    for (int i = thread; i < gap * p.rows; i += THREADS)
      sts128(dynamic_start() + p.stages_at + i / gap * PITCH + work.row_bytes + 16 * (i % gap), zeros);
  }
}

DEV void ask_for_stage(const Problem& p, const Work& work, int stage, int slot, int asker, uint64_t policy) {
  const int first = TILE * work.first_tile + STAGE_ROWS * stage, end = TILE * (work.first_tile + work.tiles);
  const int left = (end < p.ends[2] ? end : p.ends[2]) - first, rows = left < STAGE_ROWS ? left : STAGE_ROWS;
  const uint32_t bar = full_barrier(slot), to = dynamic_start() + p.stages_at + slot * STAGE_ROWS * PITCH;
  barrier_expect(bar, rows > asker ? (rows - asker + ASKERS - 1) / ASKERS * work.row_bytes : 0);
  if (work.row_bytes == 0) return;
  const Source source(p, first);
  if (source.left >= STAGE_ROWS && rows == STAGE_ROWS) {
    const uint16_t* from = source.row + work.first_column + asker * COLUMNS;
#pragma unroll
    for (int i = 0; i < STAGE_ROWS / ASKERS; ++i)
      copy_bytes(to + asker * PITCH + i * ASKERS * PITCH, from + i * ASKERS * COLUMNS, work.row_bytes, bar, policy);
  } else {
#pragma unroll 1
    for (int row = asker; row < rows; row += ASKERS)
      copy_bytes(to + row * PITCH, Source(p, first + row).row + work.first_column, work.row_bytes, bar, policy);
  }
}

DEV void ask_for_all(const Problem& p, const Work& work, int asker) {
  const uint64_t policy = stream_policy();
  Slot slot(0, p.stages);
  for (int stage = 0; stage < work.stages(); ++stage) {
    if (stage == p.early) wait_for_launch_before();
    if (stage >= p.stages) barrier_wait(empty_barrier(slot.at), slot.odd ^ 1);
    if (elected()) ask_for_stage(p, work, stage, slot.at, asker, policy);
    sync_warp();
    slot.forward(1, p.stages);
  }
}
