// Rotary position embedding.
#include "rows.cuh"

// Heads of a thread, which share the angles that it loads.
constexpr int HEADS = 4;

// NUMBERS neighbours: 16 bytes of T, or one number.
template <typename T, int NUMBERS>
DEVICE void load_numbers(float (&values)[NUMBERS], const T* address) {
    if constexpr (NUMBERS == 1) {
        values[0] = to_f32(*address);
    } else {
        Wide<T> x = load_wide(address);
#pragma unroll
        for (int i = 0; i < NUMBERS; i++) values[i] = x.values[i];
    }
}
template <typename T, int NUMBERS>
DEVICE void store_numbers(T* address, const float (&values)[NUMBERS]) {
    if constexpr (NUMBERS == 1) {
        *address = from_f32<T>(values[0]);
    } else {
        Wide<T> x;
#pragma unroll
        for (int i = 0; i < NUMBERS; i++) x.values[i] = values[i];
        store_wide(address, x);
    }
}

// x, out [rows, heads, head_dim]: with x1 = x[i], x2 = x[i + head_dim / 2] of a head, out1 = x1 cos - x2 sin and
// out2 = x2 cos + x1 sin, the sine times `direction` (1, or -1 for the gradient), both times the row's factor in the first
// n_query heads. The next n_key heads have no factor, the last n_copied are copied. `out` may be `x`.
//
// `table` is [positions, 2, head_dim / 2], cosines then sines, and row r has its entry entries[r]. A thread has the pairs
// i .. i + NUMBERS of HEADS heads.
template <typename T, int NUMBERS>
DEVICE void rotate(const T* x, const float* table, const float* query_factors, const uint32_t* entries, T* out, int n_rows,
                   int n_query, int n_key, int n_copied, int head_dim, float direction) {
    int half = head_dim / 2, n_parts = half / NUMBERS;
    int n_heads = n_query + n_key + (x == out ? 0 : n_copied);
    int n_groups = (n_heads + HEADS - 1) / HEADS;
    unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned threads_per_row = n_groups * n_parts;
    int64_t row = thread / threads_per_row;
    if (row >= n_rows) return;
    int group = thread % threads_per_row / n_parts, i = thread % n_parts * NUMBERS;
    int64_t start = row * (n_query + n_key + n_copied) * head_dim + i;

    float x1[HEADS][NUMBERS], x2[HEADS][NUMBERS];
#pragma unroll
    for (int j = 0; j < HEADS; j++) {
        int head = group + j * n_groups;
        if (head < n_heads) {
            load_numbers<T, NUMBERS>(x1[j], x + start + head * head_dim);
            load_numbers<T, NUMBERS>(x2[j], x + start + head * head_dim + half);
        }
    }
    uint32_t entry = entries[row];
    float factor = query_factors[entry];
    const float* angles = table + int64_t(entry) * head_dim + i;
    float cosines[NUMBERS], sines[NUMBERS];
#pragma unroll
    for (int k = 0; k < NUMBERS; k += NUMBERS == 1 ? 1 : 4) {
        if constexpr (NUMBERS == 1) {
            cosines[k] = angles[k];
            sines[k] = direction * angles[half + k];
        } else {
            Four cosine = load_four(angles + k), sine = load_four(angles + half + k);
#pragma unroll
            for (int l = 0; l < 4; l++) {
                cosines[k + l] = cosine.values[l];
                sines[k + l] = direction * sine.values[l];
            }
        }
    }
#pragma unroll
    for (int j = 0; j < HEADS; j++) {
        int head = group + j * n_groups;
        if (head >= n_heads) continue;
        if (head < n_query + n_key) {
            float by = head < n_query ? factor : 1.0f;
#pragma unroll
            for (int k = 0; k < NUMBERS; k++) {
                float cosine = by * cosines[k], sine = by * sines[k], first = x1[j][k];
                x1[j][k] = first * cosine - x2[j][k] * sine;
                x2[j][k] = x2[j][k] * cosine + first * sine;
            }
        }
        store_numbers<T, NUMBERS>(out + start + head * head_dim, x1[j]);
        store_numbers<T, NUMBERS>(out + start + head * head_dim + half, x2[j]);
    }
}

// The wrapper counts threads by the same rule: packs where whole ones fill half a head, else single pairs.
#define ROTATE(suffix, T)                                                                                                        \
    KERNEL_BOUNDS(rotate_##suffix, 256, 2)(const T* x, const float* table, const float* query_factors, const uint32_t* entries,  \
                                           T* out, int n_rows, int n_query, int n_key, int n_copied, int head_dim,               \
                                           float direction) {                                                                    \
        if (head_dim / 2 % Pack<T>::N == 0) {                                                                                    \
            rotate<T, Pack<T>::N>(x, table, query_factors, entries, out, n_rows, n_query, n_key, n_copied, head_dim, direction); \
        } else {                                                                                                                 \
            rotate<T, 1>(x, table, query_factors, entries, out, n_rows, n_query, n_key, n_copied, head_dim, direction);          \
        }                                                                                                                        \
    }                                                                                                                            \
    EXPORT(rotate_##suffix)
ROTATE(f32, float)
ROTATE(bf16, bf16)
