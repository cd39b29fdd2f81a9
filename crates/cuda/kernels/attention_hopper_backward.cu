// The gradient of causal attention within the documents of a batch on the tensor cores of Hopper: bf16, heads of 64 or 128. What it
// computes, its tiles and its arguments are those of attention_packed.cu, of which it takes delta.
//
// As there, one kernel makes the gradients of keys and values and another those of queries, so that no sum crosses blocks. Products
// that make scores and gradients of probabilities read both sides from shared memory; what comes of them is, in registers, the left
// operand of the sums.
//
// qkv are rows whose queries and keys were rotated; the gradients are those of the rows before: sums are turned back by the angles of
// their rows while they are f32.
#include "attention_hopper.cuh"

#ifdef HOPPER

namespace {

// Queries or keys that are taken at a time.
constexpr int STEP = 64;

// x[64, 64] = the rows of `left` times the rows of `right` transposed, sums along D. Panels have 64 or LEFT_ROWS rows.
template <int D, int LEFT_ROWS>
DEVICE void multiply_rows(float (&x)[STEP / 8][4], uint64_t left, uint64_t right) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        Wgmma<STEP>::template shared<0>(x, column_16<LEFT_ROWS>(left, k), column_16<STEP>(right, k), k > 0);
    }
    wgmma_commit();
}

// sums[64, D] += x[64, 64] as bf16 times 64 rows.
template <int D>
DEVICE void add_products(float (&sums)[D / 8][4], const uint32_t (&x)[STEP / 16][4], uint64_t rows) {
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) Wgmma<D>::template registers<1>(sums, x[k], row_16(rows, k), 1);
    wgmma_commit();
}

// The accumulators of a product as the left operand of another.
DEVICE void pack_operand(uint32_t (&packed)[STEP / 16][4], const float (&x)[STEP / 8][4]) {
#pragma unroll
    for (int k = 0; k < STEP / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&pair)[4] = x[2 * k + i / 2];
            packed[k][i] = pack_bf16(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
        }
}

// Of 64 keys of a KV head: the gradients of keys and values, over the heads of the group and the queries that see them, ascending.
// Rows of products are keys, columns queries. Blocks: [KV heads, halves of the tiles], of 128 threads.
template <int D, int STAGES>
DEVICE void key_gradients(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out,
                          bf16* d_qkv, Angles angles, int n_heads, int n_kv_heads, float scale, int window) {
    constexpr int KEYS = GROUP_ROWS;
    using Copiers = PanelCopier<D, 128>;
    DYNAMIC_SHARED_1024(memory);
    bf16* const keys = reinterpret_cast<bf16*>(memory);
    bf16* const values = keys + KEYS * D;
    // STAGES times queries and d_out of [STEP, D].
    bf16* const stages = values + KEYS * D;
    // Two of [log_sum_exp (base 2), delta] for STEP queries.
    float* const statistics = reinterpret_cast<float*>(stages + STAGES * 2 * STEP * D);

    const int kv_head = blockIdx.x;
    const uint4 tile = tiles[blockIdx.y / 2];
    const int n_rows = tile.y, first = tile.z + blockIdx.y % 2 * KEYS;
    if (first >= n_rows) return;
    const int group_len = n_heads / n_kv_heads;
    const int64_t stride = static_cast<int64_t>(n_heads + 2 * n_kv_heads) * D, out_stride = static_cast<int64_t>(n_heads) * D;
    const int window_here = min_of(window, n_rows), end = min_of(n_rows, first + KEYS - 1 + window_here);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warp_first = first + warp * 16;

    const int head = kv_head * group_len, end_head = head + group_len;
    const bf16* queries_from = Copiers::from(qkv + (static_cast<int64_t>(tile.x) + first) * stride + head * D, stride);
    const bf16* d_outs_from = Copiers::from(d_out + (static_cast<int64_t>(tile.x) + first) * out_stride + head * D, out_stride);
    int copied_head = head, copied_query = first, copied_stage = 0;
    // The next queries and their d_out, if there are more, as a group of copies.
    const auto copy_queries = [&]() {
        if (copied_head < end_head) {
            bf16* const to = stages + copied_stage * 2 * STEP * D;
            Copiers::template copy<STEP>(to, queries_from, stride, n_rows - copied_query);
            Copiers::template copy<STEP>(to + STEP * D, d_outs_from, out_stride, n_rows - copied_query);
            // To the next queries, or the first of the next head.
            const bool is_last = copied_query + STEP >= end;
            const int n_on = is_last ? first - copied_query : STEP, n_aside = is_last ? D : 0;
            queries_from += n_on * stride + n_aside;
            d_outs_from += n_on * out_stride + n_aside;
            copied_query += n_on;
            copied_head += is_last ? 1 : 0;
            copied_stage = copied_stage + 1 == STAGES ? 0 : copied_stage + 1;
        }
        copies_commit();
    };
    // What this thread puts into `statistics`. A query beyond the document has the divisor infinity: its probabilities are 0.
    const auto statistic = [&](int head, int query) {
        const int row = query + threadIdx.x % STEP;
        const bool of_log = threadIdx.x < STEP;
        if (row >= n_rows) return of_log ? infinity() : 0.0f;
        const int64_t at = (static_cast<int64_t>(tile.x) + row) * n_heads + head;
        return of_log ? log_sum_exp[at] * LOG2_E : delta[at];
    };

    const bf16* const keys_from =
        Copiers::from(qkv + (static_cast<int64_t>(tile.x) + first) * stride + (n_heads + kv_head) * D, stride);
    Copiers::template copy<KEYS>(keys, keys_from, stride, n_rows - first);
    Copiers::template copy<KEYS>(values, keys_from + n_kv_heads * D, stride, n_rows - first);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) copy_queries();
    statistics[threadIdx.x] = statistic(head, first);

    const uint64_t keys_left = wgmma_operand(keys, KEYS * 128), values_left = wgmma_operand(values, KEYS * 128);
    const float scale_log2 = scale * LOG2_E;
    float d_keys[D / 8][4] = {}, d_values[D / 8][4] = {};

    int query = first, query_head = head, stage = 0, buffer = 0;
    while (query_head < end_head) {
        copies_wait<STAGES - 2>();
        fence_async();
        sync_block();
        copy_queries();
        int next_query = query + STEP, next_head = query_head;
        if (next_query >= end) {
            next_query = first;
            next_head++;
        }
        const float next_statistic = next_head < end_head ? statistic(next_head, next_query) : 0.0f;

        const uint64_t queries_here = wgmma_operand(stages + stage * 2 * STEP * D, STEP * 128);
        const uint64_t d_outs_here = wgmma_operand(stages + (stage * 2 + 1) * STEP * D, STEP * 128);
        float p[STEP / 8][4], d_p[STEP / 8][4];
        wgmma_hold(p);
        wgmma_hold(d_p);
        wgmma_fence();
        multiply_rows<D, KEYS>(p, keys_left, queries_here);
        multiply_rows<D, KEYS>(d_p, values_left, d_outs_here);
        wgmma_wait<1>(p);

        if (warp_first + 15 > query || query + STEP > warp_first + window_here) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                // Counted from the first of this lane's queries, those from `low` to `high` see the key.
                const int low = warp_first - query + half * 8 + lane / 4 - lane % 4 * 2;
                const int high = low + window_here - 1;
#pragma unroll
                for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        if (n * 8 + i < low || n * 8 + i > high) p[n][2 * half + i] = -infinity();
                    }
            }
        }
        const float2* const of_columns = reinterpret_cast<float2*>(statistics + buffer * 2 * STEP) + lane % 4;
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
            const float2 shifts = of_columns[n * 4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[n][i] = exp2_approx(p[n][i] * scale_log2 - (i % 2 == 0 ? shifts.x : shifts.y));
            }
        }
        uint32_t packed[STEP / 16][4];
        pack_operand(packed, p);
        wgmma_hold(d_values);
        wgmma_fence();
        add_products<D>(d_values, packed, d_outs_here);
        wgmma_wait<1>(d_p);
        // Gradients of the scores but for the scale, from the rounded probabilities: that takes fewer registers.
        uint32_t packed_gradients[STEP / 16][4];
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
            const float2 deltas = of_columns[STEP / 2 + n * 4];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t pair = packed[n / 2][n % 2 * 2 + half];
                packed_gradients[n / 2][n % 2 * 2 + half] = pack_bf16(unpack_low(pair) * (d_p[n][2 * half] - deltas.x),
                                                                      unpack_high(pair) * (d_p[n][2 * half + 1] - deltas.y));
            }
        }
        wgmma_hold(d_keys);
        wgmma_fence();
        add_products<D>(d_keys, packed_gradients, queries_here);
        statistics[(buffer ^ 1) * 2 * STEP + threadIdx.x] = next_statistic;
        wgmma_wait<0>(d_values);
        wgmma_hold(d_keys);

        stage = stage + 1 == STAGES ? 0 : stage + 1;
        query = next_query;
        query_head = next_head;
        buffer ^= 1;
    }
    copies_wait<0>();
    sync_block();
    if (warp_first >= n_rows) return;
    const int64_t first_row = static_cast<int64_t>(tile.x) + warp_first;
    rotate_back<D>(d_keys, angles, first_row, n_rows - warp_first);
    bf16* const to = d_qkv + first_row * stride + (n_heads + kv_head) * D;
    const float scales[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
    write_rows<D>(d_keys, scales, keys + warp * 16 * D, to, stride, n_rows - warp_first);
    write_rows<D>(d_values, ones, values + warp * 16 * D, to + n_kv_heads * D, stride, n_rows - warp_first);
}

// Of 128 queries of a head: their gradients, over the keys that they see, ascending. Blocks: [heads, tiles], of 256 threads.
template <int D, int STAGES>
DEVICE void query_gradients(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out,
                            bf16* d_qkv, Angles angles, int n_heads, int n_kv_heads, float scale, int window) {
    using Copiers = PanelCopier<D, 256>;
    DYNAMIC_SHARED_1024(memory);
    bf16* const queries = reinterpret_cast<bf16*>(memory);
    bf16* const d_outs = queries + TILE * D;
    // STAGES times keys and values of [STEP, D].
    bf16* const stages = d_outs + TILE * D;

    const int head = blockIdx.x;
    const uint4 tile = tiles[blockIdx.y];
    const int n_rows = tile.y, first = tile.z;
    const int64_t stride = static_cast<int64_t>(n_heads + 2 * n_kv_heads) * D, out_stride = static_cast<int64_t>(n_heads) * D;
    const bf16* const document = qkv + tile.x * stride;
    const int begin = max_of(first - window + 1, 0) / STEP * STEP;
    const int end = min_of(first + TILE, n_rows);

    const int group = shuffle(static_cast<int>(threadIdx.x / 128), 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int group_first = first + group * GROUP_ROWS, warp_first = group_first + warp * 16;

    const int key_head = n_heads + head / (n_heads / n_kv_heads);
    const bf16* keys_from = Copiers::from(document + begin * stride + key_head * D, stride);
    int copied_key = begin, copied_stage = 0;
    // The next keys and their values, if there are more, as a group of copies.
    const auto copy_keys = [&]() {
        if (copied_key < end) {
            bf16* const to = stages + copied_stage * 2 * STEP * D;
            Copiers::template copy<STEP>(to, keys_from, stride, n_rows - copied_key);
            Copiers::template copy<STEP>(to + STEP * D, keys_from + n_kv_heads * D, stride, n_rows - copied_key);
            keys_from += STEP * stride;
            copied_key += STEP;
            copied_stage = copied_stage + 1 == STAGES ? 0 : copied_stage + 1;
        }
        copies_commit();
    };
    const bf16* const queries_from = Copiers::from(document + first * stride + head * D, stride);
    Copiers::template copy<TILE>(queries, queries_from, stride, n_rows - first);
    const bf16* const d_outs_from =
        Copiers::from(d_out + (static_cast<int64_t>(tile.x) + first) * out_stride + head * D, out_stride);
    Copiers::template copy<TILE>(d_outs, d_outs_from, out_stride, n_rows - first);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) copy_keys();

    const uint64_t queries_left = wgmma_operand(queries + group * GROUP_ROWS * PANEL, TILE * 128);
    const uint64_t d_outs_left = wgmma_operand(d_outs + group * GROUP_ROWS * PANEL, TILE * 128);
    const float scale_log2 = scale * LOG2_E;
    // Of rows lane / 4 and 8 further.
    float shifts[2], deltas[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = warp_first + half * 8 + lane / 4;
        const int64_t at = (static_cast<int64_t>(tile.x) + row) * n_heads + head;
        shifts[half] = row < n_rows ? log_sum_exp[at] * LOG2_E : infinity();
        deltas[half] = row < n_rows ? delta[at] : 0.0f;
    }
    float sums[D / 8][4] = {};

    int stage = 0;
    for (int first_key = begin; first_key < end; first_key += STEP) {
        copies_wait<STAGES - 2>();
        fence_async();
        sync_block();
        copy_keys();
        const bool visible =
            group_first < n_rows && first_key < group_first + GROUP_ROWS && first_key + STEP > group_first - window + 1;
        const uint64_t keys_here = wgmma_operand(stages + stage * 2 * STEP * D, STEP * 128);
        const uint64_t values_here = wgmma_operand(stages + (stage * 2 + 1) * STEP * D, STEP * 128);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        if (!visible) continue;

        float p[STEP / 8][4], d_p[STEP / 8][4];
        wgmma_hold(p);
        wgmma_hold(d_p);
        wgmma_fence();
        multiply_rows<D, TILE>(p, queries_left, keys_here);
        multiply_rows<D, TILE>(d_p, d_outs_left, values_here);
        wgmma_wait<1>(p);
        const int lag = warp_first - first_key;
        if (lag < STEP - 1 || lag + 15 >= window) mask_keys<STEP>(p, lag, window);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) p[n][i] = exp2_approx(p[n][i] * scale_log2 - shifts[i / 2]);
        wgmma_wait<0>(d_p);
        // Gradients of the scores but for the scale.
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) d_p[n][i] = p[n][i] * (d_p[n][i] - deltas[i / 2]);
        uint32_t packed[STEP / 16][4];
        pack_operand(packed, d_p);
        wgmma_hold(sums);
        wgmma_fence();
        add_products<D>(sums, packed, keys_here);
        wgmma_wait<0>(sums);
    }
    copies_wait<0>();
    sync_block();
    if (warp_first >= n_rows) return;
    const int64_t first_row = static_cast<int64_t>(tile.x) + warp_first;
    rotate_back<D>(sums, angles, first_row, n_rows - warp_first);
    float scales[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = half * 8 + lane / 4;
        scales[half] = warp_first + row < n_rows ? scale * angles.query_factors[angles.entries[first_row + row]] : 0.0f;
    }
    bf16* const to = d_qkv + first_row * stride + head * D;
    write_rows<D>(sums, scales, queries + (group * GROUP_ROWS + warp * 16) * D, to, stride, n_rows - warp_first);
}

}  // namespace

KERNEL_BOUNDS(attention_hopper_backward_keys_64, 128, 3)
(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out, bf16* d_qkv,
 const float* table, const float* query_factors, const uint32_t* entries, int n_heads, int n_kv_heads, float scale, int window) {
    const Angles angles = {table, query_factors, entries};
    key_gradients<64, 3>(qkv, tiles, log_sum_exp, delta, d_out, d_qkv, angles, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_hopper_backward_keys_64)

KERNEL_BOUNDS(attention_hopper_backward_keys_128, 128, 2)
(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out, bf16* d_qkv,
 const float* table, const float* query_factors, const uint32_t* entries, int n_heads, int n_kv_heads, float scale, int window) {
    const Angles angles = {table, query_factors, entries};
    key_gradients<128, 2>(qkv, tiles, log_sum_exp, delta, d_out, d_qkv, angles, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_hopper_backward_keys_128)

KERNEL_BOUNDS(attention_hopper_backward_queries_64, 256, 2)
(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out, bf16* d_qkv,
 const float* table, const float* query_factors, const uint32_t* entries, int n_heads, int n_kv_heads, float scale, int window) {
    const Angles angles = {table, query_factors, entries};
    query_gradients<64, 3>(qkv, tiles, log_sum_exp, delta, d_out, d_qkv, angles, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_hopper_backward_queries_64)

KERNEL_BOUNDS(attention_hopper_backward_queries_128, 256, 1)
(const bf16* qkv, const uint4* tiles, const float* log_sum_exp, const float* delta, const bf16* d_out, bf16* d_qkv,
 const float* table, const float* query_factors, const uint32_t* entries, int n_heads, int n_kv_heads, float scale, int window) {
    const Angles angles = {table, query_factors, entries};
    query_gradients<128, 3>(qkv, tiles, log_sum_exp, delta, d_out, d_qkv, angles, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_hopper_backward_queries_128)

#endif
