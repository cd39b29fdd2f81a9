// Causal attention of one row over the paged cache, by the blocks of a chain (chain.cu): out[h] = sum_k softmax_k(scale q[h] k[k]) v[k].
//
// Shapes: qkv [n_heads + 2 n_kv_heads, D], out [n_heads, D], blocks as in paged_cache.cuh. Source: the running softmax of FlashAttention-2
// (arXiv 2307.08691), positions shared out among blocks as in Flash-Decoding (split KV).
//
// An item of work is up to 8 query heads of one KV head and a share of the positions that the row sees, of which each warp takes 16 at
// a time. Scores are products of queries and keys, what comes of the values is transposed: of values and probabilities. A warp keeps for
// each query a running maximum, in units of log2, a divisor and sums, all f32; those of warps, then of shares are merged in one order.
// Probabilities are rounded before they are multiplied, as in attention_paged.cu. How many shares there are, and so the last bits, depends on
// the number of multiprocessors.
//
// Operands are read from the cache as registers. A sum has any order, so lane `c` of four has of queries and keys the numbers
// 8 c .. 8 c + 8 of each 32; and rows of a product have any place, so lane `g` of eight has of values 8 g .. 8 g + 8 of each 64.
//
// What was in the cache before is read while the blocks wait for the row of qkv.
#pragma once

#include "append.cuh"

namespace attention_row {

constexpr int QUERIES = 8;
// Positions of a warp.
constexpr int KEYS = 16;

// What is attended to, and where the result goes. Names as in chain.rs; `angles.table` is null where queries and keys were rotated, and
// keys and values appended, before.
struct Arguments {
    const bf16* qkv;
    bf16* out;
    Angles angles;
    bf16* blocks;
    const uint32_t* tables;
    const uint32_t* row_sequences;
    const uint32_t* row_positions;
    // Of shares, where there are several: sums [groups, shares, QUERIES, D], then [groups, shares, QUERIES, 2 (maximum, divisor)].
    float* scratch;
    // For each group of queries how many of its shares are done, 0 before and afterwards.
    uint32_t* n_done;
    int n_heads, n_kv_heads, table_stride, window, n_shares;
    float factor;
};

// Groups of queries that one KV head has.
DEVICE int n_groups_of_head(const Arguments& a) { return (a.n_heads / a.n_kv_heads + QUERIES - 1) / QUERIES; }
DEVICE int count_items(const Arguments& a) { return a.n_kv_heads * n_groups_of_head(a) * a.n_shares; }

// Two columns of a sum, and what they are to be divided by.
struct Merged {
    float sums[2], max, divisor;
};
// Merges what `n` warps or shares gave of a query, [n, QUERIES, D] and [n, QUERIES, 2], AT_ONCE of them at a time, read by `load`.
template <int D, int AT_ONCE, typename Load>
DEVICE Merged merge(const float* sums, const float* stats, int n, int query, int column, Load load) {
    Merged all = {{0, 0}, -INFINITY, 0};
    for (int first = 0; first < n; first += AT_ONCE) {
        float2 of_sums[AT_ONCE], of_stats[AT_ONCE];
        float max = all.max;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int at = min(first + i, n - 1) * QUERIES + query;
            of_stats[i] = load(stats + at * 2);
            of_sums[i] = load(sums + at * D + column);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) max = fmaxf(max, of_stats[i].x);
        float before = exp2_approx(all.max - or_zero(max));
        all = {{all.sums[0] * before, all.sums[1] * before}, max, all.divisor * before};
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            float by = first + i < n ? exp2_approx(of_stats[i].x - or_zero(max)) : 0.0f;
            all.divisor = fmaf(of_stats[i].y, by, all.divisor);
            all.sums[0] = fmaf(of_sums[i].x, by, all.sums[0]);
            all.sums[1] = fmaf(of_sums[i].y, by, all.sums[1]);
        }
    }
    return all;
}

// Eight pairs of numbers of a head, turned by the angles from `angles` on.
template <int D>
DEVICE void rotate_eight(uint4& head, uint4& upper_half, const float* angles, float factor) {
    Wide<bf16> x1 = widened(head), x2 = widened(upper_half);
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        Four cosines = load_four(angles + i), sines = load_four(angles + D / 2 + i);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            rotate_pair(x1.values[i + j], x2.values[i + j], factor * cosines.values[j], factor * sines.values[j]);
        }
    }
    head = rounded(x1), upper_half = rounded(x2);
}

// The halves of two registers: both lower ones, both upper ones.
DEVICE uint32_t lower_halves(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
DEVICE uint32_t upper_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }

// A register of 16 bytes.
DEVICE uint32_t word(const uint4& x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }

// Item number `item`. `wait` returns once the row of qkv is there. Shared memory: N_WARPS * QUERIES * (D + 2) numbers.
template <int D, int N_WARPS, typename Wait>
DEVICE void attend_item(const Arguments& a, int item, float* shared, Wait wait) {
    // Pieces of 16 bytes that a lane has of a query or key, and of a value.
    constexpr int PIECES = D / 32, VALUE_PIECES = D / 64;
    constexpr int N_THREADS = N_WARPS * 32, STEP = N_WARPS * KEYS;
    // Indices are computed again in each link: kept, they would take registers through the whole chain.
    uint32_t thread = threadIdx.x;
    hide_origin(thread);
    const int warp = thread / 32, g = thread % 32 / 4, c = thread % 4;
    const int group_len = a.n_heads / a.n_kv_heads, group = item / a.n_shares, share_idx = item % a.n_shares;
    const int group_in_head = group % n_groups_of_head(a), kv_head = group / n_groups_of_head(a);
    const int first_head = kv_head * group_len + group_in_head * QUERIES, n_queries = min(QUERIES, group_len - group_in_head * QUERIES);
    const int position = a.row_positions[0];
    const uint32_t* const table = a.tables + static_cast<int64_t>(a.row_sequences[0]) * a.table_stride;
    const int first_key = a.window > 0 && position >= a.window ? position + 1 - a.window : 0;
    // Shares begin at sixteens of positions, which are in one block.
    const int from = first_key / KEYS * KEYS;
    const int n_sixteens = ((position + 1 - from + KEYS - 1) / KEYS + a.n_shares - 1) / a.n_shares;
    const int begin = from + share_idx * n_sixteens * KEYS, end = min(begin + n_sixteens * KEYS, position + 1);
    const bool rotates = a.angles.table != nullptr;

    // The key (`which` 0) or value (1) of a position of the head.
    const auto place_of = [&](int at, int which) {
        int64_t head = (static_cast<int64_t>(table[at / KEY_BLOCK]) * 2 + which) * a.n_kv_heads + kv_head;
        return a.blocks + (head * KEY_BLOCK + at % KEY_BLOCK) * D;
    };
    // Keys g and g + 8 of sixteen; values 2 c, 2 c + 1, 2 c + 8 and 2 c + 9. Behind the end anything, without a condition: the reads would
    // be waited for one after the other.
    uint4 keys[2][PIECES], values[4][VALUE_PIECES];
    const auto key_of_value = [&](int i) { return 2 * c + i / 2 * 8 + i % 2; };
    const auto load_keys = [&](int first) {
        const bf16* address = place_of(min(first, position / KEYS * KEYS), 0) + g * D + c * 8;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < PIECES; j++) keys[i][j] = load_once(reinterpret_cast<const uint4*>(address + i * 8 * D + j * 32));
    };
    const auto load_values = [&](int first) {
        const bf16* address = place_of(min(first, position / KEYS * KEYS), 1) + 2 * c * D + g * 8;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < VALUE_PIECES; j++) {
                values[i][j] = load_once(reinterpret_cast<const uint4*>(address + (i / 2 * 8 + i % 2) * D + j * 64));
            }
    };
    int first = begin + warp * KEYS;
    load_keys(first);
    load_values(first);
    const uint32_t entry = rotates ? a.angles.entries[0] : 0;
    wait();

    // The queries, the new key and the new value, [QUERIES + 2, D].
    bf16 *const row = reinterpret_cast<bf16*>(shared), *const new_key = row + QUERIES * D, *const new_value = new_key + D;
    const auto piece_of = [](bf16* address) -> uint4& { return *reinterpret_cast<uint4*>(address); };
    const auto load_piece = [&](int head, int at) { return load_fresh(reinterpret_cast<const uint4*>(a.qkv + head * D + at)); };
    for (int i = thread; i < (n_queries + 1) * (D / 16); i += N_THREADS) {
        const int head_idx = i / (D / 16), at = i % (D / 16) * 8;
        const bool is_key = head_idx == n_queries;
        const int head = is_key ? a.n_heads + kv_head : first_head + head_idx;
        uint4 piece = load_piece(head, at), upper_half = load_piece(head, at + D / 2);
        if (rotates) {
            const float* const angles = a.angles.table + static_cast<int64_t>(entry) * D + at;
            rotate_eight<D>(piece, upper_half, angles, is_key ? 1.0f : a.angles.query_factors[entry]);
        }
        bf16* const to = is_key ? new_key : row + head_idx * D;
        piece_of(to + at) = piece, piece_of(to + at + D / 2) = upper_half;
    }
    // By the last threads, which have no piece of a few queries.
    if (int i = N_THREADS - 1 - thread; i < D / 8) piece_of(new_value + i * 8) = load_piece(a.n_heads + a.n_kv_heads + kv_head, i * 8);
    sync_block();
    if (int i = N_THREADS - 1 - thread; rotates && group_in_head == 0 && begin <= position && position < end && i < D / 8) {
        piece_of(place_of(position, 0) + i * 8) = piece_of(new_key + i * 8);
        piece_of(place_of(position, 1) + i * 8) = piece_of(new_value + i * 8);
    }
    uint4 query[PIECES];
#pragma unroll
    for (int i = 0; i < PIECES; i++) query[i] = piece_of(row + min(g, n_queries - 1) * D + c * 8 + i * 32);

    // Of query g, of this lane's keys; and of queries 2 c and 2 c + 1, pair after pair of the lane's numbers of a value: [2 numbers, 2 queries].
    float max = -INFINITY, divisor = 0, sums[D / 16][4] = {};
    for (; first < end; first += STEP) {
        if (rotates && first <= position && position < first + KEYS) {
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < PIECES; j++) {
                    if (first + i * 8 + g == position) keys[i][j] = piece_of(new_key + c * 8 + j * 32);
                }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < VALUE_PIECES; j++) {
                    if (first + key_of_value(i) == position) values[i][j] = piece_of(new_value + g * 8 + j * 64);
                }
        }
        const bool is_edge = first < first_key || first + KEYS > end;
        if (is_edge) {
            // What an earlier owner left may not be a number, and times 0 is not 0 then.
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = first + key_of_value(i);
#pragma unroll
                for (int j = 0; j < VALUE_PIECES; j++) {
                    if (key < first_key || key >= end) values[i][j] = uint4{};
                }
            }
        }
        // Rows are queries, of which the last 8 are none.
        float scores[2][4] = {};
#pragma unroll
        for (int j = 0; j < PIECES; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t left[4] = {word(query[j], 2 * half), 0, word(query[j], 2 * half + 1), 0};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    mma_bf16(scores[i], left, word(keys[i][j], 2 * half), word(keys[i][j], 2 * half + 1));
                }
            }
        load_keys(first + STEP);
        float new_max = max;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int key = first + i * 8 + c * 2 + j;
                bool is_seen = !is_edge || (key >= first_key && key < end);
                scores[i][j] = is_seen ? scores[i][j] * a.factor : -INFINITY;
                new_max = fmaxf(new_max, scores[i][j]);
            }
        new_max = fmaxf(new_max, shuffle_xor(new_max, 1));
        new_max = fmaxf(new_max, shuffle_xor(new_max, 2));
        float base = or_zero(new_max), rescale = exp2_approx(max - base);
        max = new_max;
        divisor *= rescale;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                scores[i][j] = exp2_approx(scores[i][j] - base);
                divisor += scores[i][j];
            }
        uint32_t probabilities[2] = {pack_bf16(scores[0][0], scores[0][1]), pack_bf16(scores[1][0], scores[1][1])};
        float of_queries[2] = {shuffle(rescale, 8 * c), shuffle(rescale, 8 * c + 4)};
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] *= of_queries[j % 2];
            uint32_t at[4];
#pragma unroll
            for (int j = 0; j < 4; j++) at[j] = word(values[j][i / 4], i % 4);
            uint32_t left[4] = {lower_halves(at[0], at[1]), upper_halves(at[0], at[1]), lower_halves(at[2], at[3]),
                                upper_halves(at[2], at[3])};
            mma_bf16(sums[i], left, probabilities[0], probabilities[1]);
        }
        load_values(first + STEP);
    }

    divisor += shuffle_xor(divisor, 1);
    divisor += shuffle_xor(divisor, 2);
    // No warp needs the row any more.
    sync_block();
    float* const stats = shared + N_WARPS * QUERIES * D;
    if (c == 0 && g < n_queries) {
        float* to = stats + (warp * QUERIES + g) * 2;
        to[0] = max, to[1] = divisor;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float* to = shared + (warp * QUERIES + 2 * c + i) * D + g * 8;
#pragma unroll
        for (int j = 0; j < D / 16; j += 2) {
            Four four = {{sums[j][i], sums[j][i + 2], sums[j + 1][i], sums[j + 1][i + 2]}};
            if (2 * c + i < n_queries) store_four(to + j / 4 * 64 + j % 4 * 2, four);
        }
    }
    sync_block();
    // The warps of the block, then its share with the others.
    const auto write_out = [&](const Merged& all, int query, int column) {
        bf16* to = a.out + (first_head + query) * D + column;
        *reinterpret_cast<uint32_t*>(to) = pack_bf16(all.sums[0] / all.divisor, all.sums[1] / all.divisor);
    };
    const int64_t n_slots = static_cast<int64_t>(count_items(a)) * QUERIES, first_slot = static_cast<int64_t>(group) * a.n_shares * QUERIES;
    float* const of_shares = a.scratch + first_slot * D;
    float* const stats_of_shares = a.scratch + n_slots * D + first_slot * 2;
    for (int i = thread; i < n_queries * (D / 2); i += N_THREADS) {
        int query = i / (D / 2), column = i % (D / 2) * 2;
        const auto load = [](const float* address) { return *reinterpret_cast<const float2*>(address); };
        Merged all = merge<D, N_WARPS>(shared, stats, N_WARPS, query, column, load);
        if (a.n_shares == 1) {
            write_out(all, query, column);
            continue;
        }
        int slot = share_idx * QUERIES + query;
        *reinterpret_cast<float2*>(of_shares + slot * D + column) = {all.sums[0], all.sums[1]};
        if (column == 0) *reinterpret_cast<float2*>(stats_of_shares + slot * 2) = {all.max, all.divisor};
    }
    if (a.n_shares > 1 && arrive_last(a.n_done + group, a.n_shares)) {
        for (int i = thread; i < n_queries * (D / 2); i += N_THREADS) {
            int query = i / (D / 2), column = i % (D / 2) * 2;
            const auto load = [](const float* address) { return load_fresh(reinterpret_cast<const float2*>(address)); };
            write_out(merge<D, 16>(of_shares, stats_of_shares, a.n_shares, query, column, load), query, column);
        }
    }
    // Others write to shared memory next.
    sync_block();
}

// The items of this block.
template <int D, int N_WARPS, typename Wait>
DEVICE void attend(const Arguments& a, float* shared, Wait wait) {
    int n_items = count_items(a);
    if (blockIdx.x >= n_items) wait();
    for (int item = blockIdx.x; item < n_items; item += gridDim.x) {
        attend_item<D, N_WARPS>(a, item, shared, [&]() {
            if (item == blockIdx.x) wait();
        });
    }
}

}  // namespace attention_row
