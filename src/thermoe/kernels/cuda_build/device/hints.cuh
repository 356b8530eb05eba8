// What the second-level cache is told of a copy or a store.
#pragma once

#include "base.cuh"

DEV uint64_t stream_policy() {  // what is read once leaves it first
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
constexpr uint64_t GO_FIRST = 0x12f0000000000000ull;  // the code that this instruction gives
