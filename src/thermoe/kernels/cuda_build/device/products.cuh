// Products of the matrix unit, and matrices on their way to it.
#pragma once

#include "shared_memory.cuh"

// ---- of a warp: 16 x 16 by 16 x 8 in bf16, added to float32
DEV void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
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

// ---- 8 x 8 matrices of 16 bits in its layout; four of them: each lane names a row of 16 bytes
DEV void load_matrices(const unsigned char* row, unsigned (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}
DEV void load_transposed(const unsigned char* row, unsigned (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}
// Stored column by column: lane l names where column l % 8 of matrix l / 8 goes.
DEV void store_columns(uint32_t at, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address_of(at)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
DEV unsigned transposed(unsigned matrix) {
  unsigned to;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(matrix));
  return to;
}

// ---- of a warpgroup, which run by themselves
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
