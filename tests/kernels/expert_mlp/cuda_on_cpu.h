// The decode kernel's primitives on a CPU: every thread of every block is a coroutine, and whatever a thread may wait
// for is a condition. Copies land late, at random, and spoil their destination when they start: a missing wait, a slot
// freed too early or a circle of waits shows as a wrong result or as a deadlock, not as luck.
#pragma once

#include "machine_memory.h"
#include "machine_warps.h"

DEV void copy_tile(uint32_t to, const TensorMap* map, int byte, int row, int expert, uint32_t bar, uint64_t) {
  const int box = 128, high = 32 / static_cast<int>(map->halves);
  if (map->box_bytes != box) cpu::fail("a map of another box", to);
  if (to % 1024 || row < 0 || row + high > map->rows || expert < 0 || expert >= map->experts || byte < 0)
    cpu::fail("bad copy", to);
  cpu::expect_multiple(map->base, 16, "a tensor that is not aligned");
  if (map->row_bytes % 16) cpu::fail("rows of a tensor that are not aligned", to);
  uint8_t* shared = cpu::self().block->shared.data();
  cpu::at(to, 16), cpu::at(to + 32 * box - 16, 16);
  std::memset(shared + to, 0xff, 32 * box);
  cpu::Barrier& b = barrier_at(bar);
  cpu::launch_copy([=, &b] {
    for (int r = 0; r < 32; ++r)
      for (int i = 0; i < box; i += 16) {
        const int64_t from = (expert * map->halves + r / high) * map->rows + row + r % high;
        uint32_t place = to + r * box + i;
        place ^= (place >> 7 & 7) << 4;
        for (int j = 0; j < 16; ++j)
          shared[place + j] = byte + i + j < map->row_bytes ? map->base[from * map->row_bytes + byte + i + j] : 0;
      }
    b.bytes -= 32 * box;
    b.settle();
  });
}

// `rows` holds the bytes of an element here, `row_bytes` those of a half's rows; then follow pieces, and those of a copy.
DEV void copy_rows(uint32_t to, const TensorMap* map, int at, int piece, int expert, uint32_t bar, uint64_t) {
  const int64_t run = map->box_bytes, start = at * map->rows, pieces = map->unused[0], copied = map->unused[1];
  if (to % 128 || at < 0 || start % 16 || start + run > map->row_bytes || expert < 0 || expert >= map->experts || piece < 0)
    cpu::fail("bad copy of rows", to);
  cpu::expect_multiple(map->base, 16, "a tensor that is not aligned");
  if (map->row_bytes % 16 || run % 16) cpu::fail("rows of a tensor that are not aligned", to);
  const int64_t bytes = copied * map->halves * run;
  uint8_t* shared = cpu::self().block->shared.data();
  cpu::at(to, 16), cpu::at(to + bytes - 16, 16);
  std::memset(shared + to, 0xff, bytes);
  cpu::Barrier& b = barrier_at(bar);
  cpu::launch_copy([=, &b] {
    for (int64_t i = 0; i < copied; ++i)
      for (int64_t half = 0; half < map->halves; ++half) {
        uint8_t* place = shared + to + (i * map->halves + half) * run;
        const int64_t from = ((expert * pieces + piece + i) * map->halves + half) * map->row_bytes + start;
        if (piece + i < pieces) std::memcpy(place, map->base + from, run);
        else std::memset(place, 0, run);
      }
    b.bytes -= bytes;
    b.settle();
  });
}

DEV void load_fresh(const void* from, uint32_t (&r)[4]) {
  if (!cpu::self().waited) cpu::fail("reads before the last launch ended", 0);
  if (reinterpret_cast<uintptr_t>(from) % 16) cpu::fail("load not aligned in global memory", 0);
  std::memcpy(r, from, 16);
}
DEV void wait_for_launch_before() { cpu::self().waited = true; }
DEV void let_next_launch_begin() {
  if (!cpu::self().waited) cpu::fail("lets the next launch begin before the last one ended", 0);
}
DEV const uint32_t* counted(const uint32_t* word) {  // what the launch before writes too
  if (!cpu::self().waited) cpu::fail("looks at counters before the last launch ended", 0);
  return word;
}
DEV uint32_t load_acquire(const uint32_t* from) { return *counted(from); }
DEV uint32_t load_steady(const uint32_t* from) { return *counted(from); }
DEV void add_release(uint32_t* to, uint32_t v) { counted(to), *to += v; }

DEV void mma_bytes(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  cpu::Warp& warp = cpu::warp();
  const int lane = cpu::self().thread % 32;
  for (int i = 0; i < 4; ++i) warp.in[lane][i] = static_cast<uint32_t>(d[i]), warp.in[lane][4 + i] = a[i];
  warp.in[lane][8] = b0, warp.in[lane][9] = b1;
  cpu::meet(warp.group, 32, [&warp] {
    int left[16][32], right[32][8];
    for (int i = 0; i < 32; ++i)
      for (int byte = 0; byte < 4; ++byte) {
        const int g = i / 4, k = 4 * (i % 4) + byte;
        const auto value = [&](int word) { return warp.in[i][word] >> 8 * byte & 0xff; };
        left[g][k] = value(4), left[g + 8][k] = value(5), left[g][k + 16] = value(6), left[g + 8][k + 16] = value(7);
        right[k][g] = static_cast<int8_t>(value(8)), right[k + 16][g] = static_cast<int8_t>(value(9));
      }
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 4; ++j) {
        int sum = static_cast<int>(warp.in[i][j]);
        for (int k = 0; k < 32; ++k) sum += left[i / 4 + 8 * (j / 2)][k] * right[k][2 * (i % 4) + j % 2];
        warp.out[i][j] = static_cast<uint32_t>(sum);
      }
  });
  for (int i = 0; i < 4; ++i) d[i] = static_cast<int32_t>(warp.out[lane][i]);
}
DEV void mma_bytes_from(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int32_t from) {
  for (int32_t& v : d) v = from;
  mma_bytes(d, a, b0, b1);
}
