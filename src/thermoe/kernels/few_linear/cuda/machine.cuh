// The machine: what the linear kernel takes from the device that plain C++ has no word for.
//
// Shared memory is named by 32-bit addresses; in a cluster they carry the block's rank, so that none is a constant. A
// test defines THERMOE_MACHINE to the path of another implementation of the same functions and runs the kernel on a CPU.
#pragma once

#ifdef THERMOE_MACHINE
#include THERMOE_MACHINE
#else

#include "device/arithmetic.cuh"
#include "device/barriers.cuh"
#include "device/clusters.cuh"
#include "device/copies.cuh"
#include "device/global_memory.cuh"
#include "device/launches.cuh"
#include "device/products.cuh"
#include "device/shared_memory.cuh"
#include "device/threads.cuh"

#endif
