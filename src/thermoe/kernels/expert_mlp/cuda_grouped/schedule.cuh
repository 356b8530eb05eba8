// Which tile comes when: a list that every block knows and takes from in turn.
//
// At step s of the list come the tiles of expert s at the first matrix, then those of expert s - lag at the second. A
// tile of the second matrix waits for tiles that stand before it in the list alone, so the first that is unfinished can
// always go on. Tiles that share weights are neighbours. What is said here of a tile holds for a team of blocks: they
// take one place in the list together, and each a tile of it with other tokens.
#pragma once

#include "layout.cuh"

DEV int offset_of(int expert) { return static_cast<int>(lds32(OFFSETS + 4 * expert)); }

// Every block by itself: offsets into shared memory, then the tiles of all experts before each.
DEV void load_offsets(const Problem& p, int thread) {
  for (int e = thread; e <= p.experts; e += THREADS) sts32(OFFSETS + 4 * e, p.offsets[e]);
}

DEV void count_tiles(const Problem& p, int lane) {  // one warp
  uint32_t before = 0;
  if (lane == 0) sts32(TILES_BEFORE, 0);
  for (int base = 0; base < p.experts; base += 32) {
    const int e = base + lane;
    uint32_t sum = e < p.experts ? ceil_div(offset_of(e + 1) - offset_of(e), TEAM * TOKENS) : 0;
    for (int by = 1; by < 32; by *= 2) {
      const uint32_t lower = shuffle_up(sum, by);
      if (lane >= by) sum += lower;
    }
    if (e < p.experts) sts32(TILES_BEFORE + 4 * (e + 1), before + sum);
    before += shuffle_from(sum, 31);
  }
  sync_warp();
}

struct Schedule {
  const Problem& p;
  int blocks[2];  // of rows of an expert; 0 where a matrix is left out

  DEV explicit Schedule(const Problem& problem) : p(problem) {
    blocks[0] = p.parts & 1 ? ceil_div(p.columns[1], HIDDEN_COLUMNS) : 0;
    blocks[1] = p.parts & 2 ? ceil_div(p.columns[0], OUT_COLUMNS) : 0;
  }
  DEV int clamped(int expert) const { return expert < 0 ? 0 : expert > p.experts ? p.experts : expert; }
  DEV int tiles_before(int expert) const { return static_cast<int>(lds32(TILES_BEFORE + 4 * clamped(expert))); }
  DEV int before(int step) const { return tiles_before(step) * blocks[0] + tiles_before(step - p.lag) * blocks[1]; }
  DEV int total() const { return before(p.experts + p.lag); }

  DEV Tile tile(int ticket) const {
    if (ticket >= total()) return {-1, 0, 0, 0, 0};
    int low = 0, high = p.experts + p.lag;  // before(low) <= ticket < before(high)
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (before(middle) <= ticket ? low : high) = middle;
    }
    int left = ticket - before(low);
    const int firsts = (tiles_before(low + 1) - tiles_before(low)) * blocks[0];
    const int matrix = left >= firsts, expert = matrix ? low - p.lag : low;
    if (matrix) left -= firsts;
    const int start = offset_of(expert), count = offset_of(expert + 1) - start;
    const int turns = ceil_div(count, TEAM * TOKENS), width = ceil_div(ceil_div(count, TEAM * turns), 8) * 8;
    const int first = (left % turns * TEAM + team_rank()) * width, rest = count - first;
    return {matrix, expert, rest > 0 ? start + first : start, rest < 0 ? 0 : rest < width ? rest : width, left / turns};
  }
  // What COUNTER_DONE of an expert reaches.
  DEV uint32_t stored_tiles(int expert) const {
    return (tiles_before(expert + 1) - tiles_before(expert)) * blocks[0] * TEAM;
  }
};
