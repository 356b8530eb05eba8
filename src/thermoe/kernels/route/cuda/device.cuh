// What the routing kernels take from the GPU, in one place. Everything else is plain C++, so that the tests can run the
// kernels on a CPU with another version of this file.
#pragma once

#define WARP_MASK 0xffffffffu
#if CLUSTER > 1
#define IN_CLUSTER __cluster_dims__(CLUSTER, 1, 1)
#else
#define IN_CLUSTER
#endif

template <class S>
__device__ __forceinline__ S& shared_memory() {
    __shared__ __align__(16) unsigned char raw[sizeof(S)];
    return *reinterpret_cast<S*>(raw);
}

// A barrier of all threads of the cluster: shared memory written before arriving is visible to all of them after waiting.
__device__ __forceinline__ void cluster_arrive() {
#if CLUSTER > 1
    __syncwarp();  // aligned: whole warps arrive
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if CLUSTER > 1
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// The same word of shared memory in block `rank` of the cluster.
__device__ __forceinline__ unsigned peer_word(const unsigned* own, unsigned rank) {
#if CLUSTER > 1
    unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(own)), there, value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(there) : "memory");
    return value;
#else
    return *own;
#endif
}

__device__ __forceinline__ unsigned long long peer_long(const unsigned long long* own, unsigned rank) {
#if CLUSTER > 1
    unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(own)), there;
    unsigned long long value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(value) : "r"(there) : "memory");
    return value;
#else
    return *own;
#endif
}

__device__ __forceinline__ float from_bf16(unsigned short bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

__device__ __forceinline__ float from_f16(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// A barrier of all blocks of the grid, which are resident together (cooperative launch). The top bit of its word turns
// when the last block arrives; thread 0 of a block keeps what it was (`phase`), which must be read before arriving.
constexpr unsigned TURNING = 0x80000000u;

__device__ __forceinline__ unsigned grid_phase(const unsigned* word) {
    unsigned now = 0;
    if (threadIdx.x == 0) asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
    return now & TURNING;
}

__device__ __forceinline__ void grid_arrive(unsigned* word) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned step = blockIdx.x == 0 ? TURNING - (gridDim.x - 1) : 1u;
        asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(word), "r"(step) : "memory");
    }
}

__device__ __forceinline__ void grid_wait(const unsigned* word, unsigned phase) {
    if (threadIdx.x == 0) {
        unsigned now;
        do {
            asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
        } while ((now & TURNING) == phase);
    }
    __syncthreads();
}
