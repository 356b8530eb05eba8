// What every kernel speaks in: the integers of C, functions that the compiler unfolds, and who a thread is.
//
// The files of this folder are the instructions that plain C++ has no word for, one idea each; kernels include them as
// "device/NAME.cuh". Their stand-ins on a CPU are in the tests.
#pragma once

#ifdef __CUDACC_RTC__  // the run-time compiler brings no headers
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#else
#include <stdint.h>
#endif

#define DEV __device__ __forceinline__

DEV int thread_index() { return static_cast<int>(threadIdx.x); }
DEV int block_index() { return static_cast<int>(blockIdx.x); }
DEV int num_blocks() { return static_cast<int>(gridDim.x); }
