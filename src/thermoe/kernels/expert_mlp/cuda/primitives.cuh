// The machine: every instruction of the decode kernel that plain C++ has no word for.
//
// Shared memory is addressed by 32-bit offsets throughout. A test defines THERMOE_PRIMITIVES to the path of another
// implementation of the same functions and runs the whole kernel on a CPU.
#pragma once

#ifdef THERMOE_PRIMITIVES
#include THERMOE_PRIMITIVES
#else

#ifdef __CUDACC_RTC__  // the run-time compiler brings no headers
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#else
#include <stdint.h>
#endif

#define DEV __device__ __forceinline__

struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

DEV int thread_index() { return static_cast<int>(threadIdx.x); }
DEV int block_index() { return static_cast<int>(blockIdx.x); }
DEV int num_blocks() { return static_cast<int>(gridDim.x); }

// ---- shared memory
constexpr uint32_t SHARED_START = 1024;  // the driver keeps the first kilobyte; the kernel checks it
DEV uint32_t shared_address(const void* start) { return static_cast<uint32_t>(__cvta_generic_to_shared(start)); }
DEV void lds128(uint32_t at, uint32_t (&r)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}
DEV void lds64(uint32_t at, uint32_t (&r)[2]) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at));
}
DEV uint32_t lds32(uint32_t at) {
  uint32_t r;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(at));
  return r;
}
DEV uint16_t lds16(uint32_t at) {
  uint16_t r;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(r) : "r"(at));
  return r;
}
DEV float lds_float(uint32_t at) { return __uint_as_float(lds32(at)); }
DEV void sts128(uint32_t at, const uint32_t (&r)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
DEV void sts64(uint32_t at, const uint32_t (&r)[2]) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(r[0]), "r"(r[1]) : "memory");
}
DEV void sts32(uint32_t at, uint32_t v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory"); }
DEV void sts16(uint32_t at, uint16_t v) { asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(v) : "memory"); }
DEV void sts_float(uint32_t at, float v) { sts32(at, __float_as_uint(v)); }
DEV uint32_t shared_add(uint32_t at, uint32_t v) {
  uint32_t old;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "r"(at), "r"(v) : "memory");
  return old;
}
DEV void shared_max(uint32_t at, uint32_t v) {
  asm volatile("red.shared.max.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
}

// ---- threads that wait for each other
DEV void sync_block() { __syncthreads(); }
DEV void sync_warp() { __syncwarp(); }
DEV void sync_group(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEV uint32_t shuffle_up(uint32_t v, int by) { return __shfl_up_sync(0xffffffffu, v, by); }
DEV float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEV uint32_t shuffle_xor_bits(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEV uint32_t shuffle_from(uint32_t v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
DEV int same_in_warp(int v) { return __shfl_sync(0xffffffffu, v, 0); }  // which the compiler cannot know by itself
DEV uint32_t warp_max(uint32_t v) { return __reduce_max_sync(0xffffffffu, v); }
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
DEV void barrier_leave(uint32_t bar) {  // arrives, and is not waited for in later phases
  asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
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

// ---- copies into shared memory that run by themselves
DEV void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEV uint64_t stream_policy() {  // weights are read once: let them leave the second-level cache first
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
DEV void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }
DEV void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
// A box of 32 rows: from `row` on in an expert's only half, or 16 in each of two.
DEV void copy_tile(uint32_t to, const TensorMap* map, int byte, int row, int expert, uint32_t bar, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to), "l"(map), "r"(byte), "r"(row), "r"(0), "r"(expert),
      "r"(bar), "l"(policy) : "memory");
}
DEV void copy_word(uint32_t to, const void* from, bool inside) {  // 4 bytes, zero where not inside
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(inside ? 4 : 0) : "memory");
}
DEV void copy_word_arrive(uint32_t bar) {  // the barrier counts this thread once its words have landed
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

// ---- global memory that several blocks write and read
DEV void load_fresh(const void* from, uint32_t (&r)[4]) {  // past the first-level cache
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(from) : "memory");
}
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
DEV void pause() { __nanosleep(20); }

// ---- launches that overlap (programmatic dependent launch)
DEV void wait_for_launch_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEV void let_next_launch_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- arithmetic
DEV void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {  // 16 x 16 by 16 x 8, bf16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEV void mma_bytes(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {  // 16 x 32 by 32 x 8
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32"
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEV void mma_bytes_from(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int32_t from) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32"
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(from));
}
// One instruction each, which the compiler does not find where both constants are immediate.
DEV uint32_t keep_and_set(uint32_t v, uint32_t keep, uint32_t set) {  // (v & keep) | set
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(v), "r"(keep), "r"(set));
  return r;
}
DEV uint32_t blend(uint32_t a, uint32_t b, uint32_t from_a) {  // bits of a where the mask is 1, of b elsewhere
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(r) : "r"(a), "r"(b), "r"(from_a));
  return r;
}
DEV uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t which) { return __byte_perm(a, b, which); }
DEV int sum_of_bytes(uint32_t v) { return __dp4a(static_cast<int>(v), 0x01010101, 0); }  // each of either sign
DEV float as_float(uint32_t v) { return __uint_as_float(v); }
DEV uint32_t as_bits(float v) { return __float_as_uint(v); }
DEV float half_to_float(uint16_t v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
  return r;
}
DEV uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
DEV float fast_exp(float v) { return __expf(v); }
DEV float fast_divide(float a, float b) { return __fdividef(a, b); }

#endif
