// Rotary position embedding of the heads of rows, which go where the kernel says.
#pragma once

#include "rows.cuh"

// Who wrote what is read: an earlier launch, or other blocks of this one.
enum class Reading { OF_EARLIER, OF_LAUNCH };

// NUMBERS neighbours: 16 bytes of T, or one number.
template <typename T, int NUMBERS, Reading READING>
DEVICE void load_numbers(float (&values)[NUMBERS], const T* address) {
    if constexpr (NUMBERS == 1) {
        static_assert(READING == Reading::OF_EARLIER, "single numbers are read through the first cache");
        values[0] = to_f32(*address);
    } else {
        Wide<T> x = READING == Reading::OF_LAUNCH ? load_fresh_wide(address) : load_wide(address);
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

// Two numbers of a head that turn together.
DEVICE void rotate_pair(float& x1, float& x2, float cosine, float sine) {
    float first = x1;
    x1 = first * cosine - x2 * sine;
    x2 = x2 * cosine + first * sine;
}

// Heads of a thread where there are many rows.
constexpr int HEADS_OF_MANY = 4;

// Angles of rows: `table` is [positions, 2, head_dim / 2], cosines then sines, and row r has its entry entries[r].
struct Angles {
    const float* table;
    const float* query_factors;
    const uint32_t* entries;
};

// x [rows, heads, head_dim]: with x1 = x[i], x2 = x[i + head_dim / 2] of a head, out1 = x1 cos - x2 sin and
// out2 = x2 cos + x1 sin, the sine times `direction` (1, or -1 for the gradient), both times the row's factor in the first
// n_query heads. The next n_key heads have no factor, those after them are copied. Of the n_all heads of a row the first n_moved are
// written, where `place_of(row)` says once it was told to find(): head(i) is where head i begins. A row may be without a place.
//
// A thread has the pairs i .. i + NUMBERS of HEADS heads, which share the angles that it loads.
template <typename T, int NUMBERS, int HEADS, Reading READING, typename PlaceOf>
DEVICE void rotate(unsigned thread, const T* x, Angles angles, int n_rows, int n_query, int n_key, int n_all, int n_moved, int head_dim,
                   float direction, PlaceOf place_of) {
    int half = head_dim / 2, n_parts = half / NUMBERS;
    int n_groups = (n_moved + HEADS - 1) / HEADS;
    unsigned threads_per_row = n_groups * n_parts;
    int64_t row = thread / threads_per_row;
    if (row >= n_rows) return;
    int group = thread % threads_per_row / n_parts, i = thread % n_parts * NUMBERS;
    int64_t start = row * n_all * head_dim + i;

    uint32_t entry = angles.entries[row];
    auto place = place_of(row);
    // Set although not all are read: arrays that are set under a condition keep their registers through the whole kernel.
    float x1[HEADS][NUMBERS] = {}, x2[HEADS][NUMBERS] = {};
#pragma unroll
    for (int j = 0; j < HEADS; j++) {
        int head = group + j * n_groups;
        if (head < n_moved) {
            load_numbers<T, NUMBERS, READING>(x1[j], x + start + head * head_dim);
            load_numbers<T, NUMBERS, READING>(x2[j], x + start + head * head_dim + half);
        }
    }
    float factor = angles.query_factors[entry];
    const float* of_entry = angles.table + int64_t(entry) * head_dim + i;
    float cosines[NUMBERS], sines[NUMBERS];
#pragma unroll
    for (int k = 0; k < NUMBERS; k += NUMBERS == 1 ? 1 : 4) {
        if constexpr (NUMBERS == 1) {
            cosines[k] = of_entry[k];
            sines[k] = direction * of_entry[half + k];
        } else {
            Four cosine = load_four(of_entry + k), sine = load_four(of_entry + half + k);
#pragma unroll
            for (int l = 0; l < 4; l++) {
                cosines[k + l] = cosine.values[l];
                sines[k + l] = direction * sine.values[l];
            }
        }
    }
    if (!place.find()) return;
#pragma unroll
    for (int j = 0; j < HEADS; j++) {
        int head = group + j * n_groups;
        if (head >= n_moved) continue;
        if (head < n_query + n_key) {
            float by = head < n_query ? factor : 1.0f;
#pragma unroll
            for (int k = 0; k < NUMBERS; k++) {
                rotate_pair(x1[j][k], x2[j][k], by * cosines[k], by * sines[k]);
            }
        }
        T* to = place.head(head) + i;
        store_numbers<T, NUMBERS>(to, x1[j]);
        store_numbers<T, NUMBERS>(to + half, x2[j]);
    }
}
