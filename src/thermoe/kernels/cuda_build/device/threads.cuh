// Threads of a block: waiting for each other, telling each other a word, and sharing registers out.
#pragma once

#include "base.cuh"

#define WARP_MASK 0xffffffffu

DEV void sync_block() { __syncthreads(); }
DEV void sync_warp() { __syncwarp(); }
// Barriers by number, 1 to 15: so many threads wait or arrive, whole warps.
template <int ID>
DEV void named_wait(int threads) { asm volatile("bar.sync %0, %1;" ::"r"(ID), "r"(threads) : "memory"); }
template <int ID>
DEV void named_arrive(int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(ID), "r"(threads) : "memory"); }
DEV void pause(int time_ns) { __nanosleep(time_ns); }

DEV uint32_t shuffle_up(uint32_t v, int by) { return __shfl_up_sync(WARP_MASK, v, by); }
DEV float shuffle_xor(float v, int mask) { return __shfl_xor_sync(WARP_MASK, v, mask); }
DEV uint32_t shuffle_xor_bits(uint32_t v, int mask) { return __shfl_xor_sync(WARP_MASK, v, mask); }
DEV uint32_t shuffle_from(uint32_t v, int lane) { return __shfl_sync(WARP_MASK, v, lane); }
DEV int same_in_warp(int v) { return __shfl_sync(WARP_MASK, v, 0); }  // which the compiler cannot know by itself
DEV uint32_t warp_max(uint32_t v) { return __reduce_max_sync(WARP_MASK, v); }
DEV bool elected() {  // in one lane of the warp, and the compiler knows it
  uint32_t is;
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, one;\n"
      "}" : "=r"(is));
  return is != 0;
}

// A warpgroup's share of the processor's registers, all four warps at once; more are waited for.
template <int REGISTERS>
DEV void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
template <int REGISTERS>
DEV void leave_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
