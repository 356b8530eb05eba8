// The kernel, built for one format: THERMOE_FORMAT names a struct of bytes.cuh or planes.cuh.
#include "bytes.cuh"
#include "kernel.cuh"
#include "planes.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) thermoe_decode(const __grid_constant__ Problem p) {
  if (dynamic_start() != SHARED_START) __trap();
  decode_block<THERMOE_FORMAT>(p);
}
