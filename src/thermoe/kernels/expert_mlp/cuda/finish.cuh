// What follows the products: a unit's shares are added in a fixed order, then activated and stored, or stored for the
// sum over a token's slots, which the last barrier of the launch precedes.
#pragma once

#include "plan.cuh"

DEV float activate(int kind, float gate, float up) {
  if (kind == GEGLU) {
    float inner = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
    return 0.5f * gate * (1.f + fast_tanh(inner)) * up;
  }
  float slope = 1.f;
  if (kind == SWIGLU_CLAMPED) {
    gate = gate > 7.f ? 7.f : gate;
    up = up > 7.f ? 8.f : up < -7.f ? -6.f : up + 1.f;
    slope = 1.702f;
  }
  return fast_divide(gate, 1.f + fast_exp(-slope * gate)) * up;
}

constexpr uint32_t ALL_WARPS = (1u << WARPS) - 1;

struct Output {  // the two values of a unit that a thread finishes, for each tile of tokens
  int token, row;  // of 8 and of 16
  DEV explicit Output(int thread) : token(thread / 16), row(thread % 16) {}
};

template <class Format>
struct Finisher {
  const Problem& p;
  const int thread;
  const Output own;
  int first_warp = 0;            // that holds the coming unit's first job
  uint32_t place = 0, turn = 0;  // a bit a warp: which of its two places comes next, and that place's turn

  DEV Finisher(const Problem& problem, int t) : p(problem), thread(t), own(t) {}

  struct Rows {
    float scale[2], bias[2];
  };
  DEV Rows rows_of(int matrix, const Segment& segment, const Runs& run, int unit_row) const {
    int upper = (matrix == 0 ? 16 : 32) * unit_row + own.row, lower = upper + (matrix == 0 ? p.columns[1] : 16);
    int64_t expert_rows = static_cast<int64_t>(segment.expert) * (matrix == 0 ? 2 * p.columns[1] : p.columns[0]);
    Rows rows = {{Format::UNIT, Format::UNIT}, {0.f, 0.f}};
    if (Format::ROW_SCALES) {
      const float* scale = static_cast<const float*>(p.scale[matrix]) + expert_rows;
      rows.scale[0] *= scale[upper], rows.scale[1] *= scale[lower];
    }
    if (p.bias[matrix] && run.split == 0) {
      const float* bias = p.bias[matrix] + expert_rows;
      rows.bias[0] = bias[upper], rows.bias[1] = bias[lower];
    }
    return rows;
  }

  DEV void unit(int matrix, const Segment& segment, const Runs& run, int unit_row) {
    const int sharers = p.jobs[matrix] < WARPS ? p.jobs[matrix] : WARPS, lane = thread % 32;
    const uint32_t own_value = PARTS + own.token * PART_ROW + 4 * own.row;
    const Rows rows = rows_of(matrix, segment, run, unit_row);
    const uint32_t low = (1u << sharers) - 1, sharing = (low << first_warp | low << first_warp >> WARPS) & ALL_WARPS;
    for (int tile = 0; 8 * tile < segment.rows; ++tile) {
      float sum[2] = {0.f, 0.f};
      const uint32_t mine = 2 * lane + (place >> lane & 1);
      if (sharing >> lane & 1) barrier_wait(BAR_PART_FULL + 8 * mine, turn >> lane & 1);  // a lane for each share
      sync_warp();
      for (int share = 0, warp = first_warp; share < sharers; ++share, warp = warp + 1 < WARPS ? warp + 1 : 0) {
        const uint32_t from = own_value + (2 * warp + (place >> warp & 1)) * PART_BYTES;
        sum[0] += lds_float(from), sum[1] += lds_float(from + PART_HALF);
      }
      sync_warp();
      if (sharing >> lane & 1) barrier_arrive(BAR_PART_EMPTY + 8 * mine);
      turn ^= place & sharing, place ^= sharing;
      if (8 * tile + own.token >= segment.rows) continue;
      const int64_t slot = lds16(ROW_SLOT + 2 * (segment.first_row + 8 * tile + own.token));
      const float upper = sum[0] * rows.scale[0] + rows.bias[0], lower = sum[1] * rows.scale[1] + rows.bias[1];
      if (matrix == 0) {
        const uint32_t hidden = pack_bf16(activate(p.activation, upper, lower), 0.f);
        p.hidden[slot * p.columns[1] + 16 * unit_row + own.row] = static_cast<uint16_t>(hidden);
      } else {
        const int64_t row = static_cast<int64_t>(run.split) * p.tokens * p.top_k + slot;
        float* to = p.product + row * p.columns[0] + 32 * unit_row + own.row;
        to[0] = upper, to[16] = lower;
      }
    }
    first_warp = (first_warp + p.jobs[matrix]) % WARPS;
  }

  DEV void all(uint32_t generation) {
    for (int matrix = 0; matrix < 2; ++matrix)
      for (Runs run(p, matrix); run.more(); run.next()) {
        const Segment segment = segment_at(run.segment);
        for (int i = 0; i < run.length; ++i) unit(matrix, segment, run, run.row + i);
        if (matrix == 1) continue;
        sync_group(1, HELPER_THREADS);
        uint32_t* finished = p.counters + COUNTER_UNITS + (generation & 1) * MAX_SLOTS + run.segment;
        if (thread == 0) add_release(finished, run.length);
      }
  }
};

// Every block passes once every block has come. The counter is back at zero and the generation one further.
DEV void barrier_of_blocks(const Problem& p, uint32_t generation) {
  uint32_t last = static_cast<uint32_t>(num_blocks() - 1);
  if (increment_wrapping(p.counters + COUNTER_ARRIVED, last) == last) {
    add_release(p.counters + COUNTER_GENERATION, 1);
  } else {
    while (load_acquire(p.counters + COUNTER_GENERATION) == generation) pause();
  }
}

// out = sum over a token's slots of gate * product, in order; a dropped slot is never read.
DEV void combine(const Problem& p, int thread) {
  const int quads = p.columns[0] / 4;  // of a token
  const int total = p.tokens * quads;
  const int64_t split_pitch = static_cast<int64_t>(p.tokens) * p.top_k * p.columns[0];
  for (int warp = thread / 32 * num_blocks() + block_index(); 32 * warp < total; warp += THREADS / 32 * num_blocks()) {
    const int index = 32 * warp + thread % 32;
    if (index >= total) break;
    const int token = index / quads, column = 4 * (index - token * quads);
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    for (int first = 0; first < p.top_k; first += 8) {
      for (int split = 0; split < p.splits; ++split) {
        uint32_t v[8][4];
        float gate[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int slot = token * p.top_k + first + i;
          gate[i] = first + i < p.top_k ? lds_float(GATES + 4 * slot) : 0.f;
          v[i][0] = v[i][1] = v[i][2] = v[i][3] = 0;
          const int64_t row = split * split_pitch + static_cast<int64_t>(slot) * p.columns[0];
          if (gate[i] != 0.f) load_fresh(p.product + row + column, v[i]);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
          for (int j = 0; j < 4; ++j) sum[j] += gate[i] * as_float(v[i][j]);
      }
    }
    uint32_t* to = reinterpret_cast<uint32_t*>(p.out + static_cast<int64_t>(token) * p.columns[0] + column);
    to[0] = pack_bf16(sum[0], sum[1]), to[1] = pack_bf16(sum[2], sum[3]);
  }
}
