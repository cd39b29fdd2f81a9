// Causal attention within the documents of a batch, and its gradient, on tensor cores: bf16, heads of 64 or 128.
//
// qkv is [tokens, n_heads + 2 n_kv_heads, D]: queries, keys, values. A block of the forward pass has 128 queries of one head and
// walks over the keys that they see, with a running maximum and divisor (arXiv 2307.08691). A warp has 32 rows, because the
// fragments that it loads of the other side then feed four products each, and shared memory keeps up with the tensor cores.
//
// The gradient has no sum across blocks: one kernel makes the gradients of keys and values, another those of queries, each of
// which computes the probabilities anew from log_sum_exp.
//
// Work comes as tiles of 128 tokens: (first row of the document in the batch, rows of the document, first token of the tile
// within it, 0). Positions (`token`, `key`, `query`) are counted within the document. Every row must have a tile.
#include "primitives.cuh"

namespace {

constexpr int TILE = 128;
// Rows of a warp.
constexpr int WARP_ROWS = 32;
// A running maximum is left as it is while scores pass it by less than 2^SLACK: probabilities are bounded all the same.
constexpr float SLACK = 8.0f;

DEVICE int min_of(int a, int b) { return a < b ? a : b; }
DEVICE int max_of(int a, int b) { return a > b ? a : b; }
DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
// The numbers of pack_bf16().
DEVICE float unpack_low(uint32_t pair) { return __uint_as_float(pair << 16); }
DEVICE float unpack_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Rows of D numbers in shared memory. The eight numbers `chunk` of a row stand at chunk ^ (row % 8), so that eight rows of one
// chunk lie in different banks.
template <int D>
DEVICE bf16* chunk_at(bf16* rows, int row, int chunk) {
    return rows + row * D + ((chunk ^ (row & 7)) * 8);
}

// What a thread copies of rows of D numbers, by N_THREADS threads: a chunk of every STEP-th row.
template <int D, int N_THREADS>
struct Copier {
    static constexpr int CHUNKS = D / 8, STEP = N_THREADS / CHUNKS;
    static_assert(STEP % 8 == 0, "the place of a chunk is the same in all rows of a thread");

    // Where this thread reads, of rows that begin at `rows`.
    DEVICE static const bf16* from(const bf16* rows, int64_t stride) {
        return rows + threadIdx.x / CHUNKS * stride + threadIdx.x % CHUNKS * 8;
    }
    // Begins to copy N_ROWS rows, zeros beyond the first n_valid. `from` is this thread's place in the first.
    template <int N_ROWS>
    DEVICE static void copy(bf16* rows, const bf16* from, int64_t stride, int n_valid) {
        static_assert(N_ROWS % STEP == 0, "whole steps");
        const int row = threadIdx.x / CHUNKS;
        bf16* const to = chunk_at<D>(rows, row, threadIdx.x % CHUNKS);
#pragma unroll
        for (int i = 0; i < N_ROWS / STEP; i++) {
            copy_16_async(to + i * STEP * D, from, row + i * STEP < n_valid);
            from += STEP * stride;
        }
    }
};

// Fragments of rows in shared memory, as the products take them.
template <int D>
struct Fragments {
    // Where this lane reads for the first fragment but for the chunk, and that chunk's place in bytes.
    const uint8_t* base;
    int chunk;

    // The rows from `rows` on as left operand: [16, 16] at row 16 m, column 16 k.
    DEVICE static Fragments left(const bf16* rows) {
        const int lane = threadIdx.x % 32;
        return of(rows + (lane % 16) * D, lane / 16);
    }
    // As right operand whose sums run along the rows: two of [16, 8] at rows 16 n and 16 n + 8, columns 16 k.
    DEVICE static Fragments right(const bf16* rows) {
        const int lane = threadIdx.x % 32;
        return of(rows + (lane / 16 * 8 + lane % 8) * D, lane / 8 % 2);
    }
    // As right operand whose sums run across the rows, read transposed: two of [16, 8] at row 16 m, columns 16 k and 16 k + 8.
    DEVICE static Fragments across(const bf16* rows) { return left(rows); }

    DEVICE static Fragments of(const bf16* row, int chunk) {
        return {reinterpret_cast<const uint8_t*>(row), (chunk ^ static_cast<int>(threadIdx.x & 7)) * 16};
    }

    // Rows from 16 m on, columns from 16 k on.
    DEVICE const uint8_t* at(int m, int k) const { return base + (k % 4 * 32 ^ chunk) + (m * 32 * D + k / 4 * 128); }
};

// Whether fragments are asked for one step before they are needed: where there are few warps to hide the wait, and registers.
template <int D>
constexpr bool AHEAD = D == 128;

// x[32, 8 N] = the left rows [32, D] times the right rows [8 N, D] transposed.
template <int D, int N>
DEVICE void multiply_rows(float (&x)[2][N][4], const Fragments<D>& left, const Fragments<D>& right) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[m][n][i] = 0.0f;
    constexpr int N_STEPS = D / 16 * (N / 2);
    uint32_t a[2][4], b[2][4];
    if (AHEAD<D>) ldmatrix_x4(b[0], right.at(0, 0));
#pragma unroll
    for (int step = 0; step < N_STEPS; step++) {
        const int n = step % (N / 2), k = step / (N / 2), wanted = AHEAD<D> ? step + 1 : step;
        if (n == 0) {
            ldmatrix_x4(a[0], left.at(0, k));
            ldmatrix_x4(a[1], left.at(1, k));
        }
        if (wanted < N_STEPS) ldmatrix_x4(b[wanted % 2], right.at(wanted % (N / 2), wanted / (N / 2)));
#pragma unroll
        for (int m = 0; m < 2; m++) {
            mma_bf16(x[m][2 * n], a[m], b[step % 2][0], b[step % 2][1]);
            mma_bf16(x[m][2 * n + 1], a[m], b[step % 2][2], b[step % 2][3]);
        }
    }
}

// sums[32, D] += a [32, 16] times the 16 rows from 16 k on.
template <int D>
DEVICE void add_products(float (&sums)[2][D / 8][4], const uint32_t (&a)[2][4], const Fragments<D>& rows, int k) {
    uint32_t b[2][4];
    if (AHEAD<D>) ldmatrix_x4_transposed(b[0], rows.at(k, 0));
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        const int wanted = AHEAD<D> ? n + 1 : n;
        if (wanted < D / 16) ldmatrix_x4_transposed(b[wanted % 2], rows.at(k, wanted));
#pragma unroll
        for (int m = 0; m < 2; m++) {
            mma_bf16(sums[m][2 * n], a[m], b[n % 2][0], b[n % 2][1]);
            mma_bf16(sums[m][2 * n + 1], a[m], b[n % 2][2], b[n % 2][3]);
        }
    }
}

// Writes a warp's sums [32, D], times `factors` (of this lane's rows), as bf16 to the rows of a head below n_valid. `rows` are
// 32 rows of shared memory that no other warp uses.
template <int D>
DEVICE void write_rows(const float (&sums)[2][D / 8][4], const float (&factors)[2][2], bf16* rows, bf16* global, int64_t stride,
                       int n_valid) {
    const int lane = threadIdx.x % 32;
    sync_warp();
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = m * 16 + half * 8 + lane / 4;
            const float factor = factors[m][half];
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                bf16* to = chunk_at<D>(rows, row, n) + lane % 4 * 2;
                *reinterpret_cast<uint32_t*>(to) =
                    pack_bf16(sums[m][n][2 * half] * factor, sums[m][n][2 * half + 1] * factor);
            }
        }
    sync_warp();
    constexpr int CHUNKS = D / 8, STEP = 32 / CHUNKS;
    const int chunk = lane % CHUNKS;
#pragma unroll
    for (int i = 0; i < WARP_ROWS / STEP; i++) {
        const int row = lane / CHUNKS + i * STEP;
        if (row < n_valid) store_pack(global + row * stride + chunk * 8, load_pack(chunk_at<D>(rows, row, chunk)));
    }
}

// Makes the scores of keys that a row does not see -infinity. The first row is `lag` positions later than the first key.
template <int N>
DEVICE void mask_keys(float (&scores)[2][N][4], int lag, int window) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Counted from the first of this lane's keys, the row sees those from `low` to `high`.
            const int high = lag + m * 16 + half * 8 + lane / 4 - lane % 4 * 2;
            const int low = high - window + 1;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    if (n * 8 + i > high || n * 8 + i < low) scores[m][n][2 * half + i] = -infinity();
                }
        }
}

// Of 128 queries of a head: out and log_sum_exp. Blocks: [heads, tiles], of 128 threads.
template <int D, int KEYS>
DEVICE void attend(const bf16* qkv, const uint4* tiles, bf16* out, float* log_sum_exp, int n_heads, int n_kv_heads, float scale,
                   int window) {
    using Copiers = Copier<D, 128>;
    DYNAMIC_SHARED(memory);
    bf16* const queries = reinterpret_cast<bf16*>(memory);
    // Two of [KEYS, D] each.
    bf16* const keys = queries + TILE * D;
    bf16* const values = keys + 2 * KEYS * D;

    const int head = blockIdx.x;
    const uint4 tile = tiles[blockIdx.y];
    const int n_rows = tile.y, first = tile.z;
    const int64_t stride = static_cast<int64_t>(n_heads + 2 * n_kv_heads) * D;
    const bf16* const document = qkv + tile.x * stride;
    const int begin = max_of(first - window + 1, 0) / KEYS * KEYS;
    const int end = min_of(first + TILE, n_rows);

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_first = first + warp * WARP_ROWS;

    const int key_head = n_heads + head / (n_heads / n_kv_heads);
    const bf16* keys_from = Copiers::from(document + begin * stride + key_head * D, stride);
    const auto buffer_of = [](int first_key) { return first_key / KEYS % 2; };
    // The keys from `first_key` on and their values, those after the last that were copied.
    const auto copy_keys = [&](int first_key) {
        const int buffer = buffer_of(first_key);
        Copiers::template copy<KEYS>(keys + buffer * KEYS * D, keys_from, stride, n_rows - first_key);
        Copiers::template copy<KEYS>(values + buffer * KEYS * D, keys_from + n_kv_heads * D, stride, n_rows - first_key);
        keys_from += KEYS * stride;
    };
    const bf16* const queries_from = Copiers::from(document + first * stride + head * D, stride);
    Copiers::template copy<TILE>(queries, queries_from, stride, n_rows - first);
    copy_keys(begin);
    copies_commit();

    bf16* const own_queries = queries + warp * WARP_ROWS * D;
    const Fragments<D> left = Fragments<D>::left(own_queries);
    const float scale_log2 = scale * LOG2_E, slack = SLACK / scale_log2;
    float sums[2][D / 8][4] = {};
    // Of rows lane / 4 + 8 half of the m-th 16 rows: the maximum of scores before they are scaled, and this lane's part of
    // the divisor.
    float maxima[2][2], divisors[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            maxima[m][half] = -infinity();
            divisors[m][half] = 0.0f;
        }

    for (int first_key = begin; first_key < end; first_key += KEYS) {
        copies_wait<0>();
        sync_block();
        const int next = first_key + KEYS;
        if (next < end) copy_keys(next);
        copies_commit();
        // The last row of the warp sees the first key, the first row the last one.
        const int buffer = buffer_of(first_key);
        const bool visible = warp_first < n_rows && first_key < warp_first + WARP_ROWS && next > warp_first - window + 1;
        if (!visible) continue;

        float scores[2][KEYS / 8][4];
        multiply_rows<D, KEYS / 8>(scores, left, Fragments<D>::right(keys + buffer * KEYS * D));

        if (next > warp_first + 1 || first_key < warp_first + WARP_ROWS - window) {
            mask_keys(scores, warp_first - first_key, window);
        }

        float shifts[2][2];
        float factors[2][2];
        bool rescale = false;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float max = fmaxf(scores[m][0][2 * half], scores[m][0][2 * half + 1]);
#pragma unroll
                for (int n = 1; n < KEYS / 8; n++) {
                    max = fmaxf(max, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                }
                max = fmaxf(max, shuffle_xor(max, 1));
                max = fmaxf(max, shuffle_xor(max, 2));
                const float before = maxima[m][half];
                const bool greater = max > before + slack;
                if (greater) maxima[m][half] = max;
                // A row that has seen no key yet keeps probabilities of 0.
                const float shift = maxima[m][half] == -infinity() ? 0.0f : maxima[m][half] * scale_log2;
                factors[m][half] = greater ? exp2_approx(before * scale_log2 - shift) : 1.0f;
                shifts[m][half] = shift;
                rescale = rescale || greater;
            }
        if (rescale) {
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    divisors[m][half] *= factors[m][half];
#pragma unroll
                    for (int n = 0; n < D / 8; n++) {
                        sums[m][n][2 * half] *= factors[m][half];
                        sums[m][n][2 * half + 1] *= factors[m][half];
                    }
                }
        }
        sync_warp();

        const Fragments<D> right = Fragments<D>::across(values + buffer * KEYS * D);
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            uint32_t probabilities[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int n = 2 * k + i / 2, half = i % 2;
                    const float p0 = exp2_approx(scores[m][n][2 * half] * scale_log2 - shifts[m][half]);
                    const float p1 = exp2_approx(scores[m][n][2 * half + 1] * scale_log2 - shifts[m][half]);
                    divisors[m][half] += p0 + p1;
                    probabilities[m][i] = pack_bf16(p0, p1);
                }
            add_products<D>(sums, probabilities, right, k);
        }
    }

    if (warp_first >= n_rows) return;
    float inverses[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float divisor = divisors[m][half];
            divisor += shuffle_xor(divisor, 1);
            divisor += shuffle_xor(divisor, 2);
            inverses[m][half] = 1.0f / divisor;
            const int row = warp_first + m * 16 + half * 8 + lane / 4;
            if (row < n_rows && lane % 4 == 0) {
                log_sum_exp[(static_cast<int64_t>(tile.x) + row) * n_heads + head] = maxima[m][half] * scale + logf(divisor);
            }
        }
    bf16* const to = out + ((static_cast<int64_t>(tile.x) + warp_first) * n_heads + head) * D;
    write_rows<D>(sums, inverses, own_queries, to, static_cast<int64_t>(n_heads) * D, n_rows - warp_first);
}

// delta[token, head] = out . d_out. D / 8 lanes each; 256 threads.
template <int D>
DEVICE void row_products(const bf16* out, const bf16* d_out, float* delta, int64_t n) {
    constexpr int LANES = D / 8;
    const int64_t idx = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
    const int64_t at = (idx < n ? idx : n - 1) * D + threadIdx.x % LANES * 8;
    const Pack<bf16> a = load_pack(out + at), b = load_pack(d_out + at);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += to_f32(a.values[i]) * to_f32(b.values[i]);
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (idx < n && threadIdx.x % LANES == 0) delta[idx] = sum;
}

// Makes the scores of queries that do not see a key -infinity; rows are keys. The first key is `lag` positions later than the
// first query.
template <int N>
DEVICE void mask_queries(float (&scores)[2][N][4], int lag, int window) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Counted from the first of this lane's queries, those from `low` to `high` see the key.
            const int low = lag + m * 16 + half * 8 + lane / 4 - lane % 4 * 2;
            const int high = low + window - 1;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    if (n * 8 + i < low || n * 8 + i > high) scores[m][n][2 * half + i] = -infinity();
                }
        }
}

// Puts the two numbers of each of a lane's rows together as bf16, in the first two registers: both sorts of warps of
// key_gradients() then have their left operand in the same ones.
DEVICE void pack_rows(float (&x)[4]) {
    const uint32_t first = pack_bf16(x[0], x[1]), second = pack_bf16(x[2], x[3]);
    x[0] = __uint_as_float(first);
    x[1] = __uint_as_float(second);
}

// Turns scores into probabilities, packed, and hands them to the other warp of the pair. `log_sum_exp` (base 2) is of this lane's
// columns.
template <int N>
DEVICE void make_probabilities(float (&x)[2][N][4], const float* log_sum_exp, float scale_log2, uint4* handed) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        const float shifts[2] = {log_sum_exp[n * 8], log_sum_exp[n * 8 + 1]};
#pragma unroll
        for (int m = 0; m < 2; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) x[m][n][i] = exp2_approx(x[m][n][i] * scale_log2 - shifts[i % 2]);
            pack_rows(x[m][n]);
        }
    }
#pragma unroll
    for (int k = 0; k < N / 2; k++)
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const auto bits = [&](int n, int half) { return __float_as_uint(x[m][2 * k + n][half]); };
            handed[(k * 2 + m) * 32] = make_uint4(bits(0, 0), bits(0, 1), bits(1, 0), bits(1, 1));
        }
}

// Turns gradients of the probabilities, which were handed over, into those of the scores but for the scale, packed. `delta` is of
// this lane's columns.
template <int N>
DEVICE void make_score_gradients(float (&x)[2][N][4], const float* delta, const uint4* handed) {
#pragma unroll
    for (int k = 0; k < N / 2; k++)
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const uint4 p = handed[(k * 2 + m) * 32];
            const uint32_t pairs[2][2] = {{p.x, p.y}, {p.z, p.w}};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int n = 2 * k + i;
                const float deltas[2] = {delta[n * 8], delta[n * 8 + 1]};
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    x[m][n][2 * half] = unpack_low(pairs[i][half]) * (x[m][n][2 * half] - deltas[0]);
                    x[m][n][2 * half + 1] = unpack_high(pairs[i][half]) * (x[m][n][2 * half + 1] - deltas[1]);
                }
                pack_rows(x[m][n]);
            }
        }
}

// Of KEYS keys of a KV head: the gradients of keys and values, over the heads of the group and the queries that see them,
// ascending. Rows of products are keys, columns queries, so that what one product gives is the left operand of the next. Half of
// the warps make the probabilities P and d_values = P d_out; the other half, of the same keys, d_P = values d_out, get P through
// shared memory, and make d_keys = P (d_P - delta) queries. Both sorts have the same work, on other operands.
// Blocks: [KV heads, parts of KEYS keys of the tiles], of 2 KEYS threads.
template <int D, int KEYS, int QUERIES>
DEVICE void key_gradients(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out,
                          bf16* d_qkv, int n_heads, int n_kv_heads, float scale, int window) {
    using Copiers = Copier<D, 2 * KEYS>;
    DYNAMIC_SHARED(memory);
    bf16* const keys = reinterpret_cast<bf16*>(memory);
    bf16* const values = keys + KEYS * D;
    // Two of [QUERIES, D] each.
    bf16* const queries = values + KEYS * D;
    bf16* const d_outs = queries + 2 * QUERIES * D;
    // Of each pair of warps, the registers of P.
    uint4* const exchange = reinterpret_cast<uint4*>(d_outs + 2 * QUERIES * D);
    // Two of [log_sum_exp (base 2), delta] for QUERIES queries.
    float* const statistics = reinterpret_cast<float*>(exchange + KEYS / WARP_ROWS * (QUERIES / 8) * 32);

    const int kv_head = blockIdx.x;
    const uint4 tile = tiles[blockIdx.y / (TILE / KEYS)];
    const int n_rows = tile.y, first = tile.z + blockIdx.y % (TILE / KEYS) * KEYS;
    if (first >= n_rows) return;
    const int group_len = n_heads / n_kv_heads;
    const int64_t stride = static_cast<int64_t>(n_heads + 2 * n_kv_heads) * D, out_stride = static_cast<int64_t>(n_heads) * D;
    const int end = min_of(n_rows, first + KEYS - 1 + min_of(window, n_rows));

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, pair = warp % (KEYS / WARP_ROWS);
    const bool of_values = warp < KEYS / WARP_ROWS;
    const int warp_first = first + pair * WARP_ROWS;

    // The places of the queries, and their d_out, after the last that were copied.
    const bf16* queries_from =
        Copiers::from(qkv + (static_cast<int64_t>(tile.x) + first) * stride + kv_head * group_len * D, stride);
    const bf16* d_outs_from =
        Copiers::from(d_out + (static_cast<int64_t>(tile.x) + first) * out_stride + kv_head * group_len * D, out_stride);
    const auto copy_queries = [&](int buffer, int query) {
        Copiers::template copy<QUERIES>(queries + buffer * QUERIES * D, queries_from, stride, n_rows - query);
        Copiers::template copy<QUERIES>(d_outs + buffer * QUERIES * D, d_outs_from, out_stride, n_rows - query);
        // To the next queries, or the first of the next head.
        const int n_on = query + QUERIES < end ? QUERIES : first - query, n_aside = query + QUERIES < end ? 0 : D;
        queries_from += n_on * stride + n_aside;
        d_outs_from += n_on * out_stride + n_aside;
    };
    // What this thread puts into `statistics`. A query beyond the document has the divisor infinity: its probabilities are 0.
    const auto statistic = [&](int head, int query) {
        const int row = query + threadIdx.x % QUERIES;
        const bool of_log = threadIdx.x < QUERIES;
        if (row >= n_rows || threadIdx.x >= 2 * QUERIES) return of_log ? infinity() : 0.0f;
        const int64_t at = (static_cast<int64_t>(tile.x) + row) * n_heads + head;
        return of_log ? log_sum_exp[at] * LOG2_E : delta[at];
    };

    int head = kv_head * group_len, query = first, buffer = 0;
    const int end_head = head + group_len;
    const bf16* const keys_from =
        Copiers::from(qkv + (static_cast<int64_t>(tile.x) + first) * stride + (n_heads + kv_head) * D, stride);
    Copiers::template copy<KEYS>(keys, keys_from, stride, n_rows - first);
    Copiers::template copy<KEYS>(values, keys_from + n_kv_heads * D, stride, n_rows - first);
    copy_queries(0, query);
    copies_commit();
    if (threadIdx.x < 2 * QUERIES) statistics[threadIdx.x] = statistic(head, query);

    bf16* const own_rows = (of_values ? keys : values) + pair * WARP_ROWS * D;
    const Fragments<D> left = Fragments<D>::left(own_rows);
    const float scale_log2 = scale * LOG2_E;
    uint4* const handed = exchange + pair * (QUERIES / 8) * 32 + lane;
    float sums[2][D / 8][4] = {};

    while (head < end_head) {
        copies_wait<0>();
        sync_block();
        int next_head = head, next_query = query + QUERIES;
        if (next_query >= end) {
            next_head++;
            next_query = first;
        }
        float next_statistic = 0.0f;
        if (next_head < end_head) {
            copy_queries(buffer ^ 1, next_query);
            next_statistic = statistic(next_head, next_query);
        }
        copies_commit();

        // Some query sees some key of the warp.
        const bool visible = warp_first < query + QUERIES && query < warp_first + WARP_ROWS - 1 + min_of(window, n_rows);
        const bf16* const first_right = (of_values ? queries : d_outs) + buffer * QUERIES * D;
        const bf16* const second_right = (of_values ? d_outs : queries) + buffer * QUERIES * D;
        const float* const of_columns = statistics + buffer * 2 * QUERIES + (of_values ? 0 : QUERIES) + lane % 4 * 2;
        float x[2][QUERIES / 8][4];
        // Every warp comes to one of these three barriers. (At one for all, the compiler moves x to other registers and back.)
        if (!visible) {
            sync_block();
        } else {
            multiply_rows<D, QUERIES / 8>(x, left, Fragments<D>::right(first_right));
            if (of_values) {
                if (warp_first + WARP_ROWS - 1 > query || warp_first + min_of(window, n_rows) < query + QUERIES) {
                    mask_queries(x, warp_first - query, min_of(window, n_rows));
                }
                make_probabilities(x, of_columns, scale_log2, handed);
                sync_block();
            } else {
                sync_block();
                make_score_gradients(x, of_columns, handed);
            }
            const Fragments<D> right = Fragments<D>::across(second_right);
#pragma unroll
            for (int k = 0; k < QUERIES / 16; k++) {
                uint32_t a[2][4];
#pragma unroll
                for (int m = 0; m < 2; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) a[m][i] = __float_as_uint(x[m][2 * k + i / 2][i % 2]);
                add_products<D>(sums, a, right, k);
            }
        }
        if (threadIdx.x < 2 * QUERIES) statistics[(buffer ^ 1) * 2 * QUERIES + threadIdx.x] = next_statistic;
        head = next_head;
        query = next_query;
        buffer ^= 1;
    }

    if (warp_first >= n_rows) return;
    const float factor = of_values ? 1.0f : scale;
    const float factors[2][2] = {{factor, factor}, {factor, factor}};
    const int to_head = n_heads + kv_head + (of_values ? n_kv_heads : 0);
    bf16* const to = d_qkv + (static_cast<int64_t>(tile.x) + warp_first) * stride + to_head * D;
    write_rows<D>(sums, factors, own_rows, to, stride, n_rows - warp_first);
}

// Of 128 queries of a head: their gradients, over the keys that they see, ascending. Blocks: [heads, tiles], of 128 threads.
template <int D, int KEYS>
DEVICE void query_gradients(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out,
                            bf16* d_qkv, int n_heads, int n_kv_heads, float scale, int window) {
    using Copiers = Copier<D, 128>;
    DYNAMIC_SHARED(memory);
    bf16* const queries = reinterpret_cast<bf16*>(memory);
    bf16* const d_outs = queries + TILE * D;
    // Two of [KEYS, D] each.
    bf16* const keys = d_outs + TILE * D;
    bf16* const values = keys + 2 * KEYS * D;

    const int head = blockIdx.x;
    const uint4 tile = tiles[blockIdx.y];
    const int n_rows = tile.y, first = tile.z;
    const int64_t stride = static_cast<int64_t>(n_heads + 2 * n_kv_heads) * D, out_stride = static_cast<int64_t>(n_heads) * D;
    const bf16* const document = qkv + tile.x * stride;
    const int begin = max_of(first - window + 1, 0) / KEYS * KEYS;
    const int end = min_of(first + TILE, n_rows);

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_first = first + warp * WARP_ROWS;

    const int key_head = n_heads + head / (n_heads / n_kv_heads);
    const bf16* keys_from = Copiers::from(document + begin * stride + key_head * D, stride);
    const auto buffer_of = [](int first_key) { return first_key / KEYS % 2; };
    // The keys from `first_key` on and their values, those after the last that were copied.
    const auto copy_keys = [&](int first_key) {
        const int buffer = buffer_of(first_key);
        Copiers::template copy<KEYS>(keys + buffer * KEYS * D, keys_from, stride, n_rows - first_key);
        Copiers::template copy<KEYS>(values + buffer * KEYS * D, keys_from + n_kv_heads * D, stride, n_rows - first_key);
        keys_from += KEYS * stride;
    };
    const bf16* const queries_from = Copiers::from(document + first * stride + head * D, stride);
    Copiers::template copy<TILE>(queries, queries_from, stride, n_rows - first);
    const bf16* const d_outs_from =
        Copiers::from(d_out + (static_cast<int64_t>(tile.x) + first) * out_stride + head * D, out_stride);
    Copiers::template copy<TILE>(d_outs, d_outs_from, out_stride, n_rows - first);
    copy_keys(begin);
    copies_commit();

    bf16* const own_queries = queries + warp * WARP_ROWS * D;
    const Fragments<D> left_queries = Fragments<D>::left(own_queries);
    const Fragments<D> left_d_outs = Fragments<D>::left(d_outs + warp * WARP_ROWS * D);
    const float scale_log2 = scale * LOG2_E;
    // Of rows lane / 4 + 8 half of the m-th 16 rows.
    float shifts[2][2], deltas[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = warp_first + m * 16 + half * 8 + lane / 4;
            const int64_t at = (static_cast<int64_t>(tile.x) + row) * n_heads + head;
            shifts[m][half] = row < n_rows ? log_sum_exp[at] * LOG2_E : infinity();
            deltas[m][half] = row < n_rows ? delta[at] : 0.0f;
        }
    float sums[2][D / 8][4] = {};

    for (int first_key = begin; first_key < end; first_key += KEYS) {
        copies_wait<0>();
        sync_block();
        const int next = first_key + KEYS;
        if (next < end) copy_keys(next);
        copies_commit();
        const int buffer = buffer_of(first_key);
        const bool visible = warp_first < n_rows && first_key < warp_first + WARP_ROWS && next > warp_first - window + 1;
        if (!visible) continue;

        bf16* const keys_here = keys + buffer * KEYS * D;
        float p[2][KEYS / 8][4], d_p[2][KEYS / 8][4];
        multiply_rows<D, KEYS / 8>(p, left_queries, Fragments<D>::right(keys_here));
        if (next > warp_first + 1 || first_key < warp_first + WARP_ROWS - window) {
            mask_keys(p, warp_first - first_key, window);
        }
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) p[m][n][i] = exp2_approx(p[m][n][i] * scale_log2 - shifts[m][i / 2]);
        multiply_rows<D, KEYS / 8>(d_p, left_d_outs, Fragments<D>::right(values + buffer * KEYS * D));
        const Fragments<D> right = Fragments<D>::across(keys_here);
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            // Gradients of the scores but for `scale`.
            uint32_t a[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int n = 2 * k + i / 2, half = i % 2;
                    a[m][i] = pack_bf16(p[m][n][2 * half] * (d_p[m][n][2 * half] - deltas[m][half]),
                                        p[m][n][2 * half + 1] * (d_p[m][n][2 * half + 1] - deltas[m][half]));
                }
            add_products<D>(sums, a, right, k);
        }
    }

    if (warp_first >= n_rows) return;
    const float factors[2][2] = {{scale, scale}, {scale, scale}};
    bf16* const to = d_qkv + (static_cast<int64_t>(tile.x) + warp_first) * stride + head * D;
    write_rows<D>(sums, factors, own_queries, to, stride, n_rows - warp_first);
}

}  // namespace

KERNEL_BOUNDS(attention_packed_64, 128, 3)
(const bf16* qkv, const uint4* tiles, bf16* out, float* log_sum_exp, int n_heads, int n_kv_heads, float scale, int window) {
    attend<64, 64>(qkv, tiles, out, log_sum_exp, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_packed_64)

KERNEL_BOUNDS(attention_packed_128, 128, 2)
(const bf16* qkv, const uint4* tiles, bf16* out, float* log_sum_exp, int n_heads, int n_kv_heads, float scale, int window) {
    attend<128, 64>(qkv, tiles, out, log_sum_exp, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_packed_128)

KERNEL_BOUNDS(attention_packed_delta_64, 256, 4)
(const bf16* out, const bf16* d_out, float* delta, int64_t n) { row_products<64>(out, d_out, delta, n); }
EXPORT(attention_packed_delta_64)

KERNEL_BOUNDS(attention_packed_delta_128, 256, 4)
(const bf16* out, const bf16* d_out, float* delta, int64_t n) { row_products<128>(out, d_out, delta, n); }
EXPORT(attention_packed_delta_128)

KERNEL_BOUNDS(attention_packed_backward_keys_64, 128, 3)
(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out, bf16* d_qkv, int n_heads,
 int n_kv_heads, float scale, int window) {
    key_gradients<64, 64, 32>(qkv, tiles, log_sum_exp, delta, d_out, d_qkv, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_packed_backward_keys_64)

KERNEL_BOUNDS(attention_packed_backward_keys_128, 256, 1)
(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out, bf16* d_qkv, int n_heads,
 int n_kv_heads, float scale, int window) {
    key_gradients<128, 128, 64>(qkv, tiles, log_sum_exp, delta, d_out, d_qkv, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_packed_backward_keys_128)

KERNEL_BOUNDS(attention_packed_backward_queries_64, 128, 3)
(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out, bf16* d_qkv, int n_heads,
 int n_kv_heads, float scale, int window) {
    query_gradients<64, 32>(qkv, tiles, log_sum_exp, delta, d_out, d_qkv, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_packed_backward_queries_64)

KERNEL_BOUNDS(attention_packed_backward_queries_128, 128, 2)
(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out, bf16* d_qkv, int n_heads,
 int n_kv_heads, float scale, int window) {
    query_gradients<128, 32>(qkv, tiles, log_sum_exp, delta, d_out, d_qkv, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_packed_backward_queries_128)
