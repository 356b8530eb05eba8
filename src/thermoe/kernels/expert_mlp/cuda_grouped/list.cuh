// The warp that knows which tiles come, two ahead, and tells other blocks what has been stored.
#pragma once

#include "schedule.cuh"

constexpr int TILE_READERS = GATHER_WARPS + 2;  // arrivals before a place of the list is used again

// The next ticket of the team: its first block takes it and lays it into the memory of the second.
DEV uint32_t next_ticket(const Problem& p, Turn<1>& turn, int lane) {
  uint32_t ticket = 0;
  if constexpr (TEAM == 1) {
    if (lane == 0) ticket = take_ticket(p.counters + COUNTER_TICKET);
  } else if (team_rank() == 0) {
    if (lane == 0) {
      ticket = take_ticket(p.counters + COUNTER_TICKET);
      barrier_wait_cluster(BAR_TICKET_EMPTY, turn.parity ^ 1);
      sts32_in(TICKET, 1, ticket);
      barrier_release_in(BAR_TICKET_FULL, 1);
    }
  } else if (lane == 0) {
    barrier_wait_cluster(BAR_TICKET_FULL, turn.parity);
    ticket = lds32(TICKET);
    barrier_release_in(BAR_TICKET_EMPTY, 0);
  }
  turn.next();
  return shuffle_from(ticket, 0);
}

// Where the tokens of a tile start, in pieces of 16 bytes; places past the last repeat it.
DEV void list_rows(const Problem& p, const Tile& tile, int at, int lane) {
  const uint32_t pitch = source_columns(p, 0) * ELEMENT_BYTES / 16;
  for (int place = lane; place < ceil_div(tile.count, 16) * 16; place += 32) {
    const int slot = p.slots[tile.first + (place < tile.count ? place : tile.count - 1)];
    sts32(ROWS + ROWS_BYTES * at + 4 * place, static_cast<uint32_t>(slot) / static_cast<uint32_t>(p.top_k) * pitch);
  }
}

DEV void tell_stored(const Problem& p, Turn<TILES>& told, int lane) {
  barrier_wait(BAR_STORED + 8 * told.at, told.parity);
  if (lane == 0) {
    const Tile tile = read_tile(told.at);
    if (tile.matrix == 0 && p.parts == 3) {
      fence_async_global();  // others read it with the copy engine
      fence_and_add(p.counters + COUNTER_DONE + tile.expert, 1);
    }
    barrier_arrive(BAR_TILE_EMPTY + 8 * told.at);
  }
  told.next();
}

DEV void list_tiles(const Problem& p, int lane) {
  const Schedule schedule(p);
  Turn<1> turn;
  Turn<TILES> place, told;
  for (int number = 0;; ++number, place.next()) {
    const Tile tile = schedule.tile(static_cast<int>(next_ticket(p, turn, lane)));
    barrier_wait(BAR_TILE_EMPTY + 8 * place.at, place.parity ^ 1);
    if (tile.matrix == 0) list_rows(p, tile, place.at, lane);
    if (lane == 0) write_tile(place.at, tile);
    sync_warp();
    if (lane == 0) barrier_arrive(BAR_TILE_FULL + 8 * place.at);
    if (number >= 2) tell_stored(p, told, lane);
    if (tile.matrix < 0) break;
  }
  while (told.at != place.at) tell_stored(p, told, lane);
}
