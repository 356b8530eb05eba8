// What one launch is asked to do, how it is cut into tiles, and where things lie in shared memory.
//
// Shapes: E experts, D model width, I expert width, N slots of the plan. Matrix 0 is the first of an expert, (2 I, D),
// matrix 1 the second, (D, I). A place is a position in the plan.
// A tile is 256 rows of an expert's weights (128 gate rows and the 128 up rows they meet, or 256 neighbouring rows) by
// up to TOKENS places of that expert. A step is 128 bytes of each row of both.
#pragma once

#include "machine.cuh"

#ifndef THERMOE_TOKENS
#define THERMOE_TOKENS 160  // most places of a tile, a multiple of 16
#endif
#ifndef THERMOE_STAGES
#define THERMOE_STAGES 4  // steps in shared memory
#endif
#ifndef THERMOE_LEAD
#define THERMOE_LEAD 2  // steps that one warpgroup is ahead of the other, whose ends it then hides
#endif
#ifndef THERMOE_AHEAD
#define THERMOE_AHEAD 0  // steps by which weights are asked into the L2 cache before they are copied; 0: they are not
#endif
#ifndef THERMOE_ACTIVATION
#define THERMOE_ACTIVATION 0
#endif
#ifndef THERMOE_EIGHT
#define THERMOE_EIGHT 0  // e4m3 instead of bf16
#endif
#ifndef THERMOE_PLANES
#define THERMOE_PLANES 0  // planes of integer codes, which become bf16 operands in registers; 0: no codes
#endif
#ifndef THERMOE_NESTED
#define THERMOE_NESTED 0  // each expert has a precision of its own
#endif

constexpr int TOKENS = THERMOE_TOKENS, STAGES = THERMOE_STAGES, LEAD = THERMOE_LEAD;
constexpr bool EIGHT = THERMOE_EIGHT, NESTED = THERMOE_NESTED;
constexpr int PLANES = THERMOE_PLANES;
constexpr int AHEAD = THERMOE_AHEAD;
constexpr int OCTETS = TOKENS / 8, VALUES = TOKENS / 2;
static_assert(TOKENS % 16 == 0 && TOKENS <= 256 && STAGES >= 2 && LEAD < STAGES);
constexpr int ELEMENT_BYTES = EIGHT ? 1 : 2;
constexpr int STEP_BYTES = 128;  // of a row
constexpr int STEPS_A_STAGE = PLANES ? 2 : 1;  // codes come by chunks of 128 columns
constexpr int CHUNK = 128, CODE_BYTES = 32;    // of a chunk: its columns, and bytes of a row in each part
constexpr int PARTS = PLANES == 3 ? 4 : PLANES;  // the third plane has two
constexpr int MAX_EXPERTS = 512;

// Warps before those that multiply: one for weights, two for tokens, one for the list of tiles.
constexpr int WEIGHT_WARP = 0, LIST_WARP = 3, GATHER_WARPS = 2, GATHER_THREADS = 32 * GATHER_WARPS;
constexpr int MULTIPLY_WARPS = 8, MULTIPLY_START = 32 * 4, THREADS = MULTIPLY_START + 32 * MULTIPLY_WARPS;
static_assert(!(PLANES && EIGHT), "codes meet bf16 tokens");
// Registers of a thread: as launched, where it brings operands, where it multiplies.
constexpr int REGISTERS = 168, BRING_REGISTERS = PLANES ? 40 : 56;
constexpr int MULTIPLY_REGISTERS = (3 * REGISTERS - BRING_REGISTERS) / 16 * 8;
static_assert(4 * BRING_REGISTERS + MULTIPLY_WARPS * MULTIPLY_REGISTERS <= THREADS / 32 * REGISTERS);

enum ActivationKind : int { SWIGLU = 0, GEGLU = 1, SWIGLU_CLAMPED = 2 };
constexpr int ACTIVATION = THERMOE_ACTIVATION;
constexpr int HIDDEN_COLUMNS = 128, OUT_COLUMNS = 256;  // of a tile

struct Problem {
  TensorMap map[2];           // rows of bytes; matrix 1 in groups of 32 rows, cut into two halves of 16
  TensorMap plane[2][3];      // codes: rows of 32 bytes, piece by piece
  TensorMap hidden_map;       // (N, I) what matrix 1 reads, in the order of the plan
  const char* tokens;         // (T, D) what matrix 0 reads; for codes whole chunks, their columns in order of position
  uint16_t* hidden;           // (N, I) bf16, what matrix 0 gives; for codes likewise
  uint16_t* out;              // (N, D) bf16 by slot, what matrix 1 gives
  const int32_t* slots;       // (N) slot of each place
  const int32_t* offsets;     // (E + 1) first place of each expert
  uint32_t* counters;         // COUNTER_WORDS, zero before the first launch; each launch leaves them so
  const uint16_t* scale[2];   // codes: f16, one for each precision, expert, chunk and row
  const int32_t* bits;        // nested codes: (E) the precision at which each expert is read, or null
  const float* bias[2];       // (E, 2 I), (E, D), or null
  const float* row_scale[2];    // e4m3: (E, 2 I), (E, D)
  const float* source_scale[2];  // e4m3: (T), (N)
  int32_t experts, top_k;
  int32_t columns[2];  // D, I
  int32_t parts;       // 1: the first matrix, 2: the second, 3: both
  int32_t lag;         // experts between an expert's first matrix and its second; 0 where parts is not 3
};

// ---- counters in device memory
constexpr int COUNTER_TICKET = 0;  // tiles taken by teams, and one more for each team
constexpr int COUNTER_LEFT = 1;    // warps that gather and wait for nothing any more
constexpr int COUNTER_DONE = 32;   // tiles of each expert's first matrix that are stored
constexpr int COUNTER_WORDS = COUNTER_DONE + MAX_EXPERTS;

// ---- shared memory, addresses in bytes
constexpr uint32_t WEIGHT_BOX = 64 * STEP_BYTES;  // what one product of a warpgroup takes at a time
constexpr int TILE_ROWS = 256;
constexpr uint32_t CODE_BOX = TILE_ROWS / 2 * CODE_BYTES;  // of one part: gate or up rows, or half of the output rows
constexpr uint32_t WEIGHT_BYTES = PLANES ? 2 * PARTS * CODE_BOX : 4 * WEIGHT_BOX;
constexpr uint32_t STEP_TOKENS = TOKENS * STEP_BYTES;
constexpr uint32_t STAGE_BYTES = WEIGHT_BYTES + STEPS_A_STAGE * STEP_TOKENS;
constexpr uint32_t STAGE = SHARED_START;
constexpr int PLACE_BOX_ROWS = 16;  // hidden values of as many places are copied at a time
constexpr uint32_t PLACE_BOX = PLACE_BOX_ROWS * STEP_BYTES;
constexpr uint32_t STAGING_BYTES = 1024;  // of a warp that multiplies: results on their way out
constexpr uint32_t STAGING = STAGE + STAGES * STAGE_BYTES;
constexpr int TILES = 4;  // of the list, known ahead
constexpr uint32_t TILE = STAGING + MULTIPLY_WARPS * STAGING_BYTES;
constexpr uint32_t ROWS = TILE + TILES * 32;  // of each tile known ahead: where the row of each place starts, in pieces
constexpr uint32_t ROWS_BYTES = 4 * TOKENS;
constexpr uint32_t TICKET = ROWS + TILES * ROWS_BYTES;  // in the second block of a team: what the first has taken
constexpr uint32_t BAR_FULL = TICKET + 16;
constexpr uint32_t BAR_EMPTY = BAR_FULL + 8 * STAGES;
constexpr uint32_t BAR_TILE_FULL = BAR_EMPTY + 8 * STAGES;
constexpr uint32_t BAR_TILE_EMPTY = BAR_TILE_FULL + 8 * TILES;
constexpr uint32_t BAR_STORED = BAR_TILE_EMPTY + 8 * TILES;
constexpr uint32_t BAR_TICKET_FULL = BAR_STORED + 8 * TILES;  // used in the second block of a team
constexpr uint32_t BAR_TICKET_EMPTY = BAR_TICKET_FULL + 8;    // used in the first
constexpr uint32_t OFFSETS = BAR_TICKET_EMPTY + 8;
constexpr uint32_t TILES_BEFORE = OFFSETS + 4 * (MAX_EXPERTS + 1);
constexpr uint32_t SHARED_END = TILES_BEFORE + 4 * (MAX_EXPERTS + 1);
static_assert(SHARED_END <= SHARED_START + 227 * 1024, "a block has 227 KiB");

enum NamedBarrier : int { ALL_THREADS = 0, LEADER_AHEAD = 1 };

// A position in a ring: every role goes round it by itself.
template <int SIZE>
struct Turn {
  int at = 0;
  uint32_t parity = 0;
  DEV void next() {
    if (++at == SIZE) at = 0, parity ^= 1;
  }
};

struct Tile {
  int matrix;  // -1 past the last tile
  int expert;
  int first;   // place
  int count;   // places; 0 where the other block of a team has all
  int block;   // of rows
};

DEV void write_tile(int at, const Tile& t) {
  sts128(TILE + 32 * at, {static_cast<uint32_t>(t.matrix), static_cast<uint32_t>(t.expert),
                          static_cast<uint32_t>(t.first), static_cast<uint32_t>(t.count)});
  sts32(TILE + 32 * at + 16, t.block);
}

DEV Tile read_tile(int at) {
  uint32_t r[4];
  lds128(TILE + 32 * at, r);
  return {static_cast<int>(r[0]), static_cast<int>(r[1]), static_cast<int>(r[2]), static_cast<int>(r[3]),
          static_cast<int>(lds32(TILE + 32 * at + 16))};
}

DEV int ceil_div(int a, int b) { return (a + b - 1) / b; }
// Of what a matrix reads, as it lies in memory.
DEV int source_columns(const Problem& p, int matrix) {
  return PLANES ? ceil_div(p.columns[matrix], CHUNK) * CHUNK : p.columns[matrix];
}
DEV int stages_of(const Problem& p, int matrix) {
  return ceil_div(source_columns(p, matrix) * ELEMENT_BYTES, STEPS_A_STAGE * STEP_BYTES);
}

// Codes: the column of its chunk that stands at a position of the products' order (codes.cuh says why).
DEV int column_at(int position) {
  return (position & 0x20) << 1 | (position & 0x40) >> 1 | (position & 6) << 2 | (position & 0x10) >> 2 |
         (position & 1) << 1 | (position & 8) >> 3;
}
