// What kernels that multiply tiles take from the GPU, behind the routing kernel's device.cuh: the copy engine and the
// matrix unit.
#pragma once

struct alignas(64) TensorMap {
    unsigned long long opaque[16];
};

extern __shared__ __align__(1024) unsigned char raw_shared[];

template <class S>
__device__ __forceinline__ S& dynamic_memory() {
    return *reinterpret_cast<S*>(raw_shared);
}

__device__ __forceinline__ bool elected() {  // in one lane of the warp, and the compiler knows it
    unsigned is;
    asm volatile("{\n\t.reg .pred one;\n\telect.sync _|one, 0xffffffff;\n\tselp.u32 %0, 1, 0, one;\n\t}" : "=r"(is));
    return is != 0;
}

// A tile on its way into shared memory: full once all bytes that were announced have come; then it is announced anew.
struct Landing {
    unsigned long long state;
};

__device__ __forceinline__ void landing_open(Landing& bar) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&bar)) : "memory");
}

// By the thread that opened them, before it asks for the first tile.
__device__ __forceinline__ void landings_opened() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void landing_announce(Landing& bar, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&bar)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void landing_wait(const Landing& bar, unsigned parity) {
    unsigned full;
    do {
        asm volatile(
            "{\n\t.reg .pred full;\n\tmbarrier.try_wait.parity.shared::cta.b64 full, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, full;\n\t}"
            : "=r"(full)
            : "r"(shared_address(&bar)), "r"(parity)
            : "memory");
    } while (!full);
}

__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// A tile of 16 rows of 128 numbers, from `row` on of one head: the first halves of all rows, then the second ones.
__device__ __forceinline__ void copy_tile(unsigned char* to, const TensorMap* map, int row, int head, Landing& bar) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
            " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(to) + 2048 * half),
            "l"(map), "r"(64 * half), "r"(row), "r"(head), "r"(shared_address(&bar))
            : "memory");
}

// Four matrices of 8 x 8 halves; each lane gives the address of a row of 16 bytes.
__device__ __forceinline__ void load_matrices(const unsigned char* row, unsigned (&to)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void load_transposed(const unsigned char* row, unsigned (&to)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// A matrix of 8 x 8 halves that a warp holds, transposed.
__device__ __forceinline__ unsigned transposed(unsigned matrix) {
    unsigned to;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(matrix));
    return to;
}

// 16 x 16 by 16 x 8 in bf16, added to float32.
__device__ __forceinline__ void multiply(float (&to)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(to[0]), "+f"(to[1]), "+f"(to[2]), "+f"(to[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers rounded to bf16, the first in the low half.
__device__ __forceinline__ unsigned rounded(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// What a launch before this one wrote, never from a cache that may be older.
__device__ __forceinline__ uint2 load_new(const void* from) {
    uint2 pair;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(pair.x), "=r"(pair.y) : "l"(from) : "memory");
    return pair;
}

__device__ __forceinline__ unsigned load_new_pair(const void* from) {
    unsigned pair;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(pair) : "l"(from) : "memory");
    return pair;
}

__device__ __forceinline__ uint4 load_new_four(const void* from) {
    uint4 four;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w) : "l"(from) : "memory");
    return four;
}

// Writes four numbers at the place of `own` in block `rank`, as `push` does.
__device__ __forceinline__ void push_four(const float* own, unsigned rank, float4 value, const Inbox& box) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
            peer_address(own, rank)),
        "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(peer_address(&box, rank))
        : "memory");
}
