// Rows of numbers, cut among the threads that work on them.
//
// Rows whose width is a multiple of four are read and written in fours of neighbours; the others number by number. Both ways
// give each thread `4 * N` numbers of a row, in registers, as f32.
#pragma once

#include "primitives.cuh"

// Four neighbours, widened: 16 bytes of f32 or 8 of bf16 in memory.
struct alignas(16) Four {
    float values[4];
};
struct alignas(8) FourBf16 {
    uint32_t pairs[2];
};

// The numbers of a pair of bf16, whose bits are the upper half of the f32.
DEVICE float low_of_pair(uint32_t pair) { return float_of_bits(pair << 16); }
DEVICE float high_of_pair(uint32_t pair) { return float_of_bits(pair & 0xffff0000u); }

DEVICE Four load_raw(const float* address) { return *reinterpret_cast<const Four*>(address); }
DEVICE FourBf16 load_raw(const bf16* address) { return *reinterpret_cast<const FourBf16*>(address); }
DEVICE Four widened(Four x) { return x; }
DEVICE Four widened(FourBf16 x) {
    return Four{{low_of_pair(x.pairs[0]), high_of_pair(x.pairs[0]), low_of_pair(x.pairs[1]), high_of_pair(x.pairs[1])}};
}
template <typename T>
DEVICE Four load_four(const T* address) { return widened(load_raw(address)); }
// Four neighbours as they are in memory.
template <typename T>
using RawFour = decltype(load_raw(static_cast<const T*>(nullptr)));
// What is computed of these numbers from here on is not taken from what was computed of them before.
DEVICE void compute_again(Four& x) {
#pragma unroll
    for (int i = 0; i < 4; i++) hide_origin(x.values[i]);
}
DEVICE void compute_again(FourBf16& x) {
    hide_origin(x.pairs[0]);
    hide_origin(x.pairs[1]);
}
DEVICE void store_four(float* address, Four x) { *reinterpret_cast<Four*>(address) = x; }
// Rounds.
DEVICE void store_four(bf16* address, Four x) {
    FourBf16 rounded = {{pack_bf16(x.values[0], x.values[1]), pack_bf16(x.values[2], x.values[3])}};
    *reinterpret_cast<FourBf16*>(address) = rounded;
}

// 16 bytes of T, widened: 4 numbers of f32, 8 of bf16.
template <typename T>
struct Wide {
    static constexpr int N = Pack<T>::N;
    float values[N];
};
DEVICE Wide<float> load_wide(const float* address) {
    Four x = load_four(address);
    return Wide<float>{{x.values[0], x.values[1], x.values[2], x.values[3]}};
}
DEVICE Wide<bf16> widened(uint4 x) {
    return Wide<bf16>{{low_of_pair(x.x), high_of_pair(x.x), low_of_pair(x.y), high_of_pair(x.y), low_of_pair(x.z),
                       high_of_pair(x.z), low_of_pair(x.w), high_of_pair(x.w)}};
}
DEVICE Wide<bf16> load_wide(const bf16* address) { return widened(*reinterpret_cast<const uint4*>(address)); }
// Past the first cache, of what other blocks of this launch may have written (load_fresh).
DEVICE Four load_fresh_four(const float* address) {
    uint4 x = load_fresh(reinterpret_cast<const uint4*>(address));
    return Four{{float_of_bits(x.x), float_of_bits(x.y), float_of_bits(x.z), float_of_bits(x.w)}};
}
DEVICE Wide<float> load_fresh_wide(const float* address) {
    Four x = load_fresh_four(address);
    return Wide<float>{{x.values[0], x.values[1], x.values[2], x.values[3]}};
}
DEVICE Wide<bf16> load_fresh_wide(const bf16* address) { return widened(load_fresh(reinterpret_cast<const uint4*>(address))); }
DEVICE void store_wide(float* address, const Wide<float>& x) {
    store_four(address, Four{{x.values[0], x.values[1], x.values[2], x.values[3]}});
}
DEVICE uint4 rounded(const Wide<bf16>& x) {
    return {pack_bf16(x.values[0], x.values[1]), pack_bf16(x.values[2], x.values[3]), pack_bf16(x.values[4], x.values[5]),
            pack_bf16(x.values[6], x.values[7])};
}
// Rounds.
DEVICE void store_wide(bf16* address, const Wide<bf16>& x) { *reinterpret_cast<uint4*>(address) = rounded(x); }

// Whether an address is a multiple of `n_bytes`, a power of two.
DEVICE bool is_aligned(const void* address, unsigned n_bytes) {
    return (reinterpret_cast<uintptr_t>(address) & (n_bytes - 1)) == 0;
}

// The numbers of thread `thread` of the `n_threads` of a row; `fill` behind its end.
template <int N, bool IN_FOURS, typename T>
DEVICE void load_row(float (&values)[4 * N], const T* row, int width, int thread, int n_threads, float fill = 0.0f) {
    if constexpr (IN_FOURS) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            int at = (i * n_threads + thread) * 4;
            Four x = at < width ? load_four(row + at) : Four{{fill, fill, fill, fill}};
#pragma unroll
            for (int j = 0; j < 4; j++) values[4 * i + j] = x.values[j];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            int at = i * n_threads + thread;
            values[i] = at < width ? to_f32(row[at]) : fill;
        }
    }
}
// Where in the row number `i` of load_row stands; it grows with i.
template <bool IN_FOURS>
DEVICE int place_in_row(int i, int thread, int n_threads) {
    return IN_FOURS ? (i / 4 * n_threads + thread) * 4 + i % 4 : i * n_threads + thread;
}
// Writes what load_row reads.
template <int N, bool IN_FOURS, typename T>
DEVICE void store_row(T* row, const float (&values)[4 * N], int width, int thread, int n_threads) {
    if constexpr (IN_FOURS) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            int at = (i * n_threads + thread) * 4;
            Four x = {{values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]}};
            if (at < width) store_four(row + at, x);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            int at = i * n_threads + thread;
            if (at < width) row[at] = from_f32<T>(values[i]);
        }
    }
}

// As load_row and store_row, in packs of 16 bytes: whole ones fill the row.
template <int NUMBERS, typename T>
DEVICE void load_packs(float (&values)[NUMBERS], const T* row, int width, int thread, int n_threads, float fill = 0.0f) {
    constexpr int N = Wide<T>::N;
#pragma unroll
    for (int i = 0; i < NUMBERS / N; i++) {
        int at = (i * n_threads + thread) * N;
        if (at < width) {
            Wide<T> x = load_wide(row + at);
#pragma unroll
            for (int j = 0; j < N; j++) values[i * N + j] = x.values[j];
        } else {
#pragma unroll
            for (int j = 0; j < N; j++) values[i * N + j] = fill;
        }
    }
}
template <int NUMBERS, typename T>
DEVICE void store_packs(T* row, const float (&values)[NUMBERS], int width, int thread, int n_threads) {
    constexpr int N = Wide<T>::N;
#pragma unroll
    for (int i = 0; i < NUMBERS / N; i++) {
        int at = (i * n_threads + thread) * N;
        Wide<T> x;
#pragma unroll
        for (int j = 0; j < N; j++) x.values[j] = values[i * N + j];
        if (at < width) store_wide(row + at, x);
    }
}

// The sum over a group of neighbouring warps, the same bits in all their threads, through `partials` (one for each warp of the
// block). All threads of the block must call it; none may use `partials` again before the next sync_block().
DEVICE float group_sum(float x, float* partials, int warps_per_group) {
    x = warp_sum(x);
    if (warps_per_group == 1) return x;
    int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) partials[warp] = x;
    sync_block();
    const float* group = partials + warp / warps_per_group * warps_per_group;
    float sum = group[0];
    for (int i = 1; i < warps_per_group; i++) sum += group[i];
    return sum;
}
// As group_sum, the largest; a NaN counts only where all are.
DEVICE float group_max(float x, float* partials, int warps_per_group) {
    x = warp_max(x);
    if (warps_per_group == 1) return x;
    int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) partials[warp] = x;
    sync_block();
    const float* group = partials + warp / warps_per_group * warps_per_group;
    float max = group[0];
    for (int i = 1; i < warps_per_group; i++) max = fmaxf(max, group[i]);
    return max;
}
