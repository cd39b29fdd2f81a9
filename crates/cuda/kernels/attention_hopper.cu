// Causal attention within the documents of a batch on the tensor cores of Hopper: bf16, heads of 64 or 128. What it computes, its
// tiles and its arguments are those of attention_packed.cu.
//
// A block has 128 queries of one head, 64 of each of two warpgroups, and walks over the keys that they see. Scores are sums of a
// product from shared memory; as probabilities they are the left operand, in registers, of the product with the values. Two
// blocks share a multiprocessor, so that products of one warpgroup run while another makes probabilities.
#include "attention_hopper.cuh"

#ifdef HOPPER

namespace {

// A running maximum is left as it is while scores pass it by less than 2^SLACK: probabilities are bounded all the same.
constexpr float SLACK = 8.0f;

// What a warpgroup knows of its rows; of a lane those at lane / 4 and 8 further of the 16 of its warp.
template <int D>
struct Attended {
    float sums[D / 8][4];
    // The maximum of scores before they are scaled, and this lane's part of the divisor.
    float maxima[2], divisors[2];
};

// Takes in N keys. `queries` and `keys` are operands whose panels are that of 128 rows and of KEYS; `values` is transposed.
template <int D, int KEYS, int N>
DEVICE void attend_keys(Attended<D>& to, uint64_t queries, uint64_t keys, uint64_t values, float scale_log2, int lag, int window) {
    float scores[N / 8][4];
    wgmma_hold(scores);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        Wgmma<N>::template shared<0>(scores, column_16<TILE>(queries, k), column_16<KEYS>(keys, k), k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>(scores);

    // The first row of the warp sees the last key, the last row the first.
    if (lag < N - 1 || lag + 15 >= window) mask_keys<N>(scores, lag, window);

    float shifts[2], factors[2];
    bool rescale = false;
    const float slack = SLACK / scale_log2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = fmaxf(scores[0][2 * half], scores[0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < N / 8; n++) max = fmaxf(max, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        max = fmaxf(max, shuffle_xor(max, 1));
        max = fmaxf(max, shuffle_xor(max, 2));
        const float before = to.maxima[half];
        const bool greater = max > before + slack;
        if (greater) to.maxima[half] = max;
        // A row that has seen no key yet keeps probabilities of 0.
        const float shift = to.maxima[half] == -infinity() ? 0.0f : to.maxima[half] * scale_log2;
        factors[half] = greater ? exp2_approx(before * scale_log2 - shift) : 1.0f;
        shifts[half] = shift;
        rescale = rescale || greater;
    }
    if (rescale) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            to.divisors[half] *= factors[half];
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                to.sums[n][2 * half] *= factors[half];
                to.sums[n][2 * half + 1] *= factors[half];
            }
        }
    }
    uint32_t probabilities[N / 16][4];
    sync_warp();
    wgmma_hold(to.sums);
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int n = 2 * k + i / 2, half = i % 2;
            const float p0 = exp2_approx(scores[n][2 * half] * scale_log2 - shifts[half]);
            const float p1 = exp2_approx(scores[n][2 * half + 1] * scale_log2 - shifts[half]);
            to.divisors[half] += p0 + p1;
            probabilities[k][i] = pack_bf16(p0, p1);
        }
    }
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        Wgmma<D>::template registers<1>(to.sums, probabilities[k], row_16(values, k), 1);
    }
    wgmma_commit();
    wgmma_wait<0>(to.sums);
}

// Of 128 queries of a head: out and log_sum_exp. Blocks: [heads, tiles], of 256 threads.
template <int D, int KEYS, int STAGES>
DEVICE void attend(const bf16* qkv, const uint4* tiles, bf16* out, float* log_sum_exp, int n_heads, int n_kv_heads, float scale,
                   int window) {
    using Copiers = PanelCopier<D, 256>;
    DYNAMIC_SHARED_1024(memory);
    bf16* const queries = reinterpret_cast<bf16*>(memory);
    // STAGES times keys and values of [KEYS, D].
    bf16* const stages = queries + TILE * D;

    const int head = blockIdx.x;
    const uint4 tile = tiles[blockIdx.y];
    const int n_rows = tile.y, first = tile.z;
    const int64_t stride = static_cast<int64_t>(n_heads + 2 * n_kv_heads) * D;
    const bf16* const document = qkv + tile.x * stride;
    const int begin = max_of(first - window + 1, 0) / KEYS * KEYS;
    const int end = min_of(first + TILE, n_rows);

    const int group = shuffle(static_cast<int>(threadIdx.x / 128), 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int group_first = first + group * GROUP_ROWS, warp_first = group_first + warp * 16;

    const int key_head = n_heads + head / (n_heads / n_kv_heads);
    const bf16* keys_from = Copiers::from(document + begin * stride + key_head * D, stride);
    int copied_key = begin, copied_stage = 0;
    // The next keys and their values, if there are more, as a group of copies.
    const auto copy_keys = [&]() {
        if (copied_key < end) {
            bf16* const to = stages + copied_stage * 2 * KEYS * D;
            Copiers::template copy<KEYS>(to, keys_from, stride, n_rows - copied_key);
            Copiers::template copy<KEYS>(to + KEYS * D, keys_from + n_kv_heads * D, stride, n_rows - copied_key);
            keys_from += KEYS * stride;
            copied_key += KEYS;
            copied_stage = copied_stage + 1 == STAGES ? 0 : copied_stage + 1;
        }
        copies_commit();
    };
    const bf16* const queries_from = Copiers::from(document + first * stride + head * D, stride);
    Copiers::template copy<TILE>(queries, queries_from, stride, n_rows - first);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) copy_keys();

    const uint64_t left = wgmma_operand(queries + group * GROUP_ROWS * PANEL, TILE * 128);
    const float scale_log2 = scale * LOG2_E;
    Attended<D> attended = {};
    attended.maxima[0] = attended.maxima[1] = -infinity();

    int stage = 0;
    for (int first_key = begin; first_key < end; first_key += KEYS) {
        copies_wait<STAGES - 2>();
        fence_async();
        sync_block();
        copy_keys();
        // The last row of the warpgroup sees the first key, the first row the last one.
        const bool visible =
            group_first < n_rows && first_key < group_first + GROUP_ROWS && first_key + KEYS > group_first - window + 1;
        const uint64_t keys = wgmma_operand(stages + stage * 2 * KEYS * D, KEYS * 128);
        const uint64_t values = wgmma_operand(stages + (stage * 2 + 1) * KEYS * D, KEYS * 128);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        if (!visible) continue;
        if (KEYS > 64 && first_key + 64 >= group_first + GROUP_ROWS) {
            attend_keys<D, KEYS, 64>(attended, left, keys, values, scale_log2, warp_first - first_key, window);
        } else {
            attend_keys<D, KEYS, KEYS>(attended, left, keys, values, scale_log2, warp_first - first_key, window);
        }
    }
    copies_wait<0>();
    // The queries are no longer needed; where they were, out is put together.
    sync_block();
    if (warp_first >= n_rows) return;
    float inverses[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float divisor = attended.divisors[half];
        divisor += shuffle_xor(divisor, 1);
        divisor += shuffle_xor(divisor, 2);
        inverses[half] = 1.0f / divisor;
        const int row = warp_first + half * 8 + lane / 4;
        if (row < n_rows && lane % 4 == 0) {
            log_sum_exp[(static_cast<int64_t>(tile.x) + row) * n_heads + head] = attended.maxima[half] * scale + logf(divisor);
        }
    }
    bf16* const to = out + ((static_cast<int64_t>(tile.x) + warp_first) * n_heads + head) * D;
    write_rows<D>(attended.sums, inverses, queries + (group * GROUP_ROWS + warp * 16) * D, to, static_cast<int64_t>(n_heads) * D,
                  n_rows - warp_first);
}

}  // namespace

KERNEL_BOUNDS(attention_hopper_64, 256, 2)
(const bf16* qkv, const uint4* tiles, bf16* out, float* log_sum_exp, int n_heads, int n_kv_heads, float scale, int window) {
    attend<64, 128, 3>(qkv, tiles, out, log_sum_exp, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_hopper_64)

KERNEL_BOUNDS(attention_hopper_128, 256, 2)
(const bf16* qkv, const uint4* tiles, bf16* out, float* log_sum_exp, int n_heads, int n_kv_heads, float scale, int window) {
    attend<128, 64, 2>(qkv, tiles, out, log_sum_exp, n_heads, n_kv_heads, scale, window);
}
EXPORT(attention_hopper_128)

#endif
