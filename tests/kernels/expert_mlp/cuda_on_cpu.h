// The decode kernel's primitives on a CPU: every thread of every block is a coroutine, and whatever a thread may wait
// for is a condition. Copies land late, at random, and spoil their destination when they start: a missing wait, a slot
// freed too early or a circle of waits shows as a wrong result or as a deadlock, not as luck.
#pragma once

#include "cuda_on_cpu_machine.h"

DEV int thread_index() { return cpu::self().thread; }
DEV int block_index() { return cpu::self().index; }
DEV int num_blocks() { return static_cast<int>(cpu::machine->blocks.size()); }

template <int N>
void load_words(uint32_t at, uint32_t (&r)[N]) { std::memcpy(r, cpu::at(at, 4 * N), 4 * N); }
DEV void lds128(uint32_t at, uint32_t (&r)[4]) { load_words(at, r); }
DEV void lds64(uint32_t at, uint32_t (&r)[2]) { load_words(at, r); }
DEV uint32_t lds32(uint32_t at) {
  uint32_t r[1];
  load_words(at, r);
  return r[0];
}
DEV uint16_t lds16(uint32_t at) {
  uint16_t v;
  std::memcpy(&v, cpu::at(at, 2), 2);
  return v;
}
DEV float as_float(uint32_t v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
DEV uint32_t as_bits(float f) {
  uint32_t v;
  std::memcpy(&v, &f, 4);
  return v;
}
DEV float lds_float(uint32_t at) { return as_float(lds32(at)); }
DEV void sts128(uint32_t at, const uint32_t (&r)[4]) { std::memcpy(cpu::at(at, 16), r, 16); }
DEV void sts64(uint32_t at, const uint32_t (&r)[2]) { std::memcpy(cpu::at(at, 8), r, 8); }
DEV void sts32(uint32_t at, uint32_t v) { std::memcpy(cpu::at(at, 4), &v, 4); }
DEV void sts16(uint32_t at, uint16_t v) { std::memcpy(cpu::at(at, 2), &v, 2); }
DEV void sts_float(uint32_t at, float v) { sts32(at, as_bits(v)); }
DEV uint32_t shared_add(uint32_t at, uint32_t v) {
  const uint32_t old = lds32(at);
  sts32(at, old + v);
  return old;
}
DEV void shared_max(uint32_t at, uint32_t v) { sts32(at, lds32(at) > v ? lds32(at) : v); }

DEV void sync_block() { cpu::meet(cpu::self().block->groups[0], cpu::machine->threads); }
DEV void sync_warp() { cpu::meet(cpu::warp().group, 32); }
DEV void sync_group(int id, int threads) { cpu::meet(cpu::self().block->groups[id], threads); }
DEV uint32_t shuffle(uint32_t v, const std::function<int(int)>& source) {
  cpu::Warp& warp = cpu::warp();
  int lane = cpu::self().thread % 32;
  warp.in[lane][0] = v;
  cpu::meet(warp.group, 32, [&] {
    for (int i = 0; i < 32; ++i) warp.out[i][0] = warp.in[source(i)][0];
  });
  return warp.out[lane][0];
}
DEV uint32_t shuffle_up(uint32_t v, int by) {
  return shuffle(v, [by](int i) { return i < by ? i : i - by; });
}
DEV float shuffle_xor(float v, int mask) {
  return as_float(shuffle(as_bits(v), [mask](int i) { return i ^ mask; }));
}

DEV uint32_t shuffle_xor_bits(uint32_t v, int mask) {
  return shuffle(v, [mask](int i) { return i ^ mask; });
}
DEV uint32_t shuffle_from(uint32_t v, int lane) {
  return shuffle(v, [lane](int) { return lane; });
}
DEV int same_in_warp(int v) { return static_cast<int>(shuffle_from(v, 0)); }
DEV uint32_t warp_max(uint32_t v) {
  for (int mask = 1; mask < 32; mask *= 2) {
    const uint32_t other = shuffle(v, [mask](int i) { return i ^ mask; });
    v = v > other ? v : other;
  }
  return v;
}
DEV bool elected() { return cpu::self().thread % 32 == 0; }

DEV void barrier_init(uint32_t bar, uint32_t arrivals) {
  cpu::Barrier fresh;
  fresh.expected = fresh.pending = static_cast<int>(arrivals);
  const bool fits = bar % 8 == 0 && cpu::self().block->barriers.emplace(bar, fresh).second;
  if (!fits) cpu::fail("barrier laid twice or crooked", bar);
}
DEV void barrier_init_fence() {}
DEV cpu::Barrier& barrier_at(uint32_t bar) {
  auto found = cpu::self().block->barriers.find(bar);
  if (found == cpu::self().block->barriers.end()) cpu::fail("no barrier", bar);
  return found->second;
}
DEV void barrier_arrive(uint32_t bar) {
  cpu::Barrier& b = barrier_at(bar);
  if (--b.pending < 0) cpu::fail("one arrival too many", bar);
  b.settle();
}
DEV void barrier_leave(uint32_t bar) {
  --barrier_at(bar).expected;
  barrier_arrive(bar);
}
DEV void barrier_expect(uint32_t bar, uint32_t bytes) {
  cpu::Barrier& b = barrier_at(bar);
  b.bytes += bytes;
  if (--b.pending < 0) cpu::fail("one arrival too many", bar);
}
DEV void barrier_wait(uint32_t bar, uint32_t parity) {
  cpu::Barrier& b = barrier_at(bar);
  cpu::wait_until([&b, parity] { return (b.phase & 1) != parity; });
}

DEV void fence_async() {}
DEV uint64_t stream_policy() { return 0; }
DEV void prefetch(const void*) {}
DEV void prefetch_map(const TensorMap*) {}
DEV void copy_tile(uint32_t to, const TensorMap* map, int byte, int row, int expert, uint32_t bar, uint64_t) {
  const int box = static_cast<int>(map->box_bytes), high = 32 / static_cast<int>(map->halves);
  if (to % 1024 || row < 0 || row + high > map->rows || expert < 0 || expert >= map->experts || byte < 0)
    cpu::fail("bad copy", to);
  uint8_t* shared = cpu::self().block->shared.data();
  cpu::at(to, 16), cpu::at(to + 32 * box - 16, 16);
  std::memset(shared + to, 0xff, 32 * box);
  cpu::Barrier& b = barrier_at(bar);
  cpu::launch_copy([=, &b] {
    for (int r = 0; r < 32; ++r)
      for (int i = 0; i < box; i += 16) {
        const int64_t from = (expert * map->halves + r / high) * map->rows + row + r % high;
        uint32_t place = to + r * box + i;
        place ^= (place >> 7 & (box == 64 ? 3 : 7)) << 4;
        for (int j = 0; j < 16; ++j)
          shared[place + j] = byte + i + j < map->row_bytes ? map->base[from * map->row_bytes + byte + i + j] : 0;
      }
    b.bytes -= 32 * box;
    b.settle();
  });
}
DEV void copy_word(uint32_t to, const void* from, bool inside) {
  uint8_t* place = cpu::at(to, 4);
  if (reinterpret_cast<uintptr_t>(from) % 4) cpu::fail("word not aligned in global memory", to);
  std::memset(place, 0xff, 4);
  uint32_t v = 0;
  if (inside) std::memcpy(&v, from, 4);
  cpu::self().words.push_back([=] { std::memcpy(place, &v, 4); });
}
DEV void copy_word_arrive(uint32_t bar) {
  cpu::Barrier& b = barrier_at(bar);
  cpu::launch_copy([&b, words = std::move(cpu::self().words)] {
    for (const auto& word : words) word();
    --b.pending;
    b.settle();
  });
  cpu::self().words.clear();
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
DEV void pause() {
  cpu::self().spins = true;
  cpu::wait_until([passed = false]() mutable { return std::exchange(passed, true); });
}

DEV void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  cpu::Warp& warp = cpu::warp();
  const int lane = cpu::self().thread % 32;
  for (int i = 0; i < 4; ++i) warp.in[lane][i] = as_bits(d[i]), warp.in[lane][4 + i] = a[i];
  warp.in[lane][8] = b0, warp.in[lane][9] = b1;
  cpu::meet(warp.group, 32, [&warp] {
    float left[16][16], right[16][8];
    for (int i = 0; i < 32; ++i)
      for (int half = 0; half < 2; ++half) {
        const int g = i / 4, k = 2 * (i % 4) + half, shift = 16 * half;
        const auto value = [&](int word) { return cpu::bf16(warp.in[i][word] >> shift & 0xffff); };
        left[g][k] = value(4), left[g + 8][k] = value(5), left[g][k + 8] = value(6), left[g + 8][k + 8] = value(7);
        right[k][g] = value(8), right[k + 8][g] = value(9);
      }
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 4; ++j) {
        float sum = as_float(warp.in[i][j]);
        for (int k = 0; k < 16; ++k) sum += left[i / 4 + 8 * (j / 2)][k] * right[k][2 * (i % 4) + j % 2];
        warp.out[i][j] = as_bits(sum);
      }
  });
  for (int i = 0; i < 4; ++i) d[i] = as_float(warp.out[lane][i]);
}
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
DEV uint32_t keep_and_set(uint32_t v, uint32_t keep, uint32_t set) { return (v & keep) | set; }
DEV uint32_t blend(uint32_t a, uint32_t b, uint32_t from_a) { return (a & from_a) | (b & ~from_a); }
DEV uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t which) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i) picked |= static_cast<uint32_t>(both >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
  return picked;
}
DEV int sum_of_bytes(uint32_t v) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(v >> 8 * i & 0xff);
  return sum;
}
DEV float half_to_float(uint16_t v) {
  const int exponent = v >> 10 & 31, mantissa = v & 1023;
  float size = exponent ? std::ldexp(1024.f + mantissa, exponent - 25) : std::ldexp(static_cast<float>(mantissa), -24);
  if (exponent == 31) size = mantissa ? NAN : INFINITY;
  return v & 0x8000 ? -size : size;
}
DEV uint32_t round_bf16(float v) {
  uint32_t bits = as_bits(v);
  return std::isnan(v) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEV uint32_t pack_bf16(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }
DEV float fast_exp(float v) { return std::exp(v); }
DEV float fast_divide(float a, float b) { return a / b; }
