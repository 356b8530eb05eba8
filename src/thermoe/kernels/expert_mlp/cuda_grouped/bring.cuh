// The warps that bring operands: one starts the copies of weights, two gather rows of tokens; hidden values are
// neighbours in the order of the plan and come by the copy engine.
#pragma once

#include "schedule.cuh"

// This block's share of a step's weights: copied, or only asked into the L2 cache.
template <bool COPIED>
DEV void bring_boxes(const Problem& p, const Tile& tile, int step, uint32_t to, uint32_t full) {
  const TensorMap* map = &p.map[tile.matrix];
  const int byte = step * STEP_BYTES, gate = tile.expert * 2 * p.columns[1] + tile.block * HIDDEN_COLUMNS;
  const int start = (tile.expert * p.columns[0] + tile.block * OUT_COLUMNS) / 32;
#pragma unroll
  for (int i = 0; i < 4 / TEAM; ++i) {
    const int box = 4 / TEAM * team_rank() + i, wide = box / 2, second = box % 2;  // two of each warpgroup
    const int row = gate + 64 * wide + second * p.columns[1], group = start + 4 * wide;
    if constexpr (COPIED) {
      if (tile.matrix == 0)
        copy_box(to + box * WEIGHT_BOX, map, byte, row, full);
      else
        copy_box(to + box * WEIGHT_BOX, map, byte, second, group, full);
    } else {
      tile.matrix == 0 ? prefetch_box(map, byte, row) : prefetch_box(map, byte, second, group);
    }
  }
}

// Codes of one chunk, which lie in one piece for each part: of the gate (or first) rows, then of the up (or other) rows.
template <bool COPIED>
DEV void bring_codes(const Problem& p, const Tile& tile, int chunk, uint32_t to, uint32_t full) {
  const int width = p.columns[1 - tile.matrix], rows = tile.matrix ? width : 2 * width;
  const int chunks = ceil_div(p.columns[tile.matrix], CHUNK);
  const int first = tile.block * (tile.matrix ? OUT_COLUMNS : HIDDEN_COLUMNS);
#pragma unroll
  for (int i = 0; i < 2 / TEAM; ++i) {
    const int half = TEAM == 1 ? i : team_rank(), at = first + half * (tile.matrix ? TILE_ROWS / 2 : width);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      const TensorMap* map = &p.plane[tile.matrix][part < 2 ? part : 2];
      const int piece = part < 2 ? tile.expert * chunks + chunk : 2 * (tile.expert * chunks + chunk) + part - 2;
      const int row = piece * rows + at;
      if constexpr (COPIED)
        copy_codes(to + (2 * part + half) * CODE_BOX, map, row, full);
      else
        prefetch_codes(map, row);
    }
  }
}

template <bool COPIED>
DEV void bring_stage(const Problem& p, const Tile& tile, int stage, uint32_t to, uint32_t full) {
  if constexpr (PLANES)
    bring_codes<COPIED>(p, tile, stage, to, full);
  else
    bring_boxes<COPIED>(p, tile, stage, to, full);
}

DEV void ask_ahead(const Problem& p, const Tile& tile, const Turn<TILES>& place, int step) {
  const int steps = stages_of(p, tile.matrix), ahead = step + AHEAD;
  if (ahead < steps) return bring_stage<false>(p, tile, ahead, 0, 0);
  Turn<TILES> following = place;
  following.next();
  barrier_wait(BAR_TILE_FULL + 8 * following.at, following.parity);
  const Tile next = read_tile(following.at);
  if (next.matrix >= 0 && ahead - steps < stages_of(p, next.matrix))
    bring_stage<false>(p, next, ahead - steps, 0, 0);
}

DEV void bring_weights(const Problem& p) {  // one thread
  Turn<STAGES> turn;
  for (Turn<TILES> place;; place.next()) {
    barrier_wait(BAR_TILE_FULL + 8 * place.at, place.parity);
    const Tile tile = read_tile(place.at);
    if (tile.matrix < 0) return;
    const int steps = stages_of(p, tile.matrix);
    for (int step = 0; step < steps; ++step, turn.next()) {
      const uint32_t full = BAR_FULL + 8 * turn.at;
      barrier_wait(BAR_EMPTY + 8 * turn.at, turn.parity ^ 1);
      barrier_expect(full, WEIGHT_BYTES);
      bring_stage<true>(p, tile, step, STAGE + turn.at * STAGE_BYTES, full);
      if constexpr (AHEAD > 0) ask_ahead(p, tile, place, step);
    }
    barrier_arrive(BAR_TILE_EMPTY + 8 * place.at);
  }
}

DEV void gather_rows(const Problem& p, const Tile& tile, int at, Turn<STAGES>& turn, int thread) {
  const int row = thread / 8, piece = thread % 8;  // of 8 rows by 128 bytes
  const int row_bytes = source_columns(p, 0) * ELEMENT_BYTES, stages = stages_of(p, 0);
  const uint32_t rows = ROWS + ROWS_BYTES * at + 4 * row;
  uint32_t from[PLANES ? 1 : OCTETS];  // where they start, in pieces; beside codes there are no registers for it
#pragma unroll
  for (int i = 0; i < (PLANES ? 0 : OCTETS); ++i)
    if (16 * (i / 2) < tile.count) from[i] = lds32(rows + 32 * i);
  const auto start_of = [&](int i) { return PLANES ? lds32(rows + 32 * i) : from[i]; };
  const char* source = p.tokens + 16 * piece;
  const uint32_t swizzled = WEIGHT_BYTES + row * STEP_BYTES + ((piece ^ row) << 4);
  for (int stage = 0; stage < stages; ++stage, turn.next()) {
    barrier_wait(BAR_EMPTY + 8 * turn.at, turn.parity ^ 1);
#pragma unroll
    for (int step = 0; step < STEPS_A_STAGE; ++step, source += STEP_BYTES) {
      const uint32_t to = STAGE + turn.at * STAGE_BYTES + step * STEP_TOKENS + swizzled;
      const bool inside = PLANES || stage * STEP_BYTES + 16 * piece < row_bytes;
#pragma unroll
      for (int i = 0; i < OCTETS; i += 2)
        if (8 * i < tile.count) {
          copy_piece(to + 8 * STEP_BYTES * i, source, start_of(i), inside);
          copy_piece(to + 8 * STEP_BYTES * (i + 1), source, start_of(i + 1), inside);
        }
    }
    copies_arrive(BAR_FULL + 8 * turn.at);
  }
}

// One thread of each warp starts every second copy and arrives for all; the others go round the ring with it.
DEV void bring_hidden(const Problem& p, const Tile& tile, Turn<STAGES>& turn, int thread) {
  const int stages = stages_of(p, 1), boxes = ceil_div(tile.count, PLACE_BOX_ROWS);
  const int warp = thread / 32, share = (boxes + GATHER_WARPS - 1 - warp) / GATHER_WARPS;
  const bool first_lane = thread % 32 == 0;
  if (first_lane && p.parts == 3) {
    const uint32_t all = Schedule(p).stored_tiles(tile.expert);
    while (load_acquire(p.counters + COUNTER_DONE + tile.expert) != all) pause(40);
    fence_async_global();
  }
  for (int stage = 0; stage < stages; ++stage, turn.next()) {
    const uint32_t to = STAGE + turn.at * STAGE_BYTES + WEIGHT_BYTES, full = BAR_FULL + 8 * turn.at;
    barrier_wait(BAR_EMPTY + 8 * turn.at, turn.parity ^ 1);
    if (first_lane) {
      barrier_arrive(full, 31);
      barrier_expect(full, STEPS_A_STAGE * share * PLACE_BOX);
      for (int box = warp; box < boxes; box += GATHER_WARPS)
#pragma unroll
        for (int step = 0; step < STEPS_A_STAGE; ++step)
          copy_alone(to + step * STEP_TOKENS + box * PLACE_BOX, &p.hidden_map,
                     (STEPS_A_STAGE * stage + step) * STEP_BYTES, tile.first + PLACE_BOX_ROWS * box, full);
    }
    sync_warp();
  }
}

// Whoever comes last knows that nobody looks at a counter any more.
DEV void leave(const Problem& p) {
  if (add_acquire_release(p.counters + COUNTER_LEFT, 1) != num_blocks() * GATHER_WARPS - 1) return;
  p.counters[COUNTER_TICKET] = 0;
  p.counters[COUNTER_LEFT] = 0;
  for (int e = 0; e < p.experts; ++e) p.counters[COUNTER_DONE + e] = 0;
}

DEV void gather_tiles(const Problem& p, int thread) {
  Turn<STAGES> turn;
  for (Turn<TILES> place;; place.next()) {
    barrier_wait(BAR_TILE_FULL + 8 * place.at, place.parity);
    const Tile tile = read_tile(place.at);
    if (tile.matrix < 0) break;
    if (tile.matrix == 0)
      gather_rows(p, tile, place.at, turn, thread);
    else
      bring_hidden(p, tile, turn, thread);
    sync_warp();
    if (thread % 32 == 0) barrier_arrive(BAR_TILE_EMPTY + 8 * place.at);
  }
  if (thread % 32 == 0) leave(p);
}
