// Keys and values of new rows go into the blocks of their sequences.
#include "append.cuh"

constexpr int APPEND_WARPS = 4;

// The wrapper counts threads by the same rule: packs where whole ones fill half a head, else single pairs.
#define ROTATE_AND_APPEND(suffix, T)                                                                                              \
    KERNEL_BOUNDS(rotate_and_append_##suffix, 256, 2)(T* qkv, const float* angle_table, const float* query_factors,              \
                                                      const uint32_t* entries, T* blocks, const uint32_t* tables,                \
                                                      const uint32_t* row_sequences, const uint32_t* row_positions, int n_rows,  \
                                                      int n_heads, int n_kv_heads, int head_dim, int table_stride) {             \
        begin();                                                                                                                  \
        Angles angles{angle_table, query_factors, entries};                                                                       \
        unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;                                                                  \
        if (head_dim / 2 % Pack<T>::N == 0) {                                                                                     \
            rotate_and_append<T, Pack<T>::N, HEADS_OF_MANY, Reading::OF_EARLIER>(                                                 \
                thread, qkv, angles, blocks, tables, row_sequences, row_positions, n_rows, n_heads, n_kv_heads, head_dim,         \
                table_stride);                                                                                                    \
        } else {                                                                                                                  \
            rotate_and_append<T, 1, HEADS_OF_MANY, Reading::OF_EARLIER>(                                                          \
                thread, qkv, angles, blocks, tables, row_sequences, row_positions, n_rows, n_heads, n_kv_heads, head_dim,         \
                table_stride);                                                                                                    \
        }                                                                                                                         \
    }                                                                                                                             \
    EXPORT(rotate_and_append_##suffix)
ROTATE_AND_APPEND(f32, float)
ROTATE_AND_APPEND(bf16, bf16)

// Writes keys, which are rotated already, and values of each row into their block in 8 bits: the codes and scales of crate `kernels`
// (attention/key_blocks.rs). A warp for each of a row's heads of keys and values; 128 threads.
template <typename T>
DEVICE void append_int8(const T* qkv, uint8_t* blocks, const uint32_t* tables, const uint32_t* row_sequences,
                        const uint32_t* row_positions, int n_rows, int n_heads, int n_kv_heads, int head_dim, int table_stride) {
    int lane = threadIdx.x % 32;
    int64_t warp = static_cast<int64_t>(blockIdx.x) * APPEND_WARPS + threadIdx.x / 32;
    int64_t row = warp / (2 * n_kv_heads);
    int head = warp % (2 * n_kv_heads);
    if (row >= n_rows || row_sequences[row] == NO_SLOT) return;
    const T* x = qkv + (row * (n_heads + 2 * n_kv_heads) + n_heads + head) * head_dim;
    float max = 0;
    for (int i = lane; i < head_dim; i += 32) {
        float magnitude = fabsf(to_f32(x[i]));
        // A NaN counts as infinite.
        max = fmaxf(max, magnitude < INFINITY ? magnitude : INFINITY);
    }
    max = warp_max(max);
    float scale = max / 127.0f, inverse = 0;
    if (max == INFINITY) {
        scale = float_of_bits(0x7fc00000u);
    } else if (scale >= 0x1p-126f) {
        inverse = 1.0f / scale;
    } else {
        scale = 0;
    }
    uint32_t position = row_positions[row];
    int64_t block = tables[static_cast<int64_t>(row_sequences[row]) * table_stride + position / KEY_BLOCK];
    uint8_t* of_head = blocks + (block * 2 * n_kv_heads + head) * head_bytes<int8_t>(head_dim);
    int8_t* codes = reinterpret_cast<int8_t*>(of_head);
    int slot = position % KEY_BLOCK;
    for (int i = lane; i < head_dim; i += 32) {
        codes[slot * head_dim + i] = inverse > 0 ? static_cast<int8_t>(rintf(to_f32(x[i]) * inverse)) : 0;
    }
    if (lane == 0) reinterpret_cast<float*>(of_head + KEY_BLOCK * head_dim)[slot] = scale;
}
#define APPEND_INT8(suffix, T)                                                                                                    \
    KERNEL(append_int8_##suffix)(const T* qkv, uint8_t* blocks, const uint32_t* tables, const uint32_t* row_sequences,            \
                                 const uint32_t* row_positions, int n_rows, int n_heads, int n_kv_heads, int head_dim,            \
                                 int table_stride) {                                                                              \
        begin();                                                                                                                  \
        append_int8<T>(qkv, blocks, tables, row_sequences, row_positions, n_rows, n_heads, n_kv_heads, head_dim, table_stride);   \
    }                                                                                                                             \
    EXPORT(append_int8_##suffix)
APPEND_INT8(f32, float)
APPEND_INT8(bf16, bf16)
