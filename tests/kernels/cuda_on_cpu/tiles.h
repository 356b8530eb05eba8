// What device/landings.cuh and device/products.cuh have, on a CPU, behind device.cuh of this folder. Clusters run one after
// another.
#pragma once

namespace cpu {
inline unsigned first_block = 0;
}
#undef blockIdx
#define blockIdx (cpu::Index{cpu::first_block + cpu::now->block})

struct alignas(64) TensorMap {
    unsigned long long opaque[16];  // pointer, rows of a head
};

template <class S>
S& dynamic_memory() {
    return *reinterpret_cast<S*>(cpu::block().shared.data());
}
inline bool elected() { return cpu::lane() == 5; }

struct Landing {
    long long bytes;  // still to come
    unsigned announced;
};
inline void landing_open(Landing& bar) { bar = {0, 0}; }
inline void landings_opened() {}
inline void landing_announce(Landing& bar, unsigned bytes) {
    if (bar.bytes != 0) cpu::fail("a tile announced while another is on its way, bytes", bar.bytes);
    bar.bytes = bytes, bar.announced += 1;
}
inline void landing_wait(const Landing& bar, unsigned parity) {
    const volatile Landing& now = bar;
    while (((now.announced - (now.bytes != 0)) & 1) == parity) cpu::yield();
}
inline void prefetch_map(const TensorMap*) {}
inline void copy_tile(unsigned char* to, const TensorMap* map, int row, int head, Landing& bar) {
    const auto* from = reinterpret_cast<const unsigned char*>(map->opaque[0]);
    const int rows = static_cast<int>(map->opaque[1]);
    cpu::expect_multiple(to, 1024, "a tile whose parts swap places is not aligned");
    cpu::expect_multiple(from, 16, "a tensor of tiles is not aligned");
    for (int half = 0; half < 2; ++half)
        for (int r = 0; r < 16; ++r)
            for (int part = 0; part < 8; ++part)
                for (int n = 0; n < 2; ++n) {
                    unsigned long long word = 0;
                    const long long line = static_cast<long long>(head) * rows + row + r;
                    if (row + r < rows) std::memcpy(&word, from + line * 256 + half * 128 + part * 16 + n * 8, 8);
                    unsigned char* there = to + half * 2048 + r * 128 + ((part ^ r % 8) << 4) + n * 8;
                    cpu::mail.push_back({there, word, 8, &bar.bytes});
                }
}

inline unsigned short half_at(const void* row, int n) {
    unsigned short value;
    std::memcpy(&value, static_cast<const unsigned char*>(row) + 2 * n, 2);
    return value;
}
inline void load_any(const unsigned char* row, unsigned (&to)[4], bool transposes) {
    const int g = cpu::lane() / 4, t = cpu::lane() % 4;
    cpu::expect_multiple(row, 16, "a row of a matrix is not aligned");
    cpu::exchange(reinterpret_cast<unsigned long long>(row), [&](auto* rows) {
        for (int m = 0; m < 4; ++m) {
            const auto at = [&](int r, int c) { return half_at(reinterpret_cast<const void*>(rows[8 * m + r]), c); };
            to[m] = transposes ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
        }
        return 0;
    });
}
inline void load_matrices(const unsigned char* row, unsigned (&to)[4]) { load_any(row, to, false); }
inline void load_transposed(const unsigned char* row, unsigned (&to)[4]) { load_any(row, to, true); }
inline unsigned transposed(unsigned matrix) {
    const int g = cpu::lane() / 4, t = cpu::lane() % 4;
    return cpu::exchange(matrix, [&](auto* w) {
        const auto at = [&](int r, int c) { return static_cast<unsigned>(w[4 * r + c / 2] >> (16 * (c % 2)) & 0xffff); };
        return at(2 * t, g) | at(2 * t + 1, g) << 16;
    });
}
inline void mma(float (&to)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const int g = cpu::lane() / 4, t = cpu::lane() % 4;
    unsigned words[6][32];
    const unsigned own[6] = {a[0], a[1], a[2], a[3], b0, b1};
    for (int n = 0; n < 6; ++n)
        cpu::exchange(own[n], [&](auto* w) {
            for (int l = 0; l < 32; ++l) words[n][l] = static_cast<unsigned>(w[l]);
            return 0;
        });
    const auto value = [](unsigned word, int high) { return from_bf16(word >> (16 * high) & 0xffff); };
    for (int n = 0; n < 4; ++n)
        for (int k = 0; k < 16; ++k)
            to[n] += value(words[n / 2 + k / 8 * 2][4 * g + k % 8 / 2], k % 2) *
                     value(words[4 + k / 8][4 * (2 * t + n % 2) + k % 8 / 2], k % 2);
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
template <class T>
T load_any_new(const void* from) {
    cpu::expect_multiple(from, sizeof(T), "a load that is not aligned");
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
}
inline uint2 load_new(const void* from) { return load_any_new<uint2>(from); }
inline unsigned load_new_pair(const void* from) { return load_any_new<unsigned>(from); }
inline uint4 load_new_four(const void* from) { return load_any_new<uint4>(from); }
inline void push_four(const float* own, unsigned rank, float4 value, const Inbox& box) {
    cpu::expect_multiple(own, 16, "four words sent to a place that is not aligned");
    const float four[4] = {value.x, value.y, value.z, value.w};
    for (int n = 0; n < 4; ++n) push(own + n, rank, four[n], box);
}
