// The machine: every instruction of the grouped kernel that plain C++ has no word for.
//
// A place in shared memory is named by its 32-bit offset in the block's own, SHARED_START and on; what the device calls
// its address has the block's rank in its cluster above that. A test defines THERMOE_MACHINE to the path of another
// implementation of the same functions and runs the whole kernel on a CPU.
#pragma once

#include "team.cuh"

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
#if THERMOE_PAIR
#define IN_TEAMS __cluster_dims__(TEAM, 1, 1)
#else
#define IN_TEAMS
#endif

struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

DEV int thread_index() { return static_cast<int>(threadIdx.x); }
DEV uint32_t num_blocks() { return gridDim.x; }

// ---- shared memory
constexpr uint32_t SHARED_START = 1024;  // the driver keeps the first kilobyte; the kernel checks it
extern __shared__ __align__(1024) unsigned char shared_memory[];
DEV uint32_t shared_address() { return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory)); }
DEV bool starts_where_expected() { return (shared_address() & 0xffffff) == SHARED_START; }
DEV uint32_t address_of(uint32_t at) {
  if constexpr (TEAM == 1) return at;
  return shared_address() - SHARED_START + at;
}
DEV int team_rank() {
  if constexpr (TEAM == 1) return 0;
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
DEV uint32_t address_in(uint32_t at, int rank) {  // of a block of the team
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address_of(at)), "r"(rank));
  return there;
}
DEV void lds128(uint32_t at, uint32_t (&r)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address_of(at)) : "memory");
}
DEV void lds64(uint32_t at, uint32_t (&r)[2]) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address_of(at)) : "memory");
}
DEV uint32_t lds32(uint32_t at) {
  uint32_t r;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(address_of(at)) : "memory");
  return r;
}
DEV void sts128(uint32_t at, const uint32_t (&r)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address_of(at)), "r"(r[0]), "r"(r[1]), "r"(r[2]),
               "r"(r[3])
               : "memory");
}
DEV void sts32(uint32_t at, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address_of(at)), "r"(v) : "memory");
}
// Four 8 x 8 matrices of 16 bits in the layout of the matrix units, stored column by column: lane l names where
// column l % 8 of matrix l / 8 goes, 16 bytes.
DEV void store_columns(uint32_t at, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address_of(at)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// ---- threads that wait for each other
DEV void sync_warp() { __syncwarp(); }
DEV void sync_team() {
  if constexpr (TEAM == 1) return __syncthreads();
  sync_warp();  // the barrier counts warps
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEV void named_wait(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEV void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// A warpgroup's share of the processor's registers, all four warps at once; more are waited for.
template <int REGISTERS>
DEV void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
template <int REGISTERS>
DEV void leave_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
DEV uint32_t shuffle_up(uint32_t v, int by) { return __shfl_up_sync(0xffffffffu, v, by); }
DEV uint32_t shuffle_from(uint32_t v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }

DEV void barrier_init(uint32_t bar, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_of(bar)), "r"(arrivals) : "memory");
}
DEV void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void barrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address_of(bar)) : "memory");
}
DEV void barrier_arrive(uint32_t bar, uint32_t times) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(address_of(bar)), "r"(times) : "memory");
}
DEV void barrier_arrive_in(uint32_t bar, int rank) {  // a block of the team; it learns of no stores by this
  if constexpr (TEAM == 1) return barrier_arrive(bar);
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address_in(bar, rank)) : "memory");
}
DEV void barrier_release_in(uint32_t bar, int rank) {  // after stores that it is to see
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address_in(bar, rank)) : "memory");
}
DEV void sts32_in(uint32_t at, int rank, uint32_t v) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address_in(at, rank)), "r"(v) : "memory");
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
DEV void barrier_wait_cluster(uint32_t bar, uint32_t parity) {  // for what another block has written
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

// ---- what the L2 cache is told of a piece: the code that createpolicy gives for all of it. Copies of tokens tell it
// nothing: with a hint, ptxas 13.0 adds uniform registers that nobody has written to their place in a cluster's memory.
constexpr uint64_t GO_FIRST = 0x12f0000000000000ull;
#if THERMOE_KEEP & 1
#define WEIGHTS_HINTED ".L2::cache_hint"
#define WEIGHTS_HINT ", %0"
#else
#define WEIGHTS_HINTED
#define WEIGHTS_HINT
#endif
#if THERMOE_KEEP & 2
#define OUTPUTS_HINTED ".L2::cache_hint"
#define OUTPUTS_HINT ", %0"
#else
#define OUTPUTS_HINTED
#define OUTPUTS_HINT
#endif

// ---- copies into shared memory that run by themselves
DEV void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEV void fence_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
DEV void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
// Rows `row` and on, into this block.
DEV void copy_alone(uint32_t to, const TensorMap* map, int byte, int row, uint32_t bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          address_of(to)),
      "l"(map), "r"(byte), "r"(row), "r"(address_of(bar)) : "memory");
}
// Into all blocks of the team, at the same place, and each one's barrier counts the bytes.
constexpr uint16_t WHOLE_TEAM = (1 << TEAM) - 1;
DEV void copy_box(uint32_t to, const TensorMap* map, int byte, int row, uint32_t bar) {
  if constexpr (TEAM == 1)
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes" WEIGHTS_HINTED
        " [%1], [%2, {%3, %4}], [%5]" WEIGHTS_HINT ";" ::"l"(GO_FIRST), "r"(address_of(to)), "l"(map), "r"(byte),
        "r"(row), "r"(address_of(bar)) : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster" WEIGHTS_HINTED
        " [%1], [%2, {%3, %4}], [%5], %6" WEIGHTS_HINT ";" ::"l"(GO_FIRST), "r"(address_of(to)), "l"(map), "r"(byte),
        "r"(row), "r"(address_of(bar)), "h"(WHOLE_TEAM) : "memory");
}
DEV void copy_box(uint32_t to, const TensorMap* map, int byte, int half, int group, uint32_t bar) {
  if constexpr (TEAM == 1)
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes" WEIGHTS_HINTED
        " [%1], [%2, {%3, 0, %4, %5}], [%6]" WEIGHTS_HINT ";" ::"l"(GO_FIRST), "r"(address_of(to)), "l"(map), "r"(byte),
        "r"(half), "r"(group), "r"(address_of(bar)) : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster" WEIGHTS_HINTED
        " [%1], [%2, {%3, 0, %4, %5}], [%6], %7" WEIGHTS_HINT ";" ::"l"(GO_FIRST), "r"(address_of(to)), "l"(map),
        "r"(byte), "r"(half), "r"(group), "r"(address_of(bar)), "h"(WHOLE_TEAM) : "memory");
}
DEV void prefetch_box(const TensorMap* map, int byte, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(byte), "r"(row)
               : "memory");
}
DEV void prefetch_box(const TensorMap* map, int byte, int half, int group) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, 0, %2, %3}];" ::"l"(map), "r"(byte), "r"(half),
               "r"(group)
               : "memory");
}
// The same for rows of codes, whose map has a box of its own.
DEV void copy_codes(uint32_t to, const TensorMap* map, int byte, int row, uint32_t bar) {
  copy_box(to, map, byte, row, bar);
}
DEV void prefetch_codes(const TensorMap* map, int byte, int row) { prefetch_box(map, byte, row); }
// 16 bytes, zeros where not inside. The address is computed here, for the compiler would keep it in two registers.
DEV void copy_piece(uint32_t to, const char* start, uint32_t pieces, bool inside) {
  asm volatile(
      "{\n"
      ".reg .u64 from;\n"
      "mad.wide.u32 from, %2, 16, %1;\n"
      "cp.async.cg.shared.global.L2::128B [%0], [from], 16, %3;\n"
      "}" ::"r"(address_of(to)), "l"(start), "r"(pieces), "r"(inside ? 16 : 0) : "memory");
}
DEV void copy_piece_arrive(uint32_t bar) {  // the barrier counts this thread once its pieces have landed
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(address_of(bar)) : "memory");
}

// ---- matrix products of a warpgroup, which run by themselves
DEV void products_open() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void products_close() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
DEV void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
// What comes later in the source uses the value later: products write it unseen.
DEV void stays_behind(float& v) { asm volatile("" : "+f"(v)::"memory"); }
// Rows of 128 bytes in groups of 8, swizzled as the copy engine does it; 16-byte units throughout.
DEV uint64_t operand(uint32_t at) {
  constexpr uint64_t SWIZZLE_128 = 1ull << 62, GROUP_PITCH = 64ull << 32, UNUSED_PITCH = 1ull << 16;
  return SWIZZLE_128 | GROUP_PITCH | UNUSED_PITCH | ((at & 0x3ffff) >> 4);
}

// ---- global memory
DEV uint32_t load_acquire(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
DEV void add_release(uint32_t* to, uint32_t v) {
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
DEV void store_piece(void* to, const uint32_t (&r)[4]) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
DEV void store_output(void* to, const uint32_t (&r)[4]) {
  asm volatile("st.global" OUTPUTS_HINTED ".v4.u32 [%1], {%2, %3, %4, %5}" OUTPUTS_HINT ";" ::"l"(GO_FIRST), "l"(to),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
DEV uint32_t load_half(const uint16_t* from) {
  uint16_t v;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(from));
  return v;
}
DEV void pause() { __nanosleep(40); }

// ---- arithmetic
DEV float as_float(uint32_t v) { return __uint_as_float(v); }
DEV uint32_t as_bits(float v) { return __float_as_uint(v); }
DEV uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
DEV float float_of_f16(uint32_t v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(static_cast<uint16_t>(v)));
  return r;
}
// Pairs of bf16.
DEV uint32_t add_bf16(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEV uint32_t add_product_bf16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
DEV float fast_exp(float v) { return __expf(v); }
DEV float fast_divide(float a, float b) { return __fdividef(a, b); }

#endif
