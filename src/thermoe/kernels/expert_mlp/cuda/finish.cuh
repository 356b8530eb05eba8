// What follows the products. A finished unit lies in a warp's registers; it is activated and stored, or stored for the
// sum over a token's slots, which the last barrier of the launch precedes.
#pragma once

#include "job.cuh"
#include "runs.cuh"

// All are gate * sigmoid(slope) * up: GeLU by its tanh form, because (1 + tanh(v)) / 2 is sigmoid(2 v).
DEV float activate(int kind, float gate, float up) {
  float slope = gate;
  if (kind == GEGLU) slope = 1.5957691216057308f * (gate + 0.044715f * gate * gate * gate);
  if (kind == SWIGLU_CLAMPED) {
    gate = gate > 7.f ? 7.f : gate;
    up = up > 7.f ? 8.f : up < -7.f ? -6.f : up + 1.f;
    slope = 1.702f * gate;
  }
  return fast_divide(gate, 1.f + fast_exp(-slope)) * up;
}

// The four rows of a unit that a lane holds: of each half, two that lie 8 apart.
template <class Format>
struct Finish {
  int matrix, row;  // the first of the four, in the half
  float scale[2][2], bias[2][2];

  // Scales and biases are on their way while the unit is multiplied.
  DEV Finish(const Problem& p, const Place& at, const Runs& run, const Lane& lane)
      : matrix(at.matrix), row(at.row + Format::row(lane.group)) {
    const int64_t expert_row = static_cast<int64_t>(at.expert) * Place::rows_of(p, matrix) + Format::row(lane.group);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t index = expert_row + (i < 2 ? at.row : at.lower(p)) + 8 * (i % 2);
      scale[i / 2][i % 2] = Format::UNIT, bias[i / 2][i % 2] = 0.f;
      if (Format::ROW_SCALES) scale[i / 2][i % 2] *= static_cast<const float*>(p.scale[matrix])[index];
      if (p.bias[matrix] && run.split == 0) bias[i / 2][i % 2] = p.bias[matrix][index];
    }
  }

  template <int TILES>
  DEV void store(const Problem& p, const Segment& segment, const Runs& run, const Lane& lane,
                 const float (&sum)[TILES][2][4]) const {
    // Of the lane's tokens: [2 * half + low]. The loop is one copy of its code, hence the next is always the first.
    float left[2 * TILES][4];
#pragma unroll
    for (int i = 0; i < 8 * TILES; ++i) left[i / 4][i % 4] = sum[i / 8][i / 2 % 2][2 * (i % 2) + i / 4 % 2];
#pragma unroll 1
    for (int i = 0; i < 2 * TILES; ++i) {
      const int token = 8 * (i / 2) + 2 * lane.quad + i % 2;
      if (token < segment.rows) store_token(p, segment, run, token, left[0]);
#pragma unroll
      for (int j = 0; j < 4 * (2 * TILES - 1); ++j) left[j / 4][j % 4] = left[j / 4 + 1][j % 4];
    }
  }

  DEV void store_token(const Problem& p, const Segment& segment, const Runs& run, int token,
                       const float (&sum)[4]) const {
    const int64_t slot = lds16(ROW_SLOT + 2 * (segment.first_row + token));
    uint16_t* const hidden = p.hidden + slot * p.columns[1] + row;
    float* const product =
        p.product + (static_cast<int64_t>(run.split) * p.tokens * p.top_k + slot) * p.columns[0] + row;
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      const float upper = sum[low] * scale[0][low] + bias[0][low];
      const float lower = sum[2 + low] * scale[1][low] + bias[1][low];
      if (matrix == 0)
        hidden[8 * low] = static_cast<uint16_t>(pack_bf16(activate(p.activation, upper, lower), 0.f));
      else
        product[8 * low] = upper, product[16 + 8 * low] = lower;
    }
  }
};

DEV uint32_t* finished_units(const Problem& p, uint32_t generation) {
  return p.counters + COUNTER_UNITS + (generation & 1) * MAX_SLOTS;
}

// Every block passes once every block has come. All have read the counters of the launch by then.
DEV void barrier_of_blocks(const Problem& p, uint32_t generation, uint32_t base) {
  const uint32_t all = base + static_cast<uint32_t>(num_blocks());
  add_release(p.counters + COUNTER_ARRIVED, 1);
  while (static_cast<int32_t>(load_acquire(p.counters + COUNTER_ARRIVED) - all) < 0) pause(20);
  if (block_index() == 0) p.counters[COUNTER_GENERATION] = generation + 1, p.counters[COUNTER_BASE] = all;
}

// By one thread: what the warps that multiply have stored becomes visible to other blocks, without their waiting for it.
DEV void tell_all(const Problem& p, const Split& split, uint32_t generation) {
  const int waves = static_cast<int>(lds32(INFO_WAVES));
  int block = 0;
  for (int phase = 0; phase < 2 * waves; ++phase)
    for (Runs run(p, phase, waves); run.more(); run.next(), ++block) {
      const int at = split.place_of(block), turn = split.turn_of(block);
      barrier_wait(BAR_ROWS_DONE + 8 * at, turn & 1);
      barrier_arrive(BAR_ROWS_EMPTY + 8 * at);
      if (run.matrix == 0) add_release(finished_units(p, generation) + run.segment, run.length);
    }
  barrier_of_blocks(p, generation, lds32(INFO_BASE));
}

// out = sum over a token's slots of gate * product, in order; a dropped slot is never read. All threads meet first.
DEV void combine(const Problem& p, int thread) {
  const int quads = p.columns[0] >> 2;  // of a token
  const int total = p.tokens * quads;
  const int64_t split_pitch = static_cast<int64_t>(p.tokens) * p.top_k * p.columns[0];
  int index = 32 * ((thread >> 5) * num_blocks() + block_index()) + (thread & 31), token = index / quads;
  sync_block();
  for (; index < total; index += THREADS * num_blocks(), token = index / quads) {
    const int column = 4 * (index - token * quads);
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
