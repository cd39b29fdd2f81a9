// Rotary position embedding of rows, as rows.
#include "rope.cuh"

// The heads of a row, one after the other.
template <typename T>
struct RowPlace {
    T* row;
    int head_dim;

    DEVICE bool find() { return true; }
    DEVICE T* head(int i) const { return row + i * head_dim; }
};

// `out` may be `x`: the copied heads are left alone then.
template <typename T, int NUMBERS>
DEVICE void rotate_rows(const T* x, Angles angles, T* out, int n_rows, int n_query, int n_key, int n_copied, int head_dim,
                        float direction) {
    int n_all = n_query + n_key + n_copied;
    unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    int n_moved = x == out ? n_query + n_key : n_all;
    const auto place_of = [&](int64_t row) { return RowPlace<T>{out + row * n_all * head_dim, head_dim}; };
    rotate<T, NUMBERS, HEADS_OF_MANY, Reading::OF_EARLIER>(thread, x, angles, n_rows, n_query, n_key, n_all, n_moved, head_dim,
                                                           direction, place_of);
}

// The wrapper counts threads by the same rule: packs where whole ones fill half a head, else single pairs.
#define ROTATE(suffix, T)                                                                                                        \
    KERNEL_BOUNDS(rotate_##suffix, 256, 2)(const T* x, const float* table, const float* query_factors, const uint32_t* entries,  \
                                           T* out, int n_rows, int n_query, int n_key, int n_copied, int head_dim,               \
                                           float direction) {                                                                    \
        begin();                                                                                                                 \
        Angles angles{table, query_factors, entries};                                                                            \
        if (head_dim / 2 % Pack<T>::N == 0) {                                                                                    \
            rotate_rows<T, Pack<T>::N>(x, angles, out, n_rows, n_query, n_key, n_copied, head_dim, direction);                   \
        } else {                                                                                                                 \
            rotate_rows<T, 1>(x, angles, out, n_rows, n_query, n_key, n_copied, head_dim, direction);                            \
        }                                                                                                                        \
    }                                                                                                                            \
    EXPORT(rotate_##suffix)
ROTATE(f32, float)
ROTATE(bf16, bf16)
