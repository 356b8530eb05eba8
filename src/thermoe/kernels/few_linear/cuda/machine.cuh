// The machine: every instruction of the linear kernel that plain C++ has no word for.
//
// Shared memory is named by 32-bit addresses; in a cluster they carry the block's rank, so that none is a constant. A
// test defines THERMOE_MACHINE to the path of another implementation of the same functions and runs the kernel on a CPU.
#pragma once

#ifdef THERMOE_MACHINE
#include THERMOE_MACHINE
#else

#ifdef __CUDACC_RTC__  // the run-time compiler brings no headers
using int32_t = int;
using int64_t = long long;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#else
#include <stdint.h>
#endif

#define DEV __device__ __forceinline__
#if THERMOE_CLUSTER > 1
#define IN_CLUSTER __cluster_dims__(THERMOE_CLUSTER, 1, 1)
#else
#define IN_CLUSTER
#endif

DEV int thread_index() { return static_cast<int>(threadIdx.x); }
DEV int block_index() { return static_cast<int>(blockIdx.x); }
DEV int num_blocks() { return static_cast<int>(gridDim.x); }

// ---- shared memory
extern __shared__ __align__(128) unsigned char shared_memory[];
DEV uint32_t shared_start() { return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory)); }
DEV void lds128(uint32_t at, uint32_t (&r)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
DEV void sts128(uint32_t at, const uint32_t (&r)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// ---- threads that wait for each other
DEV void sync_block() { __syncthreads(); }
DEV void sync_warp() { __syncwarp(); }
DEV void sync_some(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }  // always the same ones
DEV int same_in_warp(int v) { return __shfl_sync(0xffffffffu, v, 0); }  // which the compiler cannot know by itself
DEV bool elected() {  // in one lane of the warp, and the compiler knows it
  uint32_t is;
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, one;\n"
      "}" : "=r"(is));
  return is != 0;
}

DEV void barrier_init(uint32_t bar, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
DEV void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void barrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
DEV void barrier_expect(uint32_t bar, uint32_t bytes) {  // arrives, and expects bytes
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
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
      "}" ::"r"(bar), "r"(parity) : "memory");
}
DEV void barrier_wait_cluster(uint32_t bar, uint32_t parity) {  // for what other blocks of the cluster sent
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}" ::"r"(bar), "r"(parity) : "memory");
}

// ---- the blocks of a cluster: all threads arrive, and who waits learns that every block has laid its barriers; the
// fence above stands before the arrival of whoever laid them
DEV void cluster_arrive() {
  if constexpr (THERMOE_CLUSTER > 1) {
    __syncwarp();  // whole warps arrive
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  }
}
DEV void cluster_wait() {
  if constexpr (THERMOE_CLUSTER > 1) {
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
}
// 16 bytes to the same place in another block of the cluster, whose barrier counts them when they are there.
DEV void send(uint32_t to, int rank, const uint32_t (&r)[4], uint32_t bar) {
  asm volatile(
      "{\n"
      ".reg .u32 there, counted;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mapa.shared::cluster.u32 counted, %2, %1;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [there], {%3, %4, %5, %6}, [counted];\n"
      "}" ::"r"(to), "r"(rank), "r"(bar), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

// ---- launches that overlap
DEV void wait_for_launch_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEV void let_next_launch_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- global memory
DEV uint64_t stream_policy() {  // weights are read once: let them leave the second-level cache first
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
DEV void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t bar, uint64_t policy) {  // in 16s
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          to), "l"(from), "r"(bytes), "r"(bar), "l"(policy) : "memory");
}
DEV void load_fresh(const void* from, bool inside, uint32_t (&r)[4]) {  // past the first-level cache, zeros outside
  asm volatile(
      "{\n"
      ".reg .pred inside;\n"
      "setp.ne.u32 inside, %5, 0;\n"
      "mov.u32 %0, 0;\n"
      "mov.u32 %1, 0;\n"
      "mov.u32 %2, 0;\n"
      "mov.u32 %3, 0;\n"
      "@inside ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}" : "=&r"(r[0]), "=&r"(r[1]), "=&r"(r[2]), "=&r"(r[3]) : "l"(from), "r"(static_cast<uint32_t>(inside))
      : "memory");
}
DEV float load_bf16(const uint16_t* from) { return __uint_as_float(static_cast<uint32_t>(*from) << 16); }
DEV void store_half(uint16_t* to, uint32_t v) { *to = static_cast<uint16_t>(v); }
DEV void store_pair(uint16_t* to, uint32_t v) { *reinterpret_cast<uint32_t*>(to) = v; }

// ---- arithmetic
DEV void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {  // 16 x 16 by 16 x 8, bf16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEV float as_float(uint32_t v) { return __uint_as_float(v); }
DEV uint32_t as_bits(float v) { return __float_as_uint(v); }
DEV uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

#endif
