// Causal attention within the documents of a batch, and its gradient, for heads of any size up to 1024, f32 and bf16: a warp for
// each row and head, no tensor cores. It is for shapes that attention_packed.cu has not.
//
// qkv is [tokens, n_heads + 2 n_kv_heads, head_dim]. A warp takes 32 keys (or queries) at a time: first each lane makes the score
// of one, then each lane adds up its own columns, of all 32. Positions are rows of the batch; a document begins at the last of
// `starts` that is not beyond the row.
#include "primitives.cuh"

namespace {

constexpr int MAX_HEAD_DIM = 1024;
constexpr int MAX_COLUMNS = MAX_HEAD_DIM / 32;

// The document of a row: where it begins, where it ends.
DEVICE int2 document_of(const uint32_t* starts, int n_documents, int row) {
    // The last start that is not beyond the row: those of empty documents before it are equal to it.
    int low = 0, high = n_documents;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (static_cast<int>(starts[middle]) <= row) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return make_int2(static_cast<int>(starts[low]), static_cast<int>(starts[low + 1]));
}

template <typename T>
DEVICE float dot(const T* a, const T* b, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) sum += to_f32(a[i]) * to_f32(b[i]);
    return sum;
}

// sums[i] += weight * row[lane + 32 i]
template <typename T>
DEVICE void add_row(float (&sums)[MAX_COLUMNS], float weight, const T* row, int head_dim) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < MAX_COLUMNS; i++) {
        if (i * 32 >= head_dim) break;
        if (lane + i * 32 < head_dim) sums[i] += weight * to_f32(row[lane + i * 32]);
    }
}

template <typename T>
DEVICE void write_row(const float (&sums)[MAX_COLUMNS], float factor, T* row, int head_dim) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < MAX_COLUMNS; i++) {
        if (i * 32 >= head_dim) break;
        if (lane + i * 32 < head_dim) row[lane + i * 32] = from_f32<T>(sums[i] * factor);
    }
}

// What a warp works on: a row and a head (of n_heads), none where there are too many warps.
struct Place {
    int row, head;
    bool exists;
};
DEVICE Place place_of(int n_rows, int n_heads) {
    const int64_t idx = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    return {static_cast<int>(idx / n_heads), static_cast<int>(idx % n_heads), idx < static_cast<int64_t>(n_rows) * n_heads};
}

template <typename T>
DEVICE void attend(const T* qkv, const uint32_t* starts, int n_documents, T* out, float* log_sum_exp, int n_rows, int n_heads,
                   int n_kv_heads, int head_dim, float scale, int window) {
    const Place at = place_of(n_rows, n_heads);
    if (!at.exists) return;
    const int lane = threadIdx.x % 32;
    const int64_t stride = static_cast<int64_t>(n_heads + 2 * n_kv_heads) * head_dim;
    const T* query = qkv + at.row * stride + at.head * head_dim;
    const T* keys = qkv + (n_heads + at.head / (n_heads / n_kv_heads)) * head_dim;
    const T* values = keys + n_kv_heads * head_dim;
    const int start = document_of(starts, n_documents, at.row).x;
    const int first = window <= at.row - start ? at.row - window + 1 : start;
    float max = -INFINITY, divisor = 0.0f, sums[MAX_COLUMNS] = {};
    for (int key = first; key <= at.row; key += 32) {
        const int n = at.row + 1 - key < 32 ? at.row + 1 - key : 32;
        const float score = lane < n ? scale * dot(query, keys + (key + lane) * stride, head_dim) : -INFINITY;
        const float greater = fmaxf(max, warp_max(score));
        const float p = lane < n ? expf(score - greater) : 0.0f;
        const float factor = expf(max - greater);
        max = greater;
        divisor = divisor * factor + warp_sum(p);
#pragma unroll
        for (int i = 0; i < MAX_COLUMNS; i++) sums[i] *= factor;
        const float rounded = to_f32(from_f32<T>(p));
        for (int i = 0; i < n; i++) add_row(sums, shuffle(rounded, i), values + (key + i) * stride, head_dim);
    }
    const int64_t row_head = static_cast<int64_t>(at.row) * n_heads + at.head;
    write_row(sums, 1.0f / divisor, out + row_head * head_dim, head_dim);
    if (lane == 0) log_sum_exp[row_head] = max + logf(divisor);
}

template <typename T>
DEVICE void row_products(const T* out, const T* d_out, float* delta, int n_rows, int n_heads, int head_dim) {
    const Place at = place_of(n_rows, n_heads);
    if (!at.exists) return;
    const int64_t row_head = static_cast<int64_t>(at.row) * n_heads + at.head;
    float sum = 0.0f;
    for (int i = threadIdx.x % 32; i < head_dim; i += 32) {
        sum += to_f32(out[row_head * head_dim + i]) * to_f32(d_out[row_head * head_dim + i]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[row_head] = sum;
}

// P and the gradient of the score, rounded, of a query and a key.
struct PairGradient {
    float p, d_score;
};
template <typename T>
DEVICE PairGradient pair_gradient(const T* query, const T* key, const T* value, const T* d_out, float log_sum_exp, float delta,
                                  int head_dim, float scale) {
    const float p = expf(scale * dot(query, key, head_dim) - log_sum_exp);
    const float d_score = scale * p * (dot(d_out, value, head_dim) - delta);
    return {to_f32(from_f32<T>(p)), to_f32(from_f32<T>(d_score))};
}

// Gradient of a query, over the keys that it sees, ascending.
template <typename T>
DEVICE void query_gradient(const T* qkv, const uint32_t* starts, int n_documents, const float* log_sum_exp, const float* delta,
                           const T* d_out, T* d_qkv, int n_rows, int n_heads, int n_kv_heads, int head_dim, float scale,
                           int window) {
    const Place at = place_of(n_rows, n_heads);
    if (!at.exists) return;
    const int lane = threadIdx.x % 32;
    const int64_t stride = static_cast<int64_t>(n_heads + 2 * n_kv_heads) * head_dim;
    const int64_t row_head = static_cast<int64_t>(at.row) * n_heads + at.head;
    const T* query = qkv + at.row * stride + at.head * head_dim;
    const T* keys = qkv + (n_heads + at.head / (n_heads / n_kv_heads)) * head_dim;
    const T* values = keys + n_kv_heads * head_dim;
    const int start = document_of(starts, n_documents, at.row).x;
    const int first = window <= at.row - start ? at.row - window + 1 : start;
    float sums[MAX_COLUMNS] = {};
    for (int key = first; key <= at.row; key += 32) {
        const int n = at.row + 1 - key < 32 ? at.row + 1 - key : 32;
        PairGradient pair = {0.0f, 0.0f};
        if (lane < n) {
            pair = pair_gradient(query, keys + (key + lane) * stride, values + (key + lane) * stride, d_out + row_head * head_dim,
                                 log_sum_exp[row_head], delta[row_head], head_dim, scale);
        }
        for (int i = 0; i < n; i++) add_row(sums, shuffle(pair.d_score, i), keys + (key + i) * stride, head_dim);
    }
    write_row(sums, 1.0f, d_qkv + at.row * stride + at.head * head_dim, head_dim);
}

// Gradients of a key and its value, over the heads of its group and the queries that see it, ascending.
template <typename T>
DEVICE void key_gradient(const T* qkv, const uint32_t* starts, int n_documents, const float* log_sum_exp, const float* delta,
                         const T* d_out, T* d_qkv, int n_rows, int n_heads, int n_kv_heads, int head_dim, float scale, int window) {
    const Place at = place_of(n_rows, n_kv_heads);
    if (!at.exists) return;
    const int lane = threadIdx.x % 32, group_len = n_heads / n_kv_heads;
    const int64_t stride = static_cast<int64_t>(n_heads + 2 * n_kv_heads) * head_dim;
    const int64_t key_at = at.row * stride + (n_heads + at.head) * head_dim, value_at = key_at + n_kv_heads * head_dim;
    const int document_end = document_of(starts, n_documents, at.row).y;
    const int end = window < document_end - at.row ? at.row + window : document_end;
    float d_key[MAX_COLUMNS] = {}, d_value[MAX_COLUMNS] = {};
    for (int head = at.head * group_len; head < (at.head + 1) * group_len; head++) {
        for (int row = at.row; row < end; row += 32) {
            const int n = end - row < 32 ? end - row : 32;
            const T* const queries = qkv + row * stride + head * head_dim;
            const int64_t row_head = static_cast<int64_t>(row) * n_heads + head;
            const T* const d_outs = d_out + row_head * head_dim;
            PairGradient pair = {0.0f, 0.0f};
            if (lane < n) {
                const int64_t here = row_head + lane * n_heads;
                pair = pair_gradient(queries + lane * stride, qkv + key_at, qkv + value_at, d_out + here * head_dim,
                                     log_sum_exp[here], delta[here], head_dim, scale);
            }
            for (int i = 0; i < n; i++) {
                add_row(d_key, shuffle(pair.d_score, i), queries + i * stride, head_dim);
                add_row(d_value, shuffle(pair.p, i), d_outs + static_cast<int64_t>(i) * n_heads * head_dim, head_dim);
            }
        }
    }
    write_row(d_key, 1.0f, d_qkv + key_at, head_dim);
    write_row(d_value, 1.0f, d_qkv + value_at, head_dim);
}

}  // namespace

// Blocks of 128 threads, a warp for each row and head, heads fastest; for the gradients of keys a warp for each row and KV head.

#define ATTENTION_PLAIN(T, suffix)                                                                                            \
    KERNEL_BOUNDS(attention_plain_##suffix, 128, 1)                                                                           \
    (const T* qkv, const uint32_t* starts, int n_documents, T* out, float* log_sum_exp, int n_rows, int n_heads,              \
     int n_kv_heads, int head_dim, float scale, int window) {                                                                 \
        attend<T>(qkv, starts, n_documents, out, log_sum_exp, n_rows, n_heads, n_kv_heads, head_dim, scale, window);          \
    }                                                                                                                         \
    EXPORT(attention_plain_##suffix)                                                                                          \
    KERNEL_BOUNDS(attention_plain_delta_##suffix, 128, 1)                                                                     \
    (const T* out, const T* d_out, float* delta, int n_rows, int n_heads, int head_dim) {                                     \
        row_products<T>(out, d_out, delta, n_rows, n_heads, head_dim);                                                        \
    }                                                                                                                         \
    EXPORT(attention_plain_delta_##suffix)                                                                                    \
    KERNEL_BOUNDS(attention_plain_backward_queries_##suffix, 128, 1)                                                          \
    (const T* qkv, const uint32_t* starts, int n_documents, const float* log_sum_exp, const float* delta, const T* d_out,     \
     T* d_qkv, int n_rows, int n_heads, int n_kv_heads, int head_dim, float scale, int window) {                              \
        query_gradient<T>(qkv, starts, n_documents, log_sum_exp, delta, d_out, d_qkv, n_rows, n_heads, n_kv_heads, head_dim,  \
                          scale, window);                                                                                     \
    }                                                                                                                         \
    EXPORT(attention_plain_backward_queries_##suffix)                                                                         \
    KERNEL_BOUNDS(attention_plain_backward_keys_##suffix, 128, 1)                                                             \
    (const T* qkv, const uint32_t* starts, int n_documents, const float* log_sum_exp, const float* delta, const T* d_out,     \
     T* d_qkv, int n_rows, int n_heads, int n_kv_heads, int head_dim, float scale, int window) {                              \
        key_gradient<T>(qkv, starts, n_documents, log_sum_exp, delta, d_out, d_qkv, n_rows, n_heads, n_kv_heads, head_dim,    \
                        scale, window);                                                                                       \
    }                                                                                                                         \
    EXPORT(attention_plain_backward_keys_##suffix)

ATTENTION_PLAIN(float, f32)
ATTENTION_PLAIN(bf16, bf16)
