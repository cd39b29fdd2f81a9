// Token embedding and its gradient.
#include "rows.cuh"

// Fours of a lane.
constexpr int FOURS = 4;

// out[row] = table[token_ids[row]], widened. A warp has a piece of a row: FOURS fours for each lane, or as many single numbers
// where fours do not fill a row.
template <typename T>
DEVICE void gather(const T* table, const uint32_t* token_ids, float* out, int n_rows, int width) {
    bool in_fours = width % 4 == 0;
    unsigned n_units = in_fours ? width / 4 : width;
    unsigned pieces_per_row = (n_units + 32 * FOURS - 1) / (32 * FOURS);
    unsigned warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int64_t row = warp / pieces_per_row;
    if (row >= n_rows) return;
    unsigned start = warp % pieces_per_row * (32 * FOURS) + threadIdx.x % 32;
    table += int64_t(token_ids[row]) * width;
    out += row * width;
    if (in_fours) {
        Four values[FOURS];
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            unsigned at = start + i * 32;
            if (at < n_units) values[i] = load_four(table + at * 4);
        }
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            unsigned at = start + i * 32;
            if (at < n_units) store_four(out + at * 4, values[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            unsigned at = start + i * 32;
            if (at < n_units) out[at] = to_f32(table[at]);
        }
    }
}

KERNEL(gather_f32)(const float* table, const uint32_t* token_ids, float* out, int n_rows, int width) {
    begin();
    gather(table, token_ids, out, n_rows, width);
}
EXPORT(gather_f32)
KERNEL(gather_bf16)(const bf16* table, const uint32_t* token_ids, float* out, int n_rows, int width) {
    begin();
    gather(table, token_ids, out, n_rows, width);
}
EXPORT(gather_bf16)

constexpr int BACKWARD_WARPS = 8;
// Neighbouring rows of a group that one warp adds.
constexpr int RUN = 16;

// Adds this lane's columns of `count` rows (at most RUN) in order; all are on their way at once.
template <bool IN_FOURS>
DEVICE void add_run(Four& sum, const float* d_out, const uint32_t* rows, int count, int64_t width, bool is_there) {
    // Eight rows at a time, for the sake of registers.
#pragma unroll
    for (int half = 0; half < RUN; half += 8) {
        Four values[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            values[i] = Four{};
            if (is_there && half + i < count) {
                const float* from = d_out + int64_t(rows[half + i]) * width;
                if constexpr (IN_FOURS) {
                    values[i] = load_four(from);
                } else {
                    values[i].values[0] = *from;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (half + i < count) {
#pragma unroll
                for (int j = 0; j < (IN_FOURS ? 4 : 1); j++) sum.values[j] += values[i].values[j];
            }
        }
    }
}

// d_table[tokens[group]] += the sum of d_out[rows[i]] for i in starts[group] .. starts[group + 1]; groups of more than RUN rows come
// first, n_long of them. Block (x, columns) has long group x, or BACKWARD_WARPS of the others, one for each warp, which adds its rows
// in order to what stands in d_table.
// The rows of a long group are cut into runs of RUN rows. Warp w adds the runs congruent to w modulo BACKWARD_WARPS, row by row, the
// first warp to what stands in d_table; then the warps' sums are added in order.
template <bool IN_FOURS>
DEVICE void gather_backward_columns(const float* d_out, const uint32_t* rows, const uint32_t* starts, const uint32_t* tokens,
                                    float* d_table, int n_long, int n_groups, int width, Four (*sums)[32]) {
    constexpr int NUMBERS = IN_FOURS ? 4 : 1;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, block = blockIdx.x;
    int64_t column = (int64_t(blockIdx.y) * 32 + lane) * NUMBERS;
    bool is_there = column < width, is_long = block < n_long;
    int group = is_long ? block : n_long + (block - n_long) * BACKWARD_WARPS + warp;
    if (group >= n_groups) return;
    int first = starts[group], n = int(starts[group + 1]) - first, first_run = is_long ? warp : 0;
    float* to = d_table + int64_t(tokens[group]) * width + column;
    Four sum = {};
    if (first_run == 0 && is_there) {
        if constexpr (IN_FOURS) {
            sum = load_four(to);
        } else {
            sum.values[0] = *to;
        }
    }
    for (int start = first_run * RUN; start < n; start += RUN * BACKWARD_WARPS) {
        int count = n - start < RUN ? n - start : RUN;
        add_run<IN_FOURS>(sum, d_out + column, rows + first + start, count, width, is_there);
    }
    if (is_long) {
        sums[warp][lane] = sum;
        sync_block();
        if (warp > 0) return;
        for (int i = 1; i < BACKWARD_WARPS; i++) {
#pragma unroll
            for (int j = 0; j < NUMBERS; j++) sum.values[j] += sums[i][lane].values[j];
        }
    }
    if (is_there) {
        if constexpr (IN_FOURS) {
            store_four(to, sum);
        } else {
            *to = sum.values[0];
        }
    }
}

KERNEL_BOUNDS(gather_backward, BACKWARD_WARPS * 32, 4)(const float* d_out, const uint32_t* rows, const uint32_t* starts,
                                                       const uint32_t* tokens, float* d_table, int n_long, int n_groups,
                                                       int width) {
    __shared__ Four sums[BACKWARD_WARPS][32];
    if (width % 4 == 0) {
        gather_backward_columns<true>(d_out, rows, starts, tokens, d_table, n_long, n_groups, width, sums);
    } else {
        gather_backward_columns<false>(d_out, rows, starts, tokens, d_table, n_long, n_groups, width, sums);
    }
}
EXPORT(gather_backward)
