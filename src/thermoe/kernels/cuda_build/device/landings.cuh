// Tiles on their way into shared memory: a landing is full once all bytes that were announced have come; then it is
// announced anew.
#pragma once

#include "copies.cuh"

struct Landing {
  unsigned long long state;
};

DEV void landing_open(Landing& bar) { barrier_init<1>(shared_address(&bar)); }
DEV void landings_opened() {  // by the thread that opened them, before it asks for the first tile
  barrier_init_fence();
  fence_async();
}
DEV void landing_announce(Landing& bar, unsigned bytes) { barrier_expect(shared_address(&bar), bytes); }
DEV void landing_wait(const Landing& bar, unsigned parity) { barrier_wait(shared_address(&bar), parity); }

// A tile of 16 rows of 128 numbers, from `row` on of one head: the first halves of all rows, then the second ones.
DEV void copy_tile(unsigned char* to, const TensorMap* map, int row, int head, Landing& bar) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    copy_box_3d(shared_address(to) + 2048 * half, map, 64 * half, row, head, shared_address(&bar));
}
