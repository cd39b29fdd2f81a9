// What the kernels of attention on Hopper have in common.
#pragma once

#include "rope.cuh"
#include "wgmma.cuh"

// Elsewhere the files that include this one are empty.
#if defined(GALERNE_EMULATOR) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER

namespace {

constexpr int TILE = 128;
// Rows of a warpgroup.
constexpr int GROUP_ROWS = 64;
// Columns of a panel, see wgmma.cuh.
constexpr int PANEL = 64;

DEVICE int min_of(int a, int b) { return a < b ? a : b; }
DEVICE int max_of(int a, int b) { return a > b ? a : b; }
DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
// The numbers of pack_bf16().
DEVICE float unpack_low(uint32_t pair) { return __uint_as_float(pair << 16); }
DEVICE float unpack_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Columns from 16 k on of an operand whose panels have ROWS rows.
template <int ROWS>
DEVICE uint64_t column_16(uint64_t operand, int k) {
    return wgmma_moved(operand, k % 4 * 32 + k / 4 * ROWS * 128);
}
// Rows from 16 k on.
DEVICE uint64_t row_16(uint64_t operand, int k) { return wgmma_moved(operand, k * 16 * 128); }

// Copies rows of D numbers into panels, by N_THREADS threads: each a chunk of every STEP-th row.
template <int D, int N_THREADS>
struct PanelCopier {
    static constexpr int CHUNKS = D / 8, STEP = N_THREADS / CHUNKS;
    static_assert(STEP % 8 == 0, "the place of a chunk is the same in all rows of a thread");

    // Where this thread reads, of rows that begin at `rows`.
    DEVICE static const bf16* from(const bf16* rows, int64_t stride) {
        return rows + threadIdx.x / CHUNKS * stride + threadIdx.x % CHUNKS * 8;
    }
    // Begins to copy N_ROWS rows, zeros beyond the first n_valid. `from` is this thread's place in the first.
    template <int N_ROWS>
    DEVICE static void copy(bf16* panels, const bf16* from, int64_t stride, int n_valid) {
        static_assert(N_ROWS % STEP == 0, "whole steps");
        const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        bf16* const to = panels + chunk / 8 * N_ROWS * PANEL + row * PANEL + (chunk % 8 ^ row & 7) * 8;
#pragma unroll
        for (int i = 0; i < N_ROWS / STEP; i++) {
            copy_16_async(to + i * STEP * PANEL, from, row + i * STEP < n_valid);
            from += STEP * stride;
        }
    }
};

// Makes the scores of keys that a row does not see -infinity. The first row of the warp is `lag` positions later than the first
// key.
template <int N, int M>
DEVICE void mask_keys(float (&scores)[M][4], int lag, int window) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        // Counted from the first of this lane's keys, the row sees those from `low` to `high`.
        const int high = lag + half * 8 + lane / 4 - lane % 4 * 2;
        const int low = high - window + 1;
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (n * 8 + i > high || n * 8 + i < low) scores[n][2 * half + i] = -infinity();
            }
    }
}

// Turns a warp's sums [16, D], a gradient of rotated rows, back by the angles of their rows below n_valid, the first of which is
// `first_row` of the batch. A lane has both numbers of a pair.
template <int D>
DEVICE void rotate_back(float (&sums)[D / 8][4], Angles angles, int64_t first_row, int n_valid) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = half * 8 + lane / 4;
        if (row >= n_valid) continue;
        const float* const cosines = angles.table + static_cast<int64_t>(angles.entries[first_row + row]) * D + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            const float2 cosine = *reinterpret_cast<const float2*>(cosines + n * 8);
            const float2 sine = *reinterpret_cast<const float2*>(cosines + D / 2 + n * 8);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &x1 = sums[n][2 * half + i], &x2 = sums[n + D / 16][2 * half + i];
                const float first = x1, c = i == 0 ? cosine.x : cosine.y, s = i == 0 ? sine.x : sine.y;
                x1 = first * c + x2 * s;
                x2 = x2 * c - first * s;
            }
        }
    }
}

// Writes a warp's sums [16, D], times `factors` (of this lane's rows), as bf16 to the rows of a head below n_valid. `rows` are
// 16 rows of shared memory that no other warp uses.
template <int D>
DEVICE void write_rows(const float (&sums)[D / 8][4], const float (&factors)[2], bf16* rows, bf16* global, int64_t stride,
                       int n_valid) {
    constexpr int CHUNKS = D / 8, STEP = 32 / CHUNKS;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = half * 8 + lane / 4;
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) {
            bf16* const to = rows + row * D + (n ^ (row & 7)) * 8 + lane % 4 * 2;
            *reinterpret_cast<uint32_t*>(to) = pack_bf16(sums[n][2 * half] * factors[half], sums[n][2 * half + 1] * factors[half]);
        }
    }
    sync_warp();
    const int chunk = lane % CHUNKS;
#pragma unroll
    for (int i = 0; i < 16 / STEP; i++) {
        const int row = lane / CHUNKS + i * STEP;
        if (row < n_valid) store_pack(global + row * stride + chunk * 8, load_pack(rows + row * D + (chunk ^ (row & 7)) * 8));
    }
}

}  // namespace

#endif
