// What device/threads.cuh and device/products.cuh have, on the machine: threads that wait for each other, tell each
// other words and multiply together.
#pragma once

#include "machine.h"

DEV int thread_index() { return cpu::self().thread; }
DEV int block_index() { return cpu::self().index; }
DEV int num_blocks() { return static_cast<int>(cpu::machine->blocks.size()); }

DEV void sync_block() { cpu::meet(cpu::self().block->groups[0], cpu::machine->threads); }
DEV void sync_warp() { cpu::meet(cpu::warp().group, 32); }
template <int ID>
void named_wait(int threads) { cpu::meet(cpu::self().block->groups[ID], threads); }
template <int ID>
void named_arrive(int threads) {
  cpu::Group& group = cpu::self().block->groups[ID];
  if (++group.arrived == threads) group.arrived = 0, ++group.generation;
}
DEV void pause(int) {
  cpu::self().spins = true;
  cpu::wait_until([passed = false]() mutable { return std::exchange(passed, true); });
}
template <int REGISTERS>
void take_registers() {}
template <int REGISTERS>
void leave_registers() {}

DEV uint32_t shuffle_from(uint32_t v, int lane) {
  cpu::Warp& warp = cpu::warp();
  const int own = cpu::self().thread % 32;
  warp.in[own][0] = v, warp.in[own][1] = static_cast<uint32_t>(lane);
  cpu::meet(warp.group, 32, [&warp] {
    for (int i = 0; i < 32; ++i) warp.out[i][0] = warp.in[warp.in[i][1]][0];
  });
  return warp.out[own][0];
}
DEV uint32_t shuffle_up(uint32_t v, int by) {
  const int own = cpu::self().thread % 32;
  return shuffle_from(v, own < by ? own : own - by);
}
DEV uint32_t shuffle_xor_bits(uint32_t v, int mask) { return shuffle_from(v, cpu::self().thread % 32 ^ mask); }
DEV float shuffle_xor(float v, int mask) { return as_float(shuffle_xor_bits(as_bits(v), mask)); }
DEV int same_in_warp(int v) { return static_cast<int>(shuffle_from(v, 0)); }
DEV uint32_t warp_max(uint32_t v) {
  for (int mask = 1; mask < 32; mask *= 2) {
    const uint32_t other = shuffle_xor_bits(v, mask);
    v = v > other ? v : other;
  }
  return v;
}
DEV bool elected() { return cpu::self().thread % 32 == 0; }

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
        const auto value = [&](int word) { return from_bf16(warp.in[i][word] >> shift & 0xffff); };
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
