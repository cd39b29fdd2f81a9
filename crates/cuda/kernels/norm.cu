// Root-mean-square norm and its gradient.
//
// A row belongs to a group of neighbouring warps, which is 16 numbers wide for each thread and so keeps the row in registers:
// it is read once. The groups of a block work on different rows at the same time. The kernels called `24` have as many numbers for
// each thread: rows of 3 * 2^k numbers leave none of their threads idle. The kernels called `any` take the other rows, too wide or
// not in fours: a block has one row and reads it twice. Which kernel runs depends on the width alone, and so does the order of
// a row's sum.
#include "norm.cuh"
#include "rows.cuh"

template <int N>
DEVICE float sum_of_squares(const float (&values)[N]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) sum += values[i] * values[i];
    return sum;
}
template <int N>
DEVICE void apply_norm(float (&values)[N], const float (&weights)[N], float inverse_rms) {
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = values[i] * inverse_rms * counted_weight(weights[i]);
}
// What the output was before the weight.
DEVICE float without_weight(float out, float weight) { return out * reciprocal_approx(counted_weight(weight)); }

// Fours of a thread, where the kernel does not say.
constexpr int N = 4;
// Of a row, and of a block where its groups have fewer: rows of up to 8192 numbers, backward of up to 4096; of 24 numbers for each
// thread up to 6144.
constexpr int MAX_THREADS = 512;
constexpr int MAX_BACKWARD_THREADS = 256;
constexpr int MAX_THREADS_OF_24 = 256;

// x is [rows, width]; out[row] = x[row] * inverse_rms[row] * weight, inverse_rms = 1 / sqrt(mean(x^2) + eps).
template <int N, typename T>
DEVICE void rms_norm(const float* x, const float* weight, float eps, T* out, float* inverse_rms, int n_rows, int width,
                     int threads_per_row, float* partials) {
    int thread = threadIdx.x % threads_per_row;
    int64_t row = int64_t(blockIdx.x) * (blockDim.x / threads_per_row) + threadIdx.x / threads_per_row;
    // Groups behind the last row have rows of width 0.
    int n = row < n_rows ? width : 0;
    float values[4 * N], weights[4 * N];
    load_row<N, true>(values, x + row * width, n, thread, threads_per_row);
    load_row<N, true>(weights, weight, n, thread, threads_per_row);
    float sum = group_sum(sum_of_squares(values), partials, threads_per_row / 32);
    float scale = inverse_rms_of(sum, width, eps);
    apply_norm(values, weights, scale);
    store_row<N, true>(out + row * width, values, n, thread, threads_per_row);
    if (n > 0 && thread == 0) inverse_rms[row] = scale;
}

// As rms_norm, a block for each row, in pieces of 4 N numbers for each thread.
template <typename T, bool IN_FOURS>
DEVICE void rms_norm_any(const float* x, const float* weight, float eps, T* out, float* inverse_rms, int width, float* partials) {
    constexpr int PIECE = 4 * N * MAX_THREADS;
    int64_t row = blockIdx.x;
    float sum = 0.0f;
    for (int start = 0; start < width; start += PIECE) {
        float values[4 * N];
        load_row<N, IN_FOURS>(values, x + row * width + start, width - start, threadIdx.x, MAX_THREADS);
#pragma unroll
        for (int i = 0; i < 4 * N; i++) sum += values[i] * values[i];
    }
    float scale = inverse_rms_of(block_sum<MAX_THREADS / 32>(sum, partials), width, eps);
    for (int start = 0; start < width; start += PIECE) {
        float values[4 * N], weights[4 * N];
        load_row<N, IN_FOURS>(values, x + row * width + start, width - start, threadIdx.x, MAX_THREADS);
        load_row<N, IN_FOURS>(weights, weight + start, width - start, threadIdx.x, MAX_THREADS);
        apply_norm(values, weights, scale);
        store_row<N, IN_FOURS>(out + row * width + start, values, width - start, threadIdx.x, MAX_THREADS);
    }
    if (threadIdx.x == 0) inverse_rms[row] = scale;
}

#define RMS_NORM_OF(name, N, T, threads, blocks)                                                                                 \
    KERNEL_BOUNDS(name, threads, blocks)(const float* x, const float* weight, float eps, T* out, float* inverse_rms, int n_rows, \
                                         int width, int threads_per_row) {                                                       \
        begin();                                                                                                                 \
        __shared__ float partials[MAX_THREADS / 32];                                                                             \
        rms_norm<N, T>(x, weight, eps, out, inverse_rms, n_rows, width, threads_per_row, partials);                              \
    }                                                                                                                            \
    EXPORT(name)
#define RMS_NORM(suffix, T)                                                                                                      \
    RMS_NORM_OF(rms_norm_##suffix, 4, T, MAX_THREADS, 2)                                                                         \
    RMS_NORM_OF(rms_norm_24_##suffix, 6, T, MAX_THREADS_OF_24, 3)                                                                \
    KERNEL_BOUNDS(rms_norm_any_##suffix, MAX_THREADS, 2)(const float* x, const float* weight, float eps, T* out,                \
                                                          float* inverse_rms, int width) {                                       \
        begin();                                                                                                                 \
        __shared__ float partials[MAX_THREADS / 32];                                                                             \
        if (width % 4 == 0) {                                                                                                    \
            rms_norm_any<T, true>(x, weight, eps, out, inverse_rms, width, partials);                                           \
        } else {                                                                                                                 \
            rms_norm_any<T, false>(x, weight, eps, out, inverse_rms, width, partials);                                          \
        }                                                                                                                        \
    }                                                                                                                            \
    EXPORT(rms_norm_any_##suffix)
RMS_NORM(f32, float)
RMS_NORM(bf16, bf16)

// With n = x * inverse_rms, which is out / weight, and g = d_out * weight: d_x += inverse_rms (g - n mean(g n)), and `rounded`, unless
// it is null, gets the new d_x rounded; partials[chunk] = the sum over the chunk's rows of d_out * n, each group's rows ascending, then over the
// groups. A block handles a chunk of rows_per_chunk rows, a multiple of its groups.
template <int N, typename T>
DEVICE void rms_norm_backward(const T* out, const float* weight, const float* inverse_rms, const T* d_out, float* d_x, T* rounded,
                              float* partials, int n_rows, int width, int rows_per_chunk, int threads_per_row, float* sums,
                              float (*warp_sums)[MAX_THREADS / 32]) {
    int thread = threadIdx.x % threads_per_row, group = threadIdx.x / threads_per_row;
    int n_groups = blockDim.x / threads_per_row;
    int64_t first = int64_t(blockIdx.x) * rows_per_chunk;
    float d_weights[4 * N] = {};
    for (int i = 0; i < rows_per_chunk; i += n_groups) {
        int64_t row = first + i + group;
        int n = row < n_rows ? width : 0;
        float scale = n > 0 ? inverse_rms[row] : 0.0f;
        RawFour<T> outs[N], grads[N];
        Four d_xs[N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            int at = (j * threads_per_row + thread) * 4;
            bool is_there = at < n;
            int64_t from = row * width + at;
            outs[j] = is_there ? load_raw(out + from) : RawFour<T>{};
            grads[j] = is_there ? load_raw(d_out + from) : RawFour<T>{};
            d_xs[j] = is_there ? load_four(d_x + from) : Four{};
        }
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < N; j++) {
            int at = (j * threads_per_row + thread) * 4;
            Four weights = at < n ? load_four(weight + at) : Four{}, of_out = widened(outs[j]), grad = widened(grads[j]);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float normed = without_weight(of_out.values[k], weights.values[k]);
                d_weights[4 * j + k] += grad.values[k] * normed;
                sum += grad.values[k] * weights.values[k] * normed;
            }
        }
        // Two sets of partial sums in turn: one is written while a slow warp may still read the other.
        float mean = group_sum(sum, warp_sums[i / n_groups % 2], threads_per_row / 32) / float(width);
#pragma unroll
        for (int j = 0; j < N; j++) {
            int at = (j * threads_per_row + thread) * 4;
            if (at >= n) continue;
            // Widened once more: kept, they would be most of the registers.
            compute_again(outs[j]);
            compute_again(grads[j]);
            Four weights = load_four(weight + at), of_out = widened(outs[j]), grad = widened(grads[j]);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float normed = without_weight(of_out.values[k], weights.values[k]);
                d_xs[j].values[k] += scale * (grad.values[k] * weights.values[k] - normed * mean);
            }
            store_four(d_x + row * width + at, d_xs[j]);
            if (rounded) store_four(rounded + row * width + at, d_xs[j]);
        }
    }
    // The groups in turn; each thread finds its own columns again.
    for (int turn = 0; turn < n_groups; turn++) {
        if (turn == group) {
            if (turn > 0) {
                float before[4 * N];
                load_row<N, true>(before, sums, width, thread, threads_per_row);
#pragma unroll
                for (int j = 0; j < 4 * N; j++) d_weights[j] = before[j] + d_weights[j];
            }
            float* to = turn + 1 < n_groups ? sums : partials + int64_t(blockIdx.x) * width;
            store_row<N, true>(to, d_weights, width, thread, threads_per_row);
        }
        if (turn + 1 < n_groups) sync_block();
    }
}

// As rms_norm_backward, for any width: a block has one row at a time, in pieces of 4 N numbers for each thread, and keeps the
// sums of its chunk in `partials`.
template <typename T, bool IN_FOURS>
DEVICE void rms_norm_backward_any(const T* out, const float* weight, const float* inverse_rms, const T* d_out, float* d_x,
                                   T* rounded, float* partials, int n_rows, int width, int rows_per_chunk,
                                   float (*warp_sums)[MAX_THREADS / 32]) {
    constexpr int PIECE = 4 * N * MAX_THREADS;
    int64_t first = int64_t(blockIdx.x) * rows_per_chunk;
    partials += int64_t(blockIdx.x) * width;
    for (int i = 0; i < rows_per_chunk && first + i < n_rows; i++) {
        int64_t row = first + i;
        float scale = inverse_rms[row], sum = 0.0f;
        for (int start = 0; start < width; start += PIECE) {
            float normed[4 * N], grads[4 * N], weights[4 * N], d_weights[4 * N];
            int n = width - start;
            load_row<N, IN_FOURS>(normed, out + row * width + start, n, threadIdx.x, MAX_THREADS);
            load_row<N, IN_FOURS>(grads, d_out + row * width + start, n, threadIdx.x, MAX_THREADS);
            load_row<N, IN_FOURS>(weights, weight + start, n, threadIdx.x, MAX_THREADS);
            load_row<N, IN_FOURS>(d_weights, partials + start, i > 0 ? n : 0, threadIdx.x, MAX_THREADS);
#pragma unroll
            for (int j = 0; j < 4 * N; j++) {
                normed[j] = without_weight(normed[j], weights[j]);
                d_weights[j] += grads[j] * normed[j];
                sum += grads[j] * weights[j] * normed[j];
            }
            store_row<N, IN_FOURS>(partials + start, d_weights, n, threadIdx.x, MAX_THREADS);
        }
        float mean = block_sum<MAX_THREADS / 32>(sum, warp_sums[i % 2]) / float(width);
        for (int start = 0; start < width; start += PIECE) {
            float normed[4 * N], grads[4 * N], weights[4 * N], d_xs[4 * N];
            int n = width - start;
            load_row<N, IN_FOURS>(normed, out + row * width + start, n, threadIdx.x, MAX_THREADS);
            load_row<N, IN_FOURS>(grads, d_out + row * width + start, n, threadIdx.x, MAX_THREADS);
            load_row<N, IN_FOURS>(weights, weight + start, n, threadIdx.x, MAX_THREADS);
            load_row<N, IN_FOURS>(d_xs, d_x + row * width + start, n, threadIdx.x, MAX_THREADS);
#pragma unroll
            for (int j = 0; j < 4 * N; j++) {
                d_xs[j] += scale * (grads[j] * weights[j] - without_weight(normed[j], weights[j]) * mean);
            }
            store_row<N, IN_FOURS>(d_x + row * width + start, d_xs, n, threadIdx.x, MAX_THREADS);
            if (rounded) store_row<N, IN_FOURS>(rounded + row * width + start, d_xs, n, threadIdx.x, MAX_THREADS);
        }
    }
}

#define RMS_NORM_BACKWARD_OF(name, N, T, blocks)                                                                                 \
    KERNEL_BOUNDS(name, MAX_BACKWARD_THREADS, blocks)(                                                                           \
        const T* out, const float* weight, const float* inverse_rms, const T* d_out, float* d_x, T* rounded, float* partials,    \
        int n_rows, int width, int rows_per_chunk, int threads_per_row) {                                                        \
        begin();                                                                                                                 \
        DYNAMIC_SHARED(shared);                                                                                                  \
        __shared__ float warp_sums[2][MAX_THREADS / 32];                                                                         \
        float* sums = reinterpret_cast<float*>(shared);                                                                          \
        rms_norm_backward<N, T>(out, weight, inverse_rms, d_out, d_x, rounded, partials, n_rows, width, rows_per_chunk,            \
                                threads_per_row, sums, warp_sums);                                                               \
    }                                                                                                                            \
    EXPORT(name)
#define RMS_NORM_BACKWARD(suffix, T, blocks, blocks_of_24)                                                                       \
    RMS_NORM_BACKWARD_OF(rms_norm_backward_##suffix, 4, T, blocks)                                                               \
    RMS_NORM_BACKWARD_OF(rms_norm_backward_24_##suffix, 6, T, blocks_of_24)                                                      \
    KERNEL_BOUNDS(rms_norm_backward_any_##suffix, MAX_THREADS, 1)(const T* out, const float* weight, const float* inverse_rms,  \
                                                                   const T* d_out, float* d_x, T* rounded, float* partials,      \
                                                                   int n_rows, int width, int rows_per_chunk) {                  \
        begin();                                                                                                                 \
        __shared__ float warp_sums[2][MAX_THREADS / 32];                                                                         \
        if (width % 4 == 0) {                                                                                                    \
            rms_norm_backward_any<T, true>(out, weight, inverse_rms, d_out, d_x, rounded, partials, n_rows, width,                \
                                            rows_per_chunk, warp_sums);                                                          \
        } else {                                                                                                                 \
            rms_norm_backward_any<T, false>(out, weight, inverse_rms, d_out, d_x, rounded, partials, n_rows, width,               \
                                             rows_per_chunk, warp_sums);                                                         \
        }                                                                                                                        \
    }                                                                                                                            \
    EXPORT(rms_norm_backward_any_##suffix)
RMS_NORM_BACKWARD(f32, float, 2, 1)
RMS_NORM_BACKWARD(bf16, bf16, 3, 2)

// Columns of a block of add_partials, and the parts into which it cuts the chunks.
constexpr int COLUMNS = 32;
constexpr int PARTS = 32;

// d_weight[i] += sum_chunk partials[chunk, i]: the chunks congruent modulo PARTS ascending, then over the parts.
KERNEL_BOUNDS(add_partials, COLUMNS * PARTS, 1)(const float* partials, float* d_weight, int n_chunks, int width) {
    begin();
    __shared__ float sums[PARTS][COLUMNS];
    int column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, part = threadIdx.x / COLUMNS;
    float sum = 0.0f;
    if (column < width) {
        int chunk = part;
        for (; chunk + 7 * PARTS < n_chunks; chunk += 8 * PARTS) {
            float values[8];
#pragma unroll
            for (int i = 0; i < 8; i++) values[i] = partials[int64_t(chunk + i * PARTS) * width + column];
#pragma unroll
            for (int i = 0; i < 8; i++) sum += values[i];
        }
        for (; chunk < n_chunks; chunk += PARTS) sum += partials[int64_t(chunk) * width + column];
    }
    sums[part][threadIdx.x % COLUMNS] = sum;
    sync_block();
    if (part == 0 && column < width) {
        float total = sums[0][threadIdx.x];
#pragma unroll
        for (int i = 1; i < PARTS; i++) total += sums[i][threadIdx.x];
        d_weight[column] += total;
    }
}
EXPORT(add_partials)
