// Words in device memory by which blocks that are resident together speak.
#pragma once

#include "base.cuh"

// Between what a block wrote and the word that says so; and between reading that word and what was written.
DEV void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// ---- words that say by themselves whether they are there
DEV void publish(unsigned* word, unsigned value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
DEV void publish(unsigned long long* word, unsigned long long value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}
DEV unsigned peek(const unsigned* word) {
  unsigned value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
DEV unsigned long long peek(const unsigned long long* word) {
  unsigned long long value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
  return value;
}
struct Four {  // neighbouring words, each of which comes by itself
  unsigned word[4];
};
DEV Four peek_four(const unsigned* words) {
  Four seen;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(seen.word[0]), "=r"(seen.word[1]), "=r"(seen.word[2]), "=r"(seen.word[3]) : "l"(words)
               : "memory");
  return seen;
}

// ---- counters
DEV uint32_t load_acquire(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
DEV uint32_t load_steady(const uint32_t* from) {  // what nobody writes until this block has gone on
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from));
  return v;
}
DEV void add_release(uint32_t* to, uint32_t v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
DEV void fence_and_add(uint32_t* to, uint32_t v) {
  asm volatile("fence.acq_rel.gpu;\nred.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
DEV uint32_t add_acquire_release(uint32_t* to, uint32_t v) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(to), "r"(v) : "memory");
  return before;
}
DEV uint32_t take_ticket(uint32_t* from) {
  uint32_t v;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(v) : "l"(from) : "memory");
  return v;
}
