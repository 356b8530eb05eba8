// The machine: what the decode kernel takes from the device that plain C++ has no word for.
//
// A test defines THERMOE_MACHINE to the path of another implementation of the same functions and runs the whole kernel
// on a CPU.
#pragma once

#ifdef THERMOE_MACHINE
#include THERMOE_MACHINE
#else

#include "device/arithmetic.cuh"
#include "device/barriers.cuh"
#include "device/copies.cuh"
#include "device/global_memory.cuh"
#include "device/launches.cuh"
#include "device/products.cuh"
#include "device/shared_memory.cuh"
#include "device/threads.cuh"
#include "device/words.cuh"

// A box of 32 rows: from `row` on in an expert's only half, or 16 in each of two. Called through
// `copy_box_4d` the compiler finds another way to compute where the tile goes, and ptxas lays out other code.
DEV void copy_tile(uint32_t to, const TensorMap* map, int byte, int row, int expert, uint32_t bar, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to), "l"(map), "r"(byte), "r"(row), "r"(0), "r"(expert),
      "r"(bar), "l"(policy) : "memory");
}
// A box of 32 rows of pieces of a bit plane, or of groups of scales: as above, each piece's rows together. `at` counts
// the elements of the map.
DEV void copy_rows(uint32_t to, const TensorMap* map, int at, int piece, int expert, uint32_t bar, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to), "l"(map), "r"(at), "r"(0), "r"(piece), "r"(expert),
      "r"(bar), "l"(policy) : "memory");
}

#endif
