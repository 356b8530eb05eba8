// What one launch is asked to do, and where things lie in shared memory.
//
// T tokens (rows of x), C columns, N outputs of all matrices side by side. A tile is 8 outputs. A cluster of blocks
// takes neighbouring tiles, and each of its blocks its share of their columns. Two tiles are a stage: 16 rows of
// weights, or what a block holds of them, which land in shared memory together. A block of columns is 32 of them, 64
// bytes of a row. The warps of a group share the columns out (a slice each), the groups take turns at the stages.
//
// The sums of a tile over a slice are `parts`. A round is so many tiles that all their parts have room: they are summed
// over the slices, sent to one block of the cluster, a unit (a tile of outputs by 16 tokens) each in turn, and there
// summed over the blocks. Every sum has a fixed order.
#pragma once

#include "machine.cuh"

constexpr int COLUMNS = THERMOE_COLUMNS;
constexpr int TOKENS = THERMOE_TOKENS;  // most tokens: 8, 16, 32 or 64
constexpr int CLUSTER = THERMOE_CLUSTER, SLICES = THERMOE_SLICES, GROUPS = THERMOE_GROUPS, ASKERS = THERMOE_ASKERS;
static_assert(COLUMNS % 8 == 0, "rows are copied and read in pieces of 16 bytes");

constexpr int WARPS = SLICES * GROUPS;  // that multiply; ASKERS more ask for weights
constexpr int THREADS = 32 * (WARPS + ASKERS);
constexpr bool EIGHT = TOKENS == 8;  // the upper half of the matrix units' rows is empty
constexpr int TOKEN_TILES = EIGHT ? 1 : TOKENS / 16;

DEV constexpr int over(int a, int b) { return (a + b - 1) / b; }
constexpr int TILE = 8, STAGE_TILES = 2, STAGE_ROWS = TILE * STAGE_TILES;
constexpr int BLOCK_COLUMNS = 32, BLOCK_BYTES = 2 * BLOCK_COLUMNS;
constexpr int RANK_BLOCKS = over(over(COLUMNS, BLOCK_COLUMNS), CLUSTER);
constexpr int SLICE_BLOCKS = over(RANK_BLOCKS, SLICES);
constexpr int ROW_BYTES = SLICES * SLICE_BLOCKS * BLOCK_BYTES;
constexpr bool WHOLE = COLUMNS == CLUSTER * SLICES * SLICE_BLOCKS * BLOCK_COLUMNS;  // no row leaves a gap
constexpr int UNIT_BYTES = 512;  // 16 bytes a lane

DEV constexpr int pitch_of(int bytes) { return bytes % 128 == 0 ? bytes + 64 : bytes; }  // eight lanes meet all banks
constexpr int PITCH = pitch_of(ROW_BYTES);

struct Problem {
  const uint16_t* x;  // (T, C) bf16
  uint16_t* out;      // (T, N)
  const uint16_t* weight[3];
  const uint16_t* bias[3];  // null: none
  int32_t ends[3];          // outputs of the first matrix, of the first two, of all
  int32_t tokens;
  int32_t tiles;        // of all outputs
  int32_t stages;       // that have room in shared memory
  int32_t rows;         // that have room: of the last stage, half may be missing
  int32_t round_tiles;  // an even number
  int32_t apart;        // whether parts have room of their own, instead of where the weights were that they come from
  int32_t early;        // stages that are asked for before the launch before this one has ended
  int32_t inbox_at, parts_at, stages_at;  // from the start of shared memory
  int32_t pairs;        // whether two neighbouring outputs can be stored at once
};

// ---- shared memory: barriers, then what layout.py lays out
constexpr int MAX_STAGES = 32;
DEV uint32_t full_barrier(int slot) { return dynamic_start() + 8 * slot; }
DEV uint32_t empty_barrier(int slot) { return dynamic_start() + 8 * (MAX_STAGES + slot); }
DEV uint32_t inbox_barrier(int odd) { return dynamic_start() + 8 * (2 * MAX_STAGES + odd); }
constexpr int HEAD_BYTES = 8 * (2 * MAX_STAGES + 2);  // rounded up in layout.py
constexpr int PARTS_READY = 1;                       // a named barrier, of all warps that multiply

// A block's share.
struct Work {
  int rank, first_tile, tiles;
  int first_column, row_bytes;  // of weights that there are: none in the last blocks where columns are few

  DEV explicit Work(const Problem& p) {
    const int cluster = block_index() / CLUSTER, clusters = num_blocks() / CLUSTER;
    rank = block_index() % CLUSTER;
    first_tile = p.tiles * cluster / clusters;
    tiles = p.tiles * (cluster + 1) / clusters - first_tile;
    first_column = rank * RANK_BLOCKS * BLOCK_COLUMNS;
    const int left = COLUMNS - first_column, most = RANK_BLOCKS * BLOCK_COLUMNS;
    row_bytes = 2 * (left < 0 ? 0 : left < most ? left : most);
  }
  DEV int stages() const { return (tiles + 1) / 2; }
};

// A place in the ring of stages, and how often it has been come by.
struct Slot {
  int at;
  uint32_t odd = 0;

  DEV explicit Slot(int first, int stages) : at(first) { wrap(stages); }
  DEV void forward(int by, int stages) {
    at += by;
    wrap(stages);
  }
  DEV void wrap(int stages) {
    for (; at >= stages; at -= stages) odd ^= 1;
  }
};
