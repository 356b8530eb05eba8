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

// The launch before this one has ended, and what it wrote is seen; then the next one may begin.
__device__ __forceinline__ void wait_for_launch_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_next_launch_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

__device__ __forceinline__ unsigned shared_address(const void* own) {
    return static_cast<unsigned>(__cvta_generic_to_shared(own));
}

// Where the blocks of a cluster send each other words: it is full once all bytes that its block expects have come. No
// barrier and no fence stands on the way, since a word and the count of its bytes arrive together.
struct Inbox {
    unsigned long long state;
};

// By one thread, before `cluster_ready`.
__device__ __forceinline__ void inbox_open(Inbox& box) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&box)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// By one thread, once; words may come before.
__device__ __forceinline__ void inbox_expect(Inbox& box, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&box)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void inbox_wait(const Inbox& box) {
    unsigned full;
    do {
        asm volatile(
            "{\n\t.reg .pred full;\n\tmbarrier.try_wait.parity.shared::cta.b64 full, [%1], 0;\n\t"
            "selp.u32 %0, 1, 0, full;\n\t}"
            : "=r"(full)
            : "r"(shared_address(&box))
            : "memory");
    } while (!full);
}

// The inboxes of all blocks are open once all threads have said so; the second call waits for it.
__device__ __forceinline__ void cluster_ready() {
    __syncwarp();  // aligned: whole warps arrive
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ unsigned peer_address(const void* own, unsigned rank) {
    unsigned there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(own)), "r"(rank));
    return there;
}

// Writes a word at the place of `own` in block `rank`, whose inbox at the place of `box` counts its bytes.
__device__ __forceinline__ void push(const unsigned* own, unsigned rank, unsigned value, const Inbox& box) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(peer_address(own, rank)),
                 "r"(value), "r"(peer_address(&box, rank))
                 : "memory");
}

__device__ __forceinline__ void push(const unsigned long long* own, unsigned rank, unsigned long long value,
                                     const Inbox& box) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(peer_address(own, rank)),
                 "l"(value), "r"(peer_address(&box, rank))
                 : "memory");
}

// Words in device memory by which blocks that are resident together speak: each says by itself whether it is there.
__device__ __forceinline__ void publish(unsigned* word, unsigned value) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

__device__ __forceinline__ void publish(unsigned long long* word, unsigned long long value) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

__device__ __forceinline__ unsigned peek(const unsigned* word) {
    unsigned value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}

__device__ __forceinline__ unsigned long long peek(const unsigned long long* word) {
    unsigned long long value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

// Between what a block adds up in device memory and the word that says so; and between reading that word and the sums.
__device__ __forceinline__ void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

__device__ __forceinline__ float from_bf16(unsigned short bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

__device__ __forceinline__ float from_f16(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
