// The kernel, built for a number of columns, a number of tokens and a way to share them out (layout.py).
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) IN_CLUSTER thermoe_linear(const __grid_constant__ Problem p) {
  linear_block(p);
}
