// Blocks of a cluster, THERMOE_CLUSTER of them, which reach each other's shared memory.
#pragma once

#include "barriers.cuh"

#if THERMOE_CLUSTER > 1
#define IN_CLUSTER __cluster_dims__(THERMOE_CLUSTER, 1, 1)
#else
#define IN_CLUSTER
#endif

DEV int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// All threads arrive, and who waits learns that every block has laid its barriers: the fence of barriers.cuh stands
// before the arrival of whoever laid them. Whole warps arrive.
DEV void cluster_arrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
DEV void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEV void sync_cluster() {  // what was written before is seen behind it
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

DEV uint32_t address_in(uint32_t place, int rank) {  // the same place in another block
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address_of(place)), "r"(rank));
  return there;
}
DEV void barrier_arrive_in(uint32_t bar, int rank) {  // it learns of no stores by this
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address_in(bar, rank)) : "memory");
}
DEV void barrier_release_in(uint32_t bar, int rank) {  // after stores that it is to see
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address_in(bar, rank)) : "memory");
}
DEV void sts32_in(uint32_t at, int rank, uint32_t v) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address_in(at, rank)), "r"(v) : "memory");
}

// Words to the same place in another block, whose barrier counts their bytes when they are there: no other barrier and
// no fence stands on the way.
DEV void send(uint32_t to, int rank, uint32_t v, uint32_t bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address_in(to, rank)),
               "r"(v), "r"(address_in(bar, rank))
               : "memory");
}
DEV void send(uint32_t to, int rank, unsigned long long v, uint32_t bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(address_in(to, rank)),
               "l"(v), "r"(address_in(bar, rank))
               : "memory");
}
DEV void send(uint32_t to, int rank, const uint32_t (&r)[4], uint32_t bar) {
  asm volatile(
      "{\n"
      ".reg .u32 there, counted;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mapa.shared::cluster.u32 counted, %2, %1;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [there], {%3, %4, %5, %6}, [counted];\n"
      "}" ::"r"(address_of(to)), "r"(rank), "r"(address_of(bar)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}
