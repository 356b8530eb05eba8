// The kernel, built with the sizes that layout.cuh names and the products that build.py writes for them.
#include "grouped.cuh"

extern "C" __global__ void __cluster_dims__(TEAM, 1, 1) __launch_bounds__(THREADS, 1)
    thermoe_grouped(const __grid_constant__ Problem p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  if (shared_address(shared) != SHARED_START) __trap();
  grouped_block(p);
}
