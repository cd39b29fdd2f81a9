// Operations on each number by itself, and copies of rows.
#include "rows.cuh"

// Fours of a thread, all on their way at once.
constexpr int FOURS = 4;

// out[i] = x[i], rounded to the type of `out`. A block takes 4 FOURS numbers for each of its threads.
template <typename S, typename T>
DEVICE void convert(const S* x, T* out, int64_t n) {
    int64_t start = int64_t(blockIdx.x) * blockDim.x * (4 * FOURS);
    if (is_aligned(x, 4 * sizeof(S)) && is_aligned(out, 4 * sizeof(T))) {
        Four values[FOURS];
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            int64_t at = start + int64_t(i * blockDim.x + threadIdx.x) * 4;
            if (at + 4 <= n) values[i] = load_four(x + at);
        }
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            int64_t at = start + int64_t(i * blockDim.x + threadIdx.x) * 4;
            if (at + 4 <= n) {
                store_four(out + at, values[i]);
            } else {
                for (int64_t j = at; j < n; j++) out[j] = from_f32<T>(to_f32(x[j]));
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4 * FOURS; i++) {
            int64_t at = start + i * blockDim.x + threadIdx.x;
            if (at < n) out[at] = from_f32<T>(to_f32(x[at]));
        }
    }
}

KERNEL(convert_f32_bf16)(const float* x, bf16* out, int64_t n) { convert(x, out, n); }
EXPORT(convert_f32_bf16)
KERNEL(convert_bf16_f32)(const bf16* x, float* out, int64_t n) { convert(x, out, n); }
EXPORT(convert_bf16_f32)

DEVICE float rounded(float x) { return to_f32(from_f32<bf16>(x)); }

// out[i] = x[i], rounded to bf16 and widened again.
KERNEL(round_to_bf16)(const float* x, float* out, int64_t n) {
    int64_t start = int64_t(blockIdx.x) * blockDim.x * (4 * FOURS);
    bool in_fours = is_aligned(x, 16) && is_aligned(out, 16);
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        int64_t at = start + int64_t(i * blockDim.x + threadIdx.x) * 4;
        if (in_fours && at + 4 <= n) {
            Four values = load_four(x + at);
            store_four(out + at, Four{{rounded(values.values[0]), rounded(values.values[1]), rounded(values.values[2]),
                                       rounded(values.values[3])}});
        } else {
            for (int64_t j = at; j < n && j < at + 4; j++) out[j] = rounded(x[j]);
        }
    }
}
EXPORT(round_to_bf16)

struct AdamW {
    float keep, rate, root, beta1, beta2, eps, grad_scale;

    DEVICE void step(float& w, float g, float& m, float& v) const {
        g *= grad_scale;
        m = beta1 * m + (1.0f - beta1) * g;
        v = beta2 * v + (1.0f - beta2) * (g * g);
        w = w * keep + rate * (m / (sqrtf(v) * root + eps));
    }
};

// One AdamW step: m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, g scaled first, and
// w = w (1 - learning_rate weight_decay) - learning_rate / bias_correction1 m / (sqrt(v) / sqrt(bias_correction2) + eps).
// A thread updates four numbers.
KERNEL(adamw)(float* w, const float* g, float* m, float* v, int64_t n, float learning_rate, float beta1, float beta2, float eps,
              float weight_decay, float grad_scale, float bias_correction1, float bias_correction2) {
    AdamW adamw = {1.0f - learning_rate * weight_decay, -learning_rate / bias_correction1, 1.0f / sqrtf(bias_correction2),
                   beta1, beta2, eps, grad_scale};
    int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    bool in_fours = is_aligned(w, 16) && is_aligned(g, 16) && is_aligned(m, 16) && is_aligned(v, 16);
    if (in_fours && at + 4 <= n) {
        Four weights = load_four(w + at), grads = load_four(g + at), ms = load_four(m + at), vs = load_four(v + at);
#pragma unroll
        for (int i = 0; i < 4; i++) adamw.step(weights.values[i], grads.values[i], ms.values[i], vs.values[i]);
        store_four(w + at, weights);
        store_four(m + at, ms);
        store_four(v + at, vs);
    } else {
        for (int64_t i = at; i < n && i < at + 4; i++) adamw.step(w[i], g[i], m[i], v[i]);
    }
}
EXPORT(adamw)

// Numbers of one block of sum_of_squares.
constexpr int SQUARES_CHUNK = 65536;
constexpr int SQUARES_THREADS = 512;

// sums[block] = the sum of x^2 over the block's chunk: f32 sums of up to 128 numbers, combined in f64.
KERNEL_BOUNDS(sum_of_squares, SQUARES_THREADS, 2)(const float* x, double* sums, int64_t n) {
    __shared__ double partials[SQUARES_THREADS / 32];
    int64_t start = int64_t(blockIdx.x) * SQUARES_CHUNK;
    int count = n - start < SQUARES_CHUNK ? int(n - start) : SQUARES_CHUNK;
    x += start;
    float sum = 0.0f;
    if (is_aligned(x, 16)) {
        int whole = count / 4 * 4;
        for (int first = threadIdx.x * 4; first < whole; first += SQUARES_THREADS * 4 * FOURS) {
            Four values[FOURS];
#pragma unroll
            for (int i = 0; i < FOURS; i++) {
                int at = first + i * SQUARES_THREADS * 4;
                values[i] = at < whole ? load_four(x + at) : Four{};
            }
#pragma unroll
            for (int i = 0; i < FOURS; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sum += values[i].values[j] * values[i].values[j];
            }
        }
        int tail = whole + threadIdx.x;
        if (tail < count) sum += x[tail] * x[tail];
    } else {
#pragma unroll 8
        for (int at = threadIdx.x; at < count; at += SQUARES_THREADS) sum += x[at] * x[at];
    }
    double total = block_sum<SQUARES_THREADS / 32>(double(sum), partials);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}
EXPORT(sum_of_squares)

constexpr int WEIGHTED_THREADS = 1024;

// *sum += the sum of weights[i] x[i], in f64: each thread adds the products congruent to it modulo the threads, ascending, then the
// sums of the threads are added. One block.
KERNEL_BOUNDS(add_weighted_sum, WEIGHTED_THREADS, 1)(const float* x, const float* weights, double* sum, int64_t n) {
    __shared__ double partials[WEIGHTED_THREADS / 32];
    double part = 0.0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < n; i += WEIGHTED_THREADS) part += double(weights[i]) * double(x[i]);
    part = block_sum<WEIGHTED_THREADS / 32>(part, partials);
    if (threadIdx.x == 0) *sum += part;
}
EXPORT(add_weighted_sum)

// Output `index` of SplitMix64 from `seed` (Steele, Lea, Flood 2014), in [0, 1) in steps of 2^-24.
DEVICE float uniform(uint64_t seed, uint64_t index) {
    uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return float(uint32_t((z ^ (z >> 31)) >> 40)) * 0x1p-24f;
}

// out[i] is uniform in -half_width..half_width, a function of seed and i alone. A thread writes four numbers.
template <typename T>
DEVICE void fill_uniform(T* out, int64_t n, uint64_t seed, float half_width) {
    int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    Four values;
#pragma unroll
    for (int i = 0; i < 4; i++) values.values[i] = (uniform(seed, at + i) * 2.0f - 1.0f) * half_width;
    if (is_aligned(out, 4 * sizeof(T)) && at + 4 <= n) {
        store_four(out + at, values);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i < n) out[at + i] = from_f32<T>(values.values[i]);
        }
    }
}

KERNEL(fill_uniform_f32)(float* out, int64_t n, uint64_t seed, float half_width) { fill_uniform(out, n, seed, half_width); }
EXPORT(fill_uniform_f32)
KERNEL(fill_uniform_bf16)(bf16* out, int64_t n, uint64_t seed, float half_width) { fill_uniform(out, n, seed, half_width); }
EXPORT(fill_uniform_bf16)

// A warp's piece of a row, PER_LANE units for each lane.
constexpr int PER_LANE = 4;
struct Piece {
    int row, start;
};
DEVICE Piece warp_piece(int n_units) {
    unsigned warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    unsigned n_pieces = (n_units + 32 * PER_LANE - 1) / (32 * PER_LANE);
    return {int(warp / n_pieces), int(warp % n_pieces * (32 * PER_LANE) + threadIdx.x % 32)};
}

// out[row] = x[rows[row]], rows of `n_units` units of type U. A warp copies a piece of a row.
template <typename U>
DEVICE void gather_units(const U* x, const uint32_t* rows, U* out, int n_rows, int n_units) {
    Piece piece = warp_piece(n_units);
    if (piece.row >= n_rows) return;
    const U* from = x + int64_t(rows[piece.row]) * n_units;
    U* to = out + int64_t(piece.row) * n_units;
    U units[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int at = piece.start + i * 32;
        if (at < n_units) units[i] = from[at];
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int at = piece.start + i * 32;
        if (at < n_units) to[at] = units[i];
    }
}
// The wrapper counts warps by the same rule: packs where whole ones fill a row, else single numbers.
template <typename T>
DEVICE void gather_rows(const T* x, const uint32_t* rows, T* out, int n_rows, int width) {
    if (width % Pack<T>::N == 0) {
        gather_units(reinterpret_cast<const uint4*>(x), rows, reinterpret_cast<uint4*>(out), n_rows, width / Pack<T>::N);
    } else {
        gather_units(x, rows, out, n_rows, width);
    }
}

KERNEL(gather_rows_f32)(const float* x, const uint32_t* rows, float* out, int n_rows, int width) {
    gather_rows(x, rows, out, n_rows, width);
}
EXPORT(gather_rows_f32)
KERNEL(gather_rows_bf16)(const bf16* x, const uint32_t* rows, bf16* out, int n_rows, int width) {
    gather_rows(x, rows, out, n_rows, width);
}
EXPORT(gather_rows_bf16)

// out[rows[row]] += weights[row] x[row], no row twice. A warp adds a piece of a row: fours where whole ones fill a row, else
// single numbers.
KERNEL(add_weighted_rows)(const float* x, const uint32_t* rows, const float* weights, float* out, int n_rows, int width) {
    bool in_fours = width % 4 == 0;
    int n_units = in_fours ? width / 4 : width;
    Piece piece = warp_piece(n_units);
    if (piece.row >= n_rows) return;
    float weight = weights[piece.row];
    const float* from = x + int64_t(piece.row) * width;
    float* to = out + int64_t(rows[piece.row]) * width;
    if (in_fours) {
        Four values[PER_LANE], sums[PER_LANE];
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            int at = piece.start + i * 32;
            if (at < n_units) {
                values[i] = load_four(from + at * 4);
                sums[i] = load_four(to + at * 4);
            }
        }
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            int at = piece.start + i * 32;
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i].values[j] += weight * values[i].values[j];
            if (at < n_units) store_four(to + at * 4, sums[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            int at = piece.start + i * 32;
            if (at < n_units) to[at] += weight * from[at];
        }
    }
}
EXPORT(add_weighted_rows)

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
