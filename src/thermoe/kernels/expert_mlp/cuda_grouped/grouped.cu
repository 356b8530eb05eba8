// The kernel, built with the sizes that layout.cuh names and the products that build.py writes for them.
#include "grouped.cuh"

extern "C" __global__ void IN_CLUSTER __launch_bounds__(THREADS, 1)
    thermoe_grouped(const __grid_constant__ Problem p) {
  if (!starts_where_expected()) __trap();
  grouped_block(p);
}
