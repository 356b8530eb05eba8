// The warps that bring operands: one takes tiles and starts the copies of weights, two gather rows of tokens, one tells
// other blocks what has been stored.
#pragma once

#include "schedule.cuh"

DEV void bring_weights(const Problem& p, const Tile& tile, Turn<STAGES>& turn) {
  const int steps = steps_of(p, tile.matrix);
  const TensorMap* map = &p.map[tile.matrix];
  const int gate = tile.expert * 2 * p.columns[1] + tile.block * HIDDEN_COLUMNS;
  const int group = (tile.expert * p.columns[0] + tile.block * OUT_COLUMNS) / 32;
  for (int step = 0; step < steps; ++step, turn.next()) {
    const uint32_t to = STAGE + turn.at * STAGE_BYTES, full = BAR_FULL + 8 * turn.at;
    barrier_wait(BAR_EMPTY + 8 * turn.at, turn.parity ^ 1);
    barrier_expect(full, WEIGHT_BYTES);
    for (int box = 0; box < 4; ++box) {  // two of each warpgroup
      const int wide = box / 2, second = box % 2;
      if (tile.matrix == 0)
        copy_box(to + box * WEIGHT_BOX, map, step * STEP_BYTES, gate + 64 * wide + second * p.columns[1], full);
      else
        copy_box(to + box * WEIGHT_BOX, map, step * STEP_BYTES, second, group + 4 * wide, full);
    }
  }
}

DEV void take_tiles(const Problem& p) {  // one thread
  const Schedule schedule(p);
  Turn<STAGES> turn;
  Turn<TILES> place;
  uint32_t ticket = take_ticket(p.counters + COUNTER_TICKET);
  for (;; place.next()) {
    const Tile tile = schedule.tile(static_cast<int>(ticket));
    if (tile.matrix == 1 && p.parts == 3) {
      const uint32_t all = schedule.stored_tiles(tile.expert);
      while (load_acquire(p.counters + COUNTER_DONE + tile.expert) != all) pause();
    }
    barrier_wait(BAR_TILE_EMPTY + 8 * place.at, place.parity ^ 1);
    write_tile(place.at, tile);
    barrier_arrive(BAR_TILE_FULL + 8 * place.at);
    if (tile.matrix < 0) break;
    ticket = take_ticket(p.counters + COUNTER_TICKET);
    bring_weights(p, tile, turn);
  }
  // Whoever takes the last ticket knows that no block waits for a counter any more.
  if (ticket != static_cast<uint32_t>(schedule.total()) + num_blocks() - 1) return;
  p.counters[COUNTER_TICKET] = 0;
  for (int e = 0; e < p.experts; ++e) p.counters[COUNTER_DONE + e] = 0;
}

DEV void gather_rows(const Problem& p, const Tile& tile, Turn<STAGES>& turn, int thread) {
  const int row = thread / 8, piece = thread % 8;  // of 8 rows by 128 bytes
  const int row_bytes = p.columns[tile.matrix] * ELEMENT_BYTES, steps = steps_of(p, tile.matrix);
  const uint32_t pitch = row_bytes / 16;
  uint32_t from[OCTETS];  // in pieces
#pragma unroll
  for (int i = 0; i < OCTETS; ++i) {
    if (16 * (i / 2) >= tile.count) continue;
    const int last = tile.count - 1, place = tile.first + (8 * i + row < last ? 8 * i + row : last);
    from[i] = (tile.matrix == 0 ? static_cast<uint32_t>(p.slots[place]) / static_cast<uint32_t>(p.top_k) : place) * pitch;
  }
  const char* source = p.source[tile.matrix] + 16 * piece;
  const uint32_t swizzled = WEIGHT_BYTES + row * STEP_BYTES + ((piece ^ row) << 4);
  for (int step = 0; step < steps; ++step, turn.next(), source += STEP_BYTES) {
    const uint32_t to = STAGE + turn.at * STAGE_BYTES + swizzled;
    const bool inside = step * STEP_BYTES + 16 * piece < row_bytes;
    barrier_wait(BAR_EMPTY + 8 * turn.at, turn.parity ^ 1);
#pragma unroll
    for (int i = 0; i < OCTETS; i += 2)  // rows past the last place repeat it
      if (8 * i < tile.count) {
        copy_piece(to + 8 * STEP_BYTES * i, source, from[i], inside);
        copy_piece(to + 8 * STEP_BYTES * (i + 1), source, from[i + 1], inside);
      }
    copy_piece_arrive(BAR_FULL + 8 * turn.at);
  }
}

DEV void gather_tiles(const Problem& p, int thread) {
  Turn<STAGES> turn;
  for (Turn<TILES> place;; place.next()) {
    barrier_wait(BAR_TILE_FULL + 8 * place.at, place.parity);
    const Tile tile = read_tile(place.at);
    sync_warp();
    if (thread % 32 == 0) barrier_arrive(BAR_TILE_EMPTY + 8 * place.at);
    if (tile.matrix < 0) return;
    gather_rows(p, tile, turn, thread);
  }
}

DEV void tell_stored(const Problem& p) {  // one thread
  for (Turn<TILES> place;; place.next()) {
    barrier_wait(BAR_TILE_FULL + 8 * place.at, place.parity);
    const Tile tile = read_tile(place.at);
    if (tile.matrix < 0) return;
    barrier_wait(BAR_STORED + 8 * place.at, place.parity);
    if (tile.matrix == 0 && p.parts == 3) add_release(p.counters + COUNTER_DONE + tile.expert, 1);
    barrier_arrive(BAR_TILE_EMPTY + 8 * place.at);
  }
}

constexpr int TILE_READERS = GATHER_WARPS + 1;  // arrivals before a place of the list is used again
