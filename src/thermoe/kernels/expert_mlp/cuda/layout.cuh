// What one launch is asked to do, and where things lie in shared memory.
//
// Shapes: T tokens, K slots a token, slots t * K + k, E experts, D model width, I expert width. Matrix 0 is the first
// of an expert, (2 I, D), matrix 1 the second, (D, I).
// A segment is one expert with at most row_cap of its slots. A run is one segment at one matrix and one split of its
// columns; it needs one block of activations. A unit is 32 rows of a run's weights: 16 gate rows with the 16 up rows
// they meet, or 32 neighbouring rows. A job is 32 rows by JOB_COLUMNS columns of a unit, what one warp multiplies.
#pragma once

#include "machine.cuh"

#ifndef THERMOE_WARPS
#define THERMOE_WARPS 8  // warps that multiply
#endif

constexpr int WARPS = THERMOE_WARPS;
static_assert(WARPS == 8 || WARPS == 12, "what geometry.py cuts layers for");
constexpr int STAGERS = 3;  // warps that stage activations; one more tells other blocks what is finished
constexpr int TELLER = WARPS + STAGERS;
constexpr int ALL_WARPS = TELLER + 1;
constexpr int THREADS = 32 * ALL_WARPS;
constexpr int STAGER_THREADS = 32 * STAGERS;
constexpr int MAX_SLOTS = 512;  // T * K
constexpr int MAX_EXPERTS = 512;
constexpr int MAX_TILES = 4;  // of tokens, in a segment: more would not leave sums in registers
constexpr int MAX_RING = 4;  // slots of a warp

enum ActivationKind : int { SWIGLU = 0, GEGLU = 1, SWIGLU_CLAMPED = 2 };

constexpr int SCALE_MAP = 3, ZERO_MAP = 4;

struct Problem {
  // Of each matrix: its only tensor (bytes, rows, halves, experts), or its planes (words of rows, halves, pieces, experts)
  // with their scales and zeros at SCALE_MAP and ZERO_MAP (rows, halves, groups, precisions and experts).
  TensorMap map[2][5];
  const uint16_t* x;    // (T, D) bf16
  const void* ids;      // (T, K) int32 or int64
  const void* gates;    // (T, K) float32 or bf16
  uint16_t* out;        // (T, D) bf16
  uint16_t* hidden;     // (T * K, I) bf16, between the matrices
  float* product;       // (splits, T * K, D), before the sum over a token's slots
  uint32_t* counters;   // COUNTER_WORDS, zero before the first launch; each launch leaves them ready for the next
  const void* scale[2];     // fp8: (E, N) or (E, N / 128, C / 128) float32
  const float* bias[2];     // (E, 2 I), (E, D), or null
  const int32_t* bits;      // (E), or null: bits_all
  int32_t tokens, top_k, experts;
  int32_t columns[2];  // D, I
  int32_t jobs[2];     // of a unit
  int32_t groups[2];   // scales along a row, of fp8 in blocks
  int32_t planes;      // tensors of a matrix: 1 to 3
  int32_t splits;      // of the second matrix's columns
  int32_t row_cap;
  int32_t bits_all;
  int32_t wide_ids, narrow_gates, activation;
  int32_t ring;  // slots of a warp, at most MAX_RING
};

// ---- counters in device memory, zero before the first launch
constexpr int COUNTER_ARRIVED = 0;     // blocks at the last barrier, in all launches
constexpr int COUNTER_GENERATION = 1;  // launches before this one
constexpr int COUNTER_BASE = 2;        // blocks of launches before this one
constexpr int COUNTER_UNITS = 32;      // finished units of each segment, for even and for odd generations
constexpr int COUNTER_WORDS = COUNTER_UNITS + 2 * MAX_SLOTS;

// ---- shared memory, addresses in bytes
constexpr uint32_t BAR_FULL = SHARED_START;
constexpr uint32_t BAR_PART_FULL = BAR_FULL + 8 * MAX_RING * WARPS;
constexpr uint32_t BAR_PART_EMPTY = BAR_PART_FULL + 16 * WARPS;  // full: of even and of odd runs
constexpr uint32_t BAR_ROWS_FULL = BAR_PART_EMPTY + 8 * WARPS;
constexpr uint32_t BAR_ROWS_DONE = BAR_ROWS_FULL + 16;
constexpr uint32_t BAR_ROWS_EMPTY = BAR_ROWS_DONE + 16;
constexpr int NUM_BARRIERS = (MAX_RING + 3) * WARPS + 6;
constexpr uint32_t INFO = (BAR_FULL + 8 * NUM_BARRIERS + 15) / 16 * 16;
constexpr uint32_t SCAN = INFO + 96;                        // 8 bytes a scanning warp
constexpr uint32_t ROW_SLOT = SCAN + 8 * 8;                 // u16 a kept slot: slots in order of expert
constexpr uint32_t GATES = ROW_SLOT + 2 * MAX_SLOTS;        // f32 a slot, 0 where dropped
constexpr uint32_t SEGMENT = GATES + 4 * MAX_SLOTS;         // u32 a segment: expert << 16 | first row
constexpr uint32_t SEGMENT_ROWS = SEGMENT + 4 * MAX_SLOTS;  // u32 a segment: planes << 16 | rows
constexpr uint32_t COST = SEGMENT_ROWS + 4 * MAX_SLOTS;     // u32: cost of a unit, summed over earlier segments
constexpr uint32_t EXPERT_PLANES = COST + 4 * 64;  // u16 an expert, where at most 32 segments leave room
constexpr uint32_t DYNAMIC = (COST + 4 * (MAX_SLOTS + 1) + 1023) / 1024 * 1024;
constexpr uint32_t SHARED_BYTES = 227 * 1024;
constexpr uint32_t DYNAMIC_BYTES = SHARED_START + SHARED_BYTES - DYNAMIC;
constexpr uint32_t PART_TILE = 1024;                 // a warp's share of a unit, for eight tokens
constexpr uint32_t TWO_BLOCKS_RING = 12 * 1024 * WARPS;  // a second block of activations must leave this for weights,
constexpr int TWO_BLOCKS_SLOTS = 2;                      // or so many slots of each warp
// geometry.py gives activations what the shares and a slot for each warp leave of 215 KiB; the rest is alignment.
static_assert(DYNAMIC_BYTES >= 215 * 1024 + 256, "a ring of one slot for each warp must fit");

// ---- INFO words
constexpr uint32_t INFO_SEGMENTS = INFO;
constexpr uint32_t INFO_MAX_ROWS = INFO + 4;
constexpr uint32_t INFO_MAX_PLANES = INFO + 8;
constexpr uint32_t INFO_GENERATION = INFO + 12;  // of this launch
constexpr uint32_t INFO_RANGE = INFO + 16;       // of each phase: segment and unit inside, of the first and past the last
constexpr uint32_t INFO_WAVES = INFO + 80;
constexpr uint32_t INFO_BASE = INFO + 84;  // blocks that arrived before this launch
constexpr uint32_t INFO_KEPT = INFO + 88;  // slots that are not dropped

// A wave is half of all units of a matrix, or all where units are few or segments have many tokens. A phase is a matrix
// and a wave, in order: what a block waits for in a wave of the second matrix was made a wave ago. But it stages twice
// as many runs.
constexpr int MAX_WAVES = 2;
constexpr int WAVE_UNITS = 4;  // of a block in the first matrix, at least

// Tiles of `tokens` tokens that a segment takes: 1, 2, 4 (as many as are multiplied at a time) or 8.
DEV int tiles_of(int rows, int tokens) {
  return rows <= tokens ? 1 : rows <= 2 * tokens ? 2 : rows <= 4 * tokens ? 4 : 8;
}

// How the rest of shared memory is shared out; every thread computes the same.
struct Split {
  int ring;                            // slots of a warp
  uint32_t slot_bytes;
  uint32_t data, scales, parts, rows;  // where each begins
  uint32_t part_bytes;                 // of a warp
  uint32_t rows_bytes;                 // of one block of activations, sums included
  uint32_t sums;                       // where in a block the sums begin
  int sums_stride;                     // bytes from group to group
  int row_blocks;                      // 1 or 2

  DEV int place_of(int block) const { return block & (row_blocks - 1); }  // of a block of activations
  DEV int turn_of(int block) const { return block >> (row_blocks - 1); }  // blocks before it in the same place
};

template <class Format>
DEV uint32_t row_pitch(const Problem& p) {  // odd multiples of 64 bytes: eight lanes meet all banks
  int jobs = p.jobs[0] > p.jobs[1] ? p.jobs[0] : p.jobs[1];
  return 2u * Format::JOB_COLUMNS * jobs + 64u;
}

template <class Format>
DEV Split split_shared(const Problem& p) {
  Split s;
  int max_rows = static_cast<int>(lds32(INFO_MAX_ROWS));
  int jobs = p.jobs[0] > p.jobs[1] ? p.jobs[0] : p.jobs[1];
  s.sums = max_rows * row_pitch<Format>(p);
  s.sums_stride = 64 * tiles_of(max_rows, 4);
  s.rows_bytes = (s.sums + s.sums_stride * Format::JOB_SUMS * jobs + 127) / 128 * 128;
  s.part_bytes = PART_TILE * tiles_of(max_rows, 8);
  const uint32_t room = DYNAMIC_BYTES - WARPS * s.part_bytes - 128;
  s.slot_bytes = Format::slot_bytes(static_cast<int>(lds32(INFO_MAX_PLANES)));
  const uint32_t slots_bytes = WARPS * TWO_BLOCKS_SLOTS * (s.slot_bytes + Format::SCALE_BYTES);
  s.row_blocks = room >= 2 * s.rows_bytes + (slots_bytes < TWO_BLOCKS_RING ? slots_bytes : TWO_BLOCKS_RING) ? 2 : 1;
  s.ring = p.ring;
  while (s.row_blocks * s.rows_bytes + WARPS * s.ring * (s.slot_bytes + Format::SCALE_BYTES) > room) --s.ring;
  s.data = DYNAMIC;
  s.scales = s.data + WARPS * s.ring * s.slot_bytes;
  s.parts = (s.scales + WARPS * s.ring * Format::SCALE_BYTES + 127) / 128 * 128;
  s.rows = s.parts + WARPS * s.part_bytes;
  return s;
}
