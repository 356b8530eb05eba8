// Where the blocks of a cluster send each other words: an inbox is full once all bytes that its block expects have come.
#pragma once

#include "clusters.cuh"

struct Inbox {
  unsigned long long state;
};

DEV void inbox_open(Inbox& box) {  // by one thread, before `cluster_arrive`
  barrier_init<1>(shared_address(&box));
  barrier_init_fence();
}
DEV void inbox_expect(Inbox& box, unsigned bytes) { barrier_expect(shared_address(&box), bytes); }  // once, by one thread
DEV void inbox_wait(const Inbox& box) {
  while (!barrier_ended<0>(shared_address(&box))) continue;
}

// Writes a word at the place of `own` in block `rank`, whose inbox at the place of `box` counts its bytes; it may come
// before the block has said how many it expects.
template <class T>
DEV void push(const T* own, unsigned rank, T value, const Inbox& box) {
  send(shared_address(own), rank, value, shared_address(&box));
}
DEV void push_four(const float* own, unsigned rank, float4 value, const Inbox& box) {
  const uint32_t words[4] = {__float_as_uint(value.x), __float_as_uint(value.y), __float_as_uint(value.z),
                             __float_as_uint(value.w)};
  send(shared_address(own), rank, words, shared_address(&box));
}
