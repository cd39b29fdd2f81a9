// Softmax cross-entropy with its gradient, and the likeliest token.
#include "rows.cuh"

constexpr float MINUS_INFINITY = -__builtin_inff();

// exp(x); the argument is at most 0, so that its rounding is that of a small probability.
DEVICE float exp_of(float x) { return exp2_approx(x * LOG2_E); }

// What the thread that has the target of a row does once all of the row is written: the loss, and the gradient at the target, over what
// stood there. `logit` is the target's; a target beyond the vocabulary makes the loss NaN.
template <typename T>
DEVICE void finish_row(T* row, uint32_t target, float logit, float weight, float* loss, bool with_gradient, int vocab, float max,
                       float sum) {
    if (target >= unsigned(vocab)) {
        *loss = __builtin_nanf("");
        return;
    }
    *loss = logf(sum) + max - logit;
    if (with_gradient) row[target] = from_f32<T>(weight * (exp_of(logit - max) / sum - 1.0f));
}

// The kernels below compute, for each row, losses[row] and, with a gradient, put weight (softmax(logits)[i] - [i = target]) in the
// place of logits[row, i]; both are 0 where the weight is 0, and NaN where a logit is NaN or infinite, or all are -infinity.
// logits [rows, vocab]; targets, weights, losses [rows]. All sums are f32.

constexpr int KEPT_THREADS = 1024;
constexpr int KEPT_NUMBERS = 32;
constexpr int KEPT_WARPS = KEPT_THREADS / 32;

// Of a block of KEPT_WARPS = 32 warps, whose partial results one warp can combine. Barriers as in block_sum.
DEVICE float kept_sum(float x, float* partials) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
    sync_block();
    return warp_sum(partials[threadIdx.x % 32]);
}
DEVICE float kept_max(float x, float* partials) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
    sync_block();
    return warp_max(partials[threadIdx.x % 32]);
}

// For vocabularies of whole packs of 16 bytes and up to KEPT_THREADS KEPT_NUMBERS tokens. A block walks over rows; it keeps a row in
// registers while the next STAGES rows are on their way to shared memory, where each thread reads what it copied itself.
template <typename T>
DEVICE void cross_entropy_kept(T* logits, const uint32_t* targets, const float* weights, float* losses, bool with_gradient,
                               int n_rows, int vocab, T* shared, float* max_partials, float* sum_partials) {
    constexpr int PER_PACK = Wide<T>::N, PACKS = KEPT_NUMBERS / PER_PACK, STAGES = 4 / sizeof(T);
    const int64_t step = gridDim.x;
    auto weight_of = [&](int64_t row) { return row < n_rows ? weights[row] : 0.0f; };
    auto fetch = [&](int64_t row, float weight, int stage) {
        if (weight != 0.0f) {
            const T* from = logits + row * vocab;
            T* to = shared + int64_t(stage) * vocab;
#pragma unroll
            for (int i = 0; i < PACKS; i++) {
                int at = (i * KEPT_THREADS + threadIdx.x) * PER_PACK;
                if (at < vocab) copy_16_async(to + at, from + at, true);
            }
        }
        copies_commit();
    };
    // Weights of this row and those behind it, and the next target: read a row earlier than they are needed.
    float ahead[STAGES + 1];
#pragma unroll
    for (int i = 0; i <= STAGES; i++) ahead[i] = weight_of(blockIdx.x + i * step);
    uint32_t next_target = targets[blockIdx.x];
#pragma unroll
    for (int i = 0; i < STAGES; i++) fetch(blockIdx.x + i * step, ahead[i], i);
    int stage = 0;
    for (int64_t row = blockIdx.x; row < n_rows; row += step) {
        T* to = logits + row * vocab;
        const T* staged = shared + int64_t(stage) * vocab;
        float weight = ahead[0], values[KEPT_NUMBERS], logit = 0.0f;
        uint32_t target = next_target;
        bool has_target = target / PER_PACK % KEPT_THREADS == threadIdx.x;
        copies_wait<STAGES - 1>();
        if (weight != 0.0f) {
            load_packs(values, staged, vocab, threadIdx.x, KEPT_THREADS, MINUS_INFINITY);
            if (has_target && target < unsigned(vocab)) logit = to_f32(staged[target]);
        }
        fetch(row + STAGES * step, ahead[STAGES], stage);
        stage = (stage + 1) % STAGES;
#pragma unroll
        for (int i = 0; i < STAGES; i++) ahead[i] = ahead[i + 1];
        ahead[STAGES] = weight_of(row + (STAGES + 1) * step);
        if (row + step < n_rows) next_target = targets[row + step];
        if (weight == 0.0f) {
            if (threadIdx.x == 0) losses[row] = 0.0f;
#pragma unroll
            for (int i = 0; i < KEPT_NUMBERS; i++) values[i] = 0.0f;
            if (with_gradient) store_packs(to, values, vocab, threadIdx.x, KEPT_THREADS);
            continue;
        }
        float max = MINUS_INFINITY, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < KEPT_NUMBERS; i++) max = fmaxf(max, values[i]);
        max = kept_max(max, max_partials);
#pragma unroll
        for (int i = 0; i < KEPT_NUMBERS; i++) {
            values[i] = exp_of(values[i] - max);
            sum += values[i];
        }
        sum = kept_sum(sum, sum_partials);
        if (with_gradient) {
            float scale = weight / sum;
#pragma unroll
            for (int i = 0; i < KEPT_NUMBERS; i++) values[i] *= scale;
            store_packs(to, values, vocab, threadIdx.x, KEPT_THREADS);
        }
        if (has_target) finish_row(to, target, logit, weight, losses + row, with_gradient, vocab, max, sum);
    }
}

constexpr int ANY_THREADS = 256;
constexpr int ANY_NUMBERS = 16;

// The numbers of a thread: in packs of 16 bytes, or one by one.
template <bool IN_PACKS, typename T>
DEVICE void load_any(float (&values)[ANY_NUMBERS], const T* row, int width, int n_threads) {
    if constexpr (IN_PACKS) {
        load_packs(values, row, width, threadIdx.x, n_threads, MINUS_INFINITY);
    } else {
        load_row<ANY_NUMBERS / 4, false>(values, row, width, threadIdx.x, n_threads, MINUS_INFINITY);
    }
}
template <bool IN_PACKS, typename T>
DEVICE void store_any(T* row, const float (&values)[ANY_NUMBERS], int width, int n_threads) {
    if constexpr (IN_PACKS) {
        store_packs(row, values, width, threadIdx.x, n_threads);
    } else {
        store_row<ANY_NUMBERS / 4, false>(row, values, width, threadIdx.x, n_threads);
    }
}

// For any vocabulary: a block of up to ANY_THREADS threads has one row, and reads it a second time for the gradient.
template <bool IN_PACKS, typename T>
DEVICE void cross_entropy_any(T* logits, const uint32_t* targets, const float* weights, float* losses, bool with_gradient,
                              int vocab, float* max_partials, float* sum_partials) {
    int64_t row = blockIdx.x;
    const int n_threads = blockDim.x, piece = ANY_NUMBERS * n_threads;
    logits += row * vocab;
    float weight = weights[row];
    if (weight == 0.0f) {
        if (threadIdx.x == 0) losses[row] = 0.0f;
        if (with_gradient) {
            const float zeros[ANY_NUMBERS] = {};
            for (int start = 0; start < vocab; start += piece) {
                store_any<IN_PACKS>(logits + start, zeros, vocab - start, n_threads);
            }
        }
        return;
    }
    // The thread that has the target writes there too: it reads the logit before.
    uint32_t target = targets[row];
    bool has_target = (IN_PACKS ? target / Wide<T>::N : target) % n_threads == threadIdx.x;
    float logit = has_target && target < unsigned(vocab) ? to_f32(logits[target]) : 0.0f;
    // This thread's largest logit, and the sum of exp(logit - largest).
    float max = MINUS_INFINITY, sum = 0.0f;
    for (int start = 0; start < vocab; start += piece) {
        float values[ANY_NUMBERS], new_max = max;
        load_any<IN_PACKS>(values, logits + start, vocab - start, n_threads);
#pragma unroll
        for (int i = 0; i < ANY_NUMBERS; i++) new_max = fmaxf(new_max, values[i]);
        if (new_max > max) {
            sum *= exp_of(max - new_max);
            max = new_max;
        }
        // Where all so far are -infinity, their share is 0 and not NaN.
        float base = max == MINUS_INFINITY ? 0.0f : max;
#pragma unroll
        for (int i = 0; i < ANY_NUMBERS; i++) sum += exp_of(values[i] - base);
    }
    float row_max = group_max(max, max_partials, n_threads / 32);
    sum = group_sum(sum * exp_of(max - row_max), sum_partials, n_threads / 32);
    if (with_gradient) {
        float scale = weight / sum;
        for (int start = 0; start < vocab; start += piece) {
            float values[ANY_NUMBERS];
            load_any<IN_PACKS>(values, logits + start, vocab - start, n_threads);
#pragma unroll
            for (int i = 0; i < ANY_NUMBERS; i++) values[i] = exp_of(values[i] - row_max) * scale;
            store_any<IN_PACKS>(logits + start, values, vocab - start, n_threads);
        }
    }
    if (has_target) finish_row(logits, target, logit, weight, losses + row, with_gradient, vocab, row_max, sum);
}

#define CROSS_ENTROPY(suffix, T)                                                                                                 \
    KERNEL_BOUNDS(cross_entropy_kept_##suffix, KEPT_THREADS, 1)(T* logits, const uint32_t* targets, const float* weights,        \
                                                                float* losses, int with_gradient, int n_rows, int vocab) {       \
        begin();                                                                                                                 \
        DYNAMIC_SHARED(shared);                                                                                                  \
        __shared__ float max_partials[KEPT_WARPS], sum_partials[KEPT_WARPS];                                                     \
        cross_entropy_kept(logits, targets, weights, losses, with_gradient != 0, n_rows, vocab, reinterpret_cast<T*>(shared),    \
                           max_partials, sum_partials);                                                                          \
    }                                                                                                                            \
    EXPORT(cross_entropy_kept_##suffix)                                                                                          \
    KERNEL_BOUNDS(cross_entropy_any_##suffix, ANY_THREADS, 3)(T* logits, const uint32_t* targets, const float* weights,          \
                                                              float* losses, int with_gradient, int vocab) {                     \
        begin();                                                                                                                 \
        __shared__ float max_partials[ANY_THREADS / 32], sum_partials[ANY_THREADS / 32];                                         \
        bool wanted = with_gradient != 0;                                                                                        \
        if (vocab % Wide<T>::N == 0) {                                                                                           \
            cross_entropy_any<true>(logits, targets, weights, losses, wanted, vocab, max_partials, sum_partials);                \
        } else {                                                                                                                 \
            cross_entropy_any<false>(logits, targets, weights, losses, wanted, vocab, max_partials, sum_partials);               \
        }                                                                                                                        \
    }                                                                                                                            \
    EXPORT(cross_entropy_any_##suffix)
CROSS_ENTROPY(f32, float)
CROSS_ENTROPY(bf16, bf16)

constexpr int N = 4;
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
