// New rows of keys and values on their way into the paged cache.
#pragma once

#include "paged_cache.cuh"
#include "rope.cuh"

// Where the heads of a row of qkv go: queries to where they are, keys and values into the block of its position. A row without a
// sequence has the sequence NO_SLOT, and no place.
template <typename T>
struct CachePlace {
    T *row, *blocks;
    const uint32_t* tables;
    uint32_t sequence, position;
    int n_heads, n_kv_heads, head_dim, table_stride;
    int64_t block;

    DEVICE bool find() {
        if (sequence == NO_SLOT) return false;
        block = tables[static_cast<int64_t>(sequence) * table_stride + position / KEY_BLOCK];
        return true;
    }
    DEVICE T* head(int i) const {
        if (i < n_heads) return row + i * head_dim;
        // Keys and values have one head after the other, in a row as in a block.
        int64_t head = block * 2 * n_kv_heads + i - n_heads;
        return blocks + (head * KEY_BLOCK + position % KEY_BLOCK) * head_dim;
    }
};

// Rotates the queries of each row in their place, and its keys on the way into their block, to which its values go too.
template <typename T, int NUMBERS, int HEADS, Reading READING>
DEVICE void rotate_and_append(unsigned thread, T* qkv, Angles angles, T* blocks, const uint32_t* tables,
                              const uint32_t* row_sequences, const uint32_t* row_positions, int n_rows, int n_heads, int n_kv_heads,
                              int head_dim, int table_stride) {
    int n_all = n_heads + 2 * n_kv_heads;
    auto place_of = [&](int64_t row) {
        return CachePlace<T>{qkv + row * n_all * head_dim, blocks,     tables,   row_sequences[row], row_positions[row],
                             n_heads,                      n_kv_heads, head_dim, table_stride,       0};
    };
    rotate<T, NUMBERS, HEADS, READING>(thread, qkv, angles, n_rows, n_heads, n_kv_heads, n_all, n_all, head_dim, 1.0f, place_of);
}
