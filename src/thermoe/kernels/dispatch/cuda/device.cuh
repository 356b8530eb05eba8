// What the dispatch plan takes from the GPU beside the routing kernel's device.cuh.
#pragma once

// Four neighbouring words that blocks publish; each comes by itself.
struct Four {
    unsigned word[4];
};

__device__ __forceinline__ Four peek_four(const unsigned* words) {
    Four seen;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(seen.word[0]), "=r"(seen.word[1]), "=r"(seen.word[2]), "=r"(seen.word[3])
                 : "l"(words)
                 : "memory");
    return seen;
}
