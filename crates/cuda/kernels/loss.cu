// Softmax cross-entropy with its gradient, and the likeliest token.
#include "rows.cuh"

constexpr float MINUS_INFINITY = -__builtin_inff();

// exp(x); the argument is at most 0, so that its rounding is that of a small probability.
DEVICE float exp_of(float x) { return exp2_approx(x * LOG2_E); }

// The loss of a row, and its gradient at the target, over what stood there; by the thread that wrote that. A target beyond the
// vocabulary makes the loss NaN.
template <typename T>
DEVICE void finish_row(const float* logits, uint32_t target, float weight, float* loss, T* d_logits, int vocab, float max,
                       float sum) {
    if (target >= unsigned(vocab)) {
        *loss = __builtin_nanf("");
        return;
    }
    float logit = logits[target];
    *loss = logf(sum) + max - logit;
    if (d_logits) d_logits[target] = from_f32<T>(weight * (exp_of(logit - max) / sum - 1.0f));
}

// The kernels below compute, for each row, losses[row] and, unless d_logits is null, d_logits[row, i] =
// weight (softmax(logits)[i] - [i = target]); both are 0 where the weight is 0, and NaN where a logit is NaN or infinite, or all
// are -infinity. logits [rows, vocab]; targets, weights, losses [rows].

constexpr int KEPT_THREADS = 1024;
constexpr int KEPT_FOURS = 8;

// For vocabularies in fours of up to 4 KEPT_THREADS KEPT_FOURS tokens. A block walks over rows; it keeps a row in registers while
// the next one is on its way to shared memory, where each thread reads what it copied itself.
template <typename T>
DEVICE void cross_entropy_kept(const float* logits, const uint32_t* targets, const float* weights, float* losses, T* d_logits,
                               int n_rows, int vocab, Four* shared, float* max_partials, float* sum_partials) {
    const int n_fours = vocab / 4;
    auto fetch = [&](int64_t row) {
        if (row < n_rows && weights[row] != 0.0f) {
            const float* from = logits + row * vocab;
#pragma unroll
            for (int i = 0; i < KEPT_FOURS; i++) {
                int at = i * KEPT_THREADS + threadIdx.x;
                if (at < n_fours) copy_16_async(shared + at, from + at * 4, true);
            }
        }
        copies_commit();
    };
    fetch(blockIdx.x);
    for (int64_t row = blockIdx.x; row < n_rows; row += gridDim.x) {
        float weight = weights[row];
        T* d_row = d_logits ? d_logits + row * vocab : nullptr;
        float values[4 * KEPT_FOURS];
        if (weight == 0.0f) {
            fetch(row + gridDim.x);
            if (threadIdx.x == 0) losses[row] = 0.0f;
#pragma unroll
            for (int i = 0; i < 4 * KEPT_FOURS; i++) values[i] = 0.0f;
            if (d_row) store_row<KEPT_FOURS, true>(d_row, values, vocab, threadIdx.x, KEPT_THREADS);
            continue;
        }
        copies_wait<0>();
        load_row<KEPT_FOURS, true>(values, &shared->values[0], vocab, threadIdx.x, KEPT_THREADS, MINUS_INFINITY);
        fetch(row + gridDim.x);
        float max = MINUS_INFINITY, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 4 * KEPT_FOURS; i++) max = fmaxf(max, values[i]);
        max = block_max<KEPT_THREADS / 32>(max, max_partials);
#pragma unroll
        for (int i = 0; i < 4 * KEPT_FOURS; i++) {
            values[i] = exp_of(values[i] - max);
            sum += values[i];
        }
        sum = block_sum<KEPT_THREADS / 32>(sum, sum_partials);
        if (d_row) {
            float scale = weight / sum;
#pragma unroll
            for (int i = 0; i < 4 * KEPT_FOURS; i++) values[i] *= scale;
            store_row<KEPT_FOURS, true>(d_row, values, vocab, threadIdx.x, KEPT_THREADS);
        }
        uint32_t target = targets[row];
        if (target / 4 % KEPT_THREADS == threadIdx.x) {
            finish_row(logits + row * vocab, target, weight, losses + row, d_row, vocab, max, sum);
        }
    }
}

constexpr int ANY_THREADS = 256;
constexpr int N = 4;

// For any vocabulary: a block of up to ANY_THREADS threads has one row, and reads it a second time for the gradient.
template <typename T, bool IN_FOURS>
DEVICE void cross_entropy_any(const float* logits, const uint32_t* targets, const float* weights, float* losses, T* d_logits,
                              int vocab, float* max_partials, float* sum_partials) {
    int64_t row = blockIdx.x;
    const int n_threads = blockDim.x, piece = 4 * N * n_threads;
    logits += row * vocab;
    if (d_logits) d_logits += row * vocab;
    float weight = weights[row];
    if (weight == 0.0f) {
        if (threadIdx.x == 0) losses[row] = 0.0f;
        if (d_logits) {
            const float zeros[4 * N] = {};
            for (int start = 0; start < vocab; start += piece) {
                store_row<N, IN_FOURS>(d_logits + start, zeros, vocab - start, threadIdx.x, n_threads);
            }
        }
        return;
    }
    // This thread's largest logit, and the sum of exp(logit - largest).
    float max = MINUS_INFINITY, sum = 0.0f;
    for (int start = 0; start < vocab; start += piece) {
        float values[4 * N], new_max = max;
        load_row<N, IN_FOURS>(values, logits + start, vocab - start, threadIdx.x, n_threads, MINUS_INFINITY);
#pragma unroll
        for (int i = 0; i < 4 * N; i++) new_max = fmaxf(new_max, values[i]);
        if (new_max > max) {
            sum *= exp_of(max - new_max);
            max = new_max;
        }
        // Where all so far are -infinity, their share is 0 and not NaN.
        float base = max == MINUS_INFINITY ? 0.0f : max;
#pragma unroll
        for (int i = 0; i < 4 * N; i++) sum += exp_of(values[i] - base);
    }
    float row_max = group_max(max, max_partials, n_threads / 32);
    sum = group_sum(sum * exp_of(max - row_max), sum_partials, n_threads / 32);
    if (d_logits) {
        float scale = weight / sum;
        for (int start = 0; start < vocab; start += piece) {
            float values[4 * N];
            load_row<N, IN_FOURS>(values, logits + start, vocab - start, threadIdx.x, n_threads, MINUS_INFINITY);
#pragma unroll
            for (int i = 0; i < 4 * N; i++) values[i] = exp_of(values[i] - row_max) * scale;
            store_row<N, IN_FOURS>(d_logits + start, values, vocab - start, threadIdx.x, n_threads);
        }
    }
    uint32_t target = targets[row];
    if ((IN_FOURS ? target / 4 : target) % n_threads == threadIdx.x) {
        finish_row(logits, target, weight, losses + row, d_logits, vocab, row_max, sum);
    }
}

#define CROSS_ENTROPY(suffix, T)                                                                                                 \
    KERNEL_BOUNDS(cross_entropy_kept_##suffix, KEPT_THREADS, 1)(const float* logits, const uint32_t* targets,                    \
                                                                const float* weights, float* losses, T* d_logits, int n_rows,    \
                                                                int vocab) {                                                     \
        DYNAMIC_SHARED(shared);                                                                                                  \
        __shared__ float max_partials[KEPT_THREADS / 32], sum_partials[KEPT_THREADS / 32];                                       \
        cross_entropy_kept(logits, targets, weights, losses, d_logits, n_rows, vocab, reinterpret_cast<Four*>(shared),           \
                           max_partials, sum_partials);                                                                          \
    }                                                                                                                            \
    EXPORT(cross_entropy_kept_##suffix)                                                                                          \
    KERNEL_BOUNDS(cross_entropy_any_##suffix, ANY_THREADS, 3)(const float* logits, const uint32_t* targets,                      \
                                                              const float* weights, float* losses, T* d_logits, int vocab) {     \
        __shared__ float max_partials[ANY_THREADS / 32], sum_partials[ANY_THREADS / 32];                                         \
        if (vocab % 4 == 0) {                                                                                                    \
            cross_entropy_any<T, true>(logits, targets, weights, losses, d_logits, vocab, max_partials, sum_partials);           \
        } else {                                                                                                                 \
            cross_entropy_any<T, false>(logits, targets, weights, losses, d_logits, vocab, max_partials, sum_partials);          \
        }                                                                                                                        \
    }                                                                                                                            \
    EXPORT(cross_entropy_any_##suffix)
CROSS_ENTROPY(f32, float)
CROSS_ENTROPY(bf16, bf16)

constexpr int LIKELIEST_THREADS = 1024;

// The largest so far and where it is: of equals the first.
struct Best {
    float value;
    uint32_t id;
    bool has_nan;
};
DEVICE Best better(Best a, Best b) {
    bool second = b.value > a.value || (b.value == a.value && b.id < a.id);
    return {second ? b.value : a.value, second ? b.id : a.id, a.has_nan || b.has_nan};
}

template <bool IN_FOURS>
DEVICE Best best_of_thread(const float* logits, int vocab) {
    Best best = {MINUS_INFINITY, UINT32_MAX, false};
    for (int start = 0; start < vocab; start += 4 * N * LIKELIEST_THREADS) {
        float values[4 * N];
        load_row<N, IN_FOURS>(values, logits + start, vocab - start, threadIdx.x, LIKELIEST_THREADS, MINUS_INFINITY);
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            if (values[i] > best.value) {
                best.value = values[i];
                best.id = start + place_in_row<IN_FOURS>(i, threadIdx.x, LIKELIEST_THREADS);
            }
            best.has_nan = best.has_nan || values[i] != values[i];
        }
    }
    return best;
}

// The sum of exp(logit - max) over the logits of this thread. Few numbers are added in f32 before they are in f64, so that the
// logarithm is as exact as the exponentials.
template <bool IN_FOURS>
DEVICE double sum_of_thread(const float* logits, int vocab, float max) {
    double sum = 0.0;
    for (int start = 0; start < vocab; start += 4 * N * LIKELIEST_THREADS) {
        float values[4 * N], part = 0.0f;
        load_row<N, IN_FOURS>(values, logits + start, vocab - start, threadIdx.x, LIKELIEST_THREADS, MINUS_INFINITY);
#pragma unroll
        for (int i = 0; i < 4 * N; i++) part += expf(values[i] - max);
        sum += double(part);
    }
    return sum;
}

// ids[row] = where the largest logit is, of equals the first; UINT32_MAX where a logit is NaN or the largest is not finite.
// logprobs[row] = max - ln(sum of exp(logits[row])), the logarithm of its probability; NaN where there is none.
// logits [rows, vocab]; ids, logprobs [rows].
KERNEL_BOUNDS(likeliest, LIKELIEST_THREADS, 1)(const float* logits, uint32_t* ids, float* logprobs, int vocab) {
    constexpr int N_WARPS = LIKELIEST_THREADS / 32;
    __shared__ float values[N_WARPS];
    __shared__ uint32_t places[N_WARPS], nans[N_WARPS];
    __shared__ double partials[N_WARPS];
    logits += int64_t(blockIdx.x) * vocab;
    Best best = vocab % 4 == 0 ? best_of_thread<true>(logits, vocab) : best_of_thread<false>(logits, vocab);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        uint32_t has_nan = shuffle_xor(uint32_t(best.has_nan), mask);
        best = better(best, Best{shuffle_xor(best.value, mask), shuffle_xor(best.id, mask), has_nan != 0});
    }
    int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
        values[warp] = best.value;
        places[warp] = best.id;
        nans[warp] = best.has_nan;
    }
    sync_block();
    best = Best{values[0], places[0], nans[0] != 0};
    for (int i = 1; i < N_WARPS; i++) best = better(best, Best{values[i], places[i], nans[i] != 0});
    // The whole row is in a cache of the multiprocessor or of the GPU by now.
    double sum = vocab % 4 == 0 ? sum_of_thread<true>(logits, vocab, best.value) : sum_of_thread<false>(logits, vocab, best.value);
    sum = block_sum<N_WARPS>(sum, partials);
    if (threadIdx.x == 0) {
        bool is_finite = best.value - best.value == 0.0f && !best.has_nan;
        ids[blockIdx.x] = is_finite ? best.id : UINT32_MAX;
        logprobs[blockIdx.x] = is_finite ? float(-log(sum)) : __builtin_nanf("");
    }
}
EXPORT(likeliest)
