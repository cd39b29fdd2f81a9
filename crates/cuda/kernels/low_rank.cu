// What low-rank changes need beside products.
#include "rows.cuh"

// out[i] = factor x[i], rounded to the type of `out`. A thread has four numbers.
template <typename T>
DEVICE void scale(const float* x, T* out, int64_t n, float factor) {
    int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (is_aligned(x, 16) && is_aligned(out, 4 * sizeof(T)) && at + 4 <= n) {
        Four values = load_four(x + at);
#pragma unroll
        for (int i = 0; i < 4; i++) values.values[i] *= factor;
        store_four(out + at, values);
    } else {
        for (int64_t i = at; i < n && i < at + 4; i++) out[i] = from_f32<T>(factor * x[i]);
    }
}

KERNEL(scale_f32)(const float* x, float* out, int64_t n, float factor) { scale(x, out, n, factor); }
EXPORT(scale_f32)
KERNEL(scale_bf16)(const float* x, bf16* out, int64_t n, float factor) { scale(x, out, n, factor); }
EXPORT(scale_bf16)
