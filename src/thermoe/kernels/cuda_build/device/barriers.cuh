// Barriers in shared memory (mbarrier): a phase ends when as many have arrived, and as many bytes have come, as it
// expects. Who waits names the phase by its parity.
#pragma once

#include "shared_memory.cuh"

DEV void barrier_init(uint32_t bar, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_of(bar)), "r"(arrivals) : "memory");
}
template <int ARRIVALS>
DEV void barrier_init(uint32_t bar) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_of(bar)), "n"(ARRIVALS) : "memory");
}
DEV void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void barrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address_of(bar)) : "memory");
}
DEV void barrier_arrive(uint32_t bar, uint32_t times) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(address_of(bar)), "r"(times) : "memory");
}
DEV void barrier_leave(uint32_t bar) {  // arrives, and is not waited for in later phases
  asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0];" ::"r"(address_of(bar)) : "memory");
}
DEV void barrier_expect(uint32_t bar, uint32_t bytes) {  // arrives, and expects bytes
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address_of(bar)), "r"(bytes) : "memory");
}
DEV void barrier_wait(uint32_t bar, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}" ::"r"(address_of(bar)), "r"(parity) : "memory");
}
template <int PARITY>
DEV bool barrier_ended(uint32_t bar) {  // waits a while, for a loop that the compiler is to see
  uint32_t is;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}" : "=r"(is) : "r"(address_of(bar)), "n"(PARITY) : "memory");
  return is != 0;
}
DEV void barrier_wait_cluster(uint32_t bar, uint32_t parity) {  // for what other blocks of the cluster have written
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}" ::"r"(address_of(bar)), "r"(parity) : "memory");
}
