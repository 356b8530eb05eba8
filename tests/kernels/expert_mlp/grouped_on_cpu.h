// The grouped kernel's machine on a CPU: see machine.h. Copies land late and spoil their destination when
// they start; matrix products read shared memory no earlier than they are waited for, so a stage that is given back or
// filled again too early shows as a wrong result.
#pragma once

#include "team.cuh"

#include "machine_memory.h"
#include "machine_warps.h"

DEV void store_columns(uint32_t at, const uint32_t (&r)[4]) {
  cpu::Warp& warp = cpu::warp();
  const int lane = cpu::self().thread % 32;
  std::memcpy(warp.in[lane], r, 16);
  warp.in[lane][4] = at;
  cpu::meet(warp.group, 32, [&warp] {
    for (int named = 0; named < 32; ++named)
      for (int row = 0; row < 8; ++row) {
        const int column = named % 8;
        const uint16_t v = warp.in[4 * row + column / 2][named / 8] >> 16 * (column % 2);
        std::memcpy(cpu::at(warp.in[named][4], 16) + 2 * row, &v, 2);
      }
  });
}

DEV int team_rank() { return cpu::self().index % TEAM; }
DEV void sync_team() {
  cpu::meet(cluster_group(), TEAM * cpu::machine->threads);
}
DEV void team_arrive(uint32_t bar, int rank) { barrier_arrive_in(bar, rank); }
DEV void sts32_in(uint32_t at, int rank, uint32_t v) { std::memcpy(cpu::at(at, 4, block_of_cluster(rank)), &v, 4); }

struct Matrix {  // what a test lays into a tensor map
  const uint8_t* base;
  int64_t row_bytes, rows, halves;
};
constexpr uint32_t BOX_BYTES = 128, BOX_ROWS = 64, PLACES = 16;
DEV Matrix matrix_of(const TensorMap* map) {
  Matrix matrix;
  cpu::expect_multiple(map, alignof(TensorMap), "a map of a tensor that is not aligned");
  std::memcpy(&matrix, map, sizeof(matrix));
  cpu::expect_multiple(matrix.base, 16, "a tensor that is not aligned");
  if (matrix.row_bytes % 16) cpu::fail("rows of a tensor that are not aligned", 0);
  return matrix;
}
DEV void copy_rows(cpu::Block& block, uint32_t to, const TensorMap* map, int byte, uint32_t rows,
                   const std::function<int64_t(int)>& row_of, uint32_t bar) {
  const Matrix matrix = matrix_of(map);
  if (to % 1024 || byte < 0) cpu::fail("bad copy", to);
  uint8_t* shared = block.shared.data();
  cpu::at(to + rows * BOX_BYTES - 16, 16);
  std::memset(shared + to, 0xff, rows * BOX_BYTES);
  cpu::Barrier& b = barrier_of(block, bar);
  cpu::launch_copy([=, &block, &b] {
    if (block.left) return cpu::complain("a copy landed in a block that has left", to);
    for (uint32_t r = 0; r < rows; ++r)
      for (uint32_t i = 0; i < BOX_BYTES; ++i) {
        const int64_t from = row_of(r);
        const bool inside = from >= 0 && from < matrix.rows && byte + i < matrix.row_bytes;
        uint32_t place = to + r * BOX_BYTES + i;
        place ^= (place >> 7 & 7) << 4;
        shared[place] = inside ? matrix.base[from * matrix.row_bytes + byte + i] : 0;
      }
    b.bytes -= rows * BOX_BYTES;
    b.settle();
  });
}
DEV void copy_alone(uint32_t to, const TensorMap* map, int byte, int row, uint32_t bar) {
  copy_rows(*cpu::self().block, to, map, byte, PLACES, [row](int r) { return row + r; }, bar);
}
DEV void copy_box(uint32_t to, const TensorMap* map, int byte, int row, uint32_t bar) {
  for (int i = 0; i < TEAM; ++i) copy_rows(block_of_cluster(i), to, map, byte, BOX_ROWS, [row](int r) { return row + r; }, bar);
}
DEV void copy_box(uint32_t to, const TensorMap* map, int byte, int half, int group, uint32_t bar) {
  const auto row_of = [half, group](int r) { return 32 * (group + r / 16) + 16 * half + r % 16; };
  for (int i = 0; i < TEAM; ++i) copy_rows(block_of_cluster(i), to, map, byte, BOX_ROWS, row_of, bar);
}
DEV void copy_codes(uint32_t to, const TensorMap* map, int row, uint32_t bar) {
  constexpr uint32_t ROWS = 128, BYTES = 32;
  const Matrix matrix = matrix_of(map);
  if (to % 128 || row < 0 || matrix.row_bytes != BYTES) cpu::fail("bad copy of codes", to);
  for (int i = 0; i < TEAM; ++i) {
    cpu::Block& block = block_of_cluster(i);
    uint8_t* shared = block.shared.data();
    cpu::at(to + ROWS * BYTES - 16, 16);
    std::memset(shared + to, 0xff, ROWS * BYTES);
    cpu::Barrier& b = barrier_of(block, bar);
    cpu::launch_copy([=, &block, &b] {
      if (block.left) return cpu::complain("codes landed in a block that has left", to);
      for (uint32_t r = 0; r < ROWS; ++r) {
        const bool inside = row + r < matrix.rows;
        if (inside) std::memcpy(shared + to + r * BYTES, matrix.base + (row + r) * BYTES, BYTES);
        else std::memset(shared + to + r * BYTES, 0, BYTES);
      }
      b.bytes -= ROWS * BYTES;
      b.settle();
    });
  }
}
DEV void prefetch_codes(const TensorMap*, int) {}
DEV void prefetch_box(const TensorMap*, int, int) {}
DEV void prefetch_box(const TensorMap*, int, int, int) {}

// ---- matrix products: each thread computes the sums that it holds, when it waits for them
DEV uint64_t operand(uint32_t at) {
  if (at % 16) cpu::fail("operand not aligned in shared memory", at);
  return at / 16;
}
namespace cpu {
inline std::unordered_map<const Fiber*, std::deque<std::vector<std::function<void()>>>> products;
inline float e4m3(uint8_t v) {
  const int exponent = v >> 3 & 15, mantissa = v & 7;
  const float size = exponent ? std::ldexp(8.f + mantissa, exponent - 10) : std::ldexp(float(mantissa), -9);
  return (v & 0x7f) == 0x7f ? NAN : v & 0x80 ? -size : size;
}
inline float element(uint64_t start, int row, int k, bool eight) {
  uint32_t place = static_cast<uint32_t>(start) * 16 + row / 8 * 1024 + row % 8 * 128 + k * (eight ? 1 : 2);
  place ^= (place >> 7 & 7) << 4;
  if (eight) return e4m3(*at(place, 1));
  uint16_t v;
  std::memcpy(&v, at(place, 2), 2);
  return from_bf16(v);
}
}  // namespace cpu
DEV void products_open() { cpu::products[&cpu::self()].emplace_back(); }
DEV void products_close() {}
DEV void stays_behind(float&) {}
template <int LEFT>
void products_wait() {
  auto& groups = cpu::products[&cpu::self()];
  for (; groups.size() > LEFT; groups.pop_front())
    for (const auto& product : groups.front()) product();
  cpu::meet(cpu::warp().group, 32);  // no lane goes on before all have read
}
template <bool EIGHT_BITS>
void add_product(float* d, uint64_t a, uint64_t b, int keep, int width) {
  const int thread = cpu::self().thread;
  const auto product = [=] {
    for (int i = 0; i < width / 2; ++i) {
      const int row = thread / 32 % 4 * 16 + thread % 32 / 4 + 8 * (i % 4 / 2), column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      float sum = keep ? d[i] : 0.0f;
      for (int k = 0; k < (EIGHT_BITS ? 32 : 16); ++k)
        sum += cpu::element(a, row, k, EIGHT_BITS) * cpu::element(b, column, k, EIGHT_BITS);
      d[i] = sum;
    }
  };
  cpu::products[&cpu::self()].back().push_back(product);
}
// The left side from registers, which may not change before the product is waited for.
DEV void add_product(float* d, const uint32_t (&a)[4], uint64_t b, int keep, int width) {
  cpu::Warp& warp = cpu::warp();
  const int lane = cpu::self().thread % 32;
  std::memcpy(warp.in[lane], a, 16);
  std::vector<float> left(32);  // 16 positions of row r, then of row r + 8
  cpu::meet(warp.group, 32);
  for (int k = 0; k < 32; ++k) {
    const int held = k / 16 + 2 * (k % 16 / 8);
    left[k] = from_bf16(warp.in[lane / 4 * 4 + k % 8 / 2][held] >> 16 * (k % 2) & 0xffff);
  }
  cpu::meet(warp.group, 32);
  const std::vector<uint32_t> kept(a, a + 4);
  const auto product = [=, &a] {
    if (!std::equal(kept.begin(), kept.end(), a)) cpu::fail("an operand changed under a product", lane);
    for (int i = 0; i < width / 2; ++i) {
      const int lower = i % 4 / 2, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float sum = keep ? d[i] : 0.0f;
      for (int k = 0; k < 16; ++k) sum += left[16 * lower + k] * cpu::element(b, column, k, false);
      d[i] = sum;
    }
  };
  cpu::products[&cpu::self()].back().push_back(product);
}

DEV uint32_t load_acquire(const uint32_t* from) { return *from; }
DEV void fence_and_add(uint32_t* to, uint32_t v) { *to += v; }
DEV uint32_t add_acquire_release(uint32_t* to, uint32_t v) { return std::exchange(*to, *to + v); }
DEV uint32_t take_ticket(uint32_t* from) { return (*from)++; }
DEV void store_piece(void* to, const uint32_t (&r)[4]) {
  if (reinterpret_cast<uintptr_t>(to) % 16) cpu::fail("store not aligned in global memory", 0);
  std::memcpy(to, r, 16);
}
DEV void store_output(void* to, const uint32_t (&r)[4]) { store_piece(to, r); }
DEV uint32_t load_half(const uint16_t* from) { return *from; }

