// Products of few rows: y[t, first_column + o] (+)= sum_i x[t, i] W[o, i], as fast as W can be read.
//
// bf16, up to 8 rows: W is the left operand of tensor cores, read straight from memory into their registers, x the right one. A
// lane's 16 bytes of a row are eight consecutive numbers; two products take four each, and x is read in the same order. The sum
// has one order for every number of rows: the eight warps of a block take chunks of 128 numbers in turn, each sums its chunks in
// ascending order, and the sums of the warps are added in ascending order, in f32. So a row has the same bits however many rows
// there are.
//
// f32, up to 16 rows: a warp sums two outputs; lane l takes the numbers 4 l to 4 l + 3 of each 128 in ascending order, then the
// lanes are added.
#include "primitives.cuh"

constexpr int N_WARPS = 8;
constexpr int CHUNK = 128;
// Numbers of a chunk that a lane reads one after the other are so far apart.
constexpr int STEP = 32;
constexpr int N_STEPS = CHUNK / STEP;
constexpr int MAX_ROWS = 8;
// Outputs of a block.
constexpr int TILE = 16;

// Eight numbers from `k` on of a row of `n`; zeros past its end.
template <bool ALIGNED, bool ONCE>
DEVICE uint4 load_8(const bf16* row, int k, int n) {
    if constexpr (ALIGNED) {
        if (k >= n) return {0, 0, 0, 0};
        const uint4* address = reinterpret_cast<const uint4*>(row + k);
        return ONCE ? load_once(address) : *address;
    } else {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float low = k + 2 * i < n ? to_f32(row[k + 2 * i]) : 0.0f;
            float high = k + 2 * i + 1 < n ? to_f32(row[k + 2 * i + 1]) : 0.0f;
            words[i] = pack_bf16(low, high);
        }
        return {words[0], words[1], words[2], words[3]};
    }
}

template <typename Out>
DEVICE void write_out(Out* y, float sum, int accumulate) {
    *y = from_f32<Out>(accumulate ? to_f32(*y) + sum : sum);
}

// A block computes TILE outputs of all rows.
template <typename Out, bool ALIGNED>
DEVICE void multiply(const bf16* x, const bf16* w, Out* y, int n_rows, int n_out, int n_in, int y_stride, int accumulate,
                     float* partials) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bf16* w_rows[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t row = static_cast<int64_t>(blockIdx.x) * TILE + 8 * half + lane / 4;
        w_rows[half] = w + (row < n_out ? row : n_out - 1) * n_in;
    }
    const bf16* x_row = lane / 4 < n_rows ? x + static_cast<int64_t>(lane / 4) * n_in : nullptr;
    int first = lane % 4 * 8;
    // What a warp has on its way at a time: 8 loads of 16 bytes for each lane, while it uses 8 more.
    auto load = [&](int chunk, uint4 (&buffer)[N_STEPS][2]) {
#pragma unroll
        for (int step = 0; step < N_STEPS; step++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                buffer[step][half] = load_8<ALIGNED, true>(w_rows[half], chunk + STEP * step + first, n_in);
            }
        }
    };
    float sums[4] = {0, 0, 0, 0};
    auto add = [&](int chunk, const uint4 (&buffer)[N_STEPS][2]) {
        uint4 of_x[N_STEPS];
#pragma unroll
        for (int step = 0; step < N_STEPS; step++) {
            of_x[step] = {0, 0, 0, 0};
            if (x_row != nullptr) of_x[step] = load_8<ALIGNED, false>(x_row, chunk + STEP * step + first, n_in);
        }
#pragma unroll
        for (int step = 0; step < N_STEPS; step++) {
            const uint4 &low = buffer[step][0], &high = buffer[step][1];
            uint32_t even[4] = {low.x, high.x, low.y, high.y}, odd[4] = {low.z, high.z, low.w, high.w};
            mma_bf16(sums, even, of_x[step].x, of_x[step].y);
            mma_bf16(sums, odd, of_x[step].z, of_x[step].w);
        }
    };
    wait_for_earlier();
    constexpr int TURN = N_WARPS * CHUNK;
    uint4 even[N_STEPS][2], odd[N_STEPS][2];
    int chunk = warp * CHUNK;
    if (chunk < n_in) load(chunk, even);
    for (; chunk < n_in; chunk += 2 * TURN) {
        if (chunk + TURN < n_in) load(chunk + TURN, odd);
        add(chunk, even);
        if (chunk + 2 * TURN < n_in) load(chunk + 2 * TURN, even);
        if (chunk + TURN < n_in) add(chunk + TURN, odd);
    }
    // Not earlier: the blocks of the next kernel would take the places of this one's.
    let_next_begin();
    // [warps, rows, outputs]
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int row = lane % 4 * 2 + j % 2, output = lane / 4 + j / 2 * 8;
        partials[(warp * MAX_ROWS + row) * TILE + output] = sums[j];
    }
    sync_block();
    int i = threadIdx.x, row = i / TILE;
    int64_t output = static_cast<int64_t>(blockIdx.x) * TILE + i % TILE;
    if (row < n_rows && output < n_out) {
        float sum = partials[i];
#pragma unroll
        for (int of_warp = 1; of_warp < N_WARPS; of_warp++) sum += partials[of_warp * MAX_ROWS * TILE + i];
        write_out(y + static_cast<int64_t>(row) * y_stride + output, sum, accumulate);
    }
}

// Grid [n_out / 16], 256 threads.
#define FEW_ROWS_BF16(name, Out, ALIGNED)                                                                    \
    KERNEL_BOUNDS(name, N_WARPS * 32, 2)                                                                     \
    (const bf16* x, const bf16* w, Out* y, int n_rows, int n_out, int n_in, int y_stride, int accumulate) {  \
        __shared__ float partials[N_WARPS * MAX_ROWS * TILE];                                                \
        multiply<Out, ALIGNED>(x, w, y, n_rows, n_out, n_in, y_stride, accumulate, partials);                \
    }                                                                                                        \
    EXPORT(name)
// Of rows of a multiple of 16 bytes, and of any.
FEW_ROWS_BF16(product_few_rows_bf16, bf16, true)
FEW_ROWS_BF16(product_few_rows_bf16_to_f32, float, true)
FEW_ROWS_BF16(product_few_rows_any_bf16, bf16, false)
FEW_ROWS_BF16(product_few_rows_any_bf16_to_f32, float, false)

// Two outputs of a warp, of up to N rows.
template <int N>
DEVICE void multiply_f32(const float* x, const float* w, float* y, int n_rows, int n_out, int n_in, int y_stride, int accumulate) {
    constexpr int N_UNROLLED = N <= 4 ? 4 : 1;
    int lane = threadIdx.x % 32;
    int64_t first = (static_cast<int64_t>(blockIdx.x) * N_WARPS + threadIdx.x / 32) * 2;
    const float* w_rows[2];
#pragma unroll
    for (int m = 0; m < 2; m++) w_rows[m] = w + (first + m < n_out ? first + m : n_out - 1) * n_in;
    float sums[2][N];
#pragma unroll
    for (int i = 0; i < 2 * N; i++) sums[i / N][i % N] = 0;
    if (n_in % 4 == 0) {
#pragma unroll 1
        for (int k = lane * 4; k < n_in; k += CHUNK * N_UNROLLED) {
            Pack<float> of_w[N_UNROLLED][2];
#pragma unroll
            for (int i = 0; i < N_UNROLLED; i++) {
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    of_w[i][m] = {};
                    if (k + i * CHUNK < n_in) of_w[i][m] = load_pack(w_rows[m] + k + i * CHUNK);
                }
            }
#pragma unroll
            for (int i = 0; i < N_UNROLLED; i++) {
                if (k + i * CHUNK >= n_in) break;
#pragma unroll
                for (int n = 0; n < N; n++) {
                    if (n >= n_rows) break;
                    Pack<float> of_x = load_pack(x + static_cast<int64_t>(n) * n_in + k + i * CHUNK);
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        sums[0][n] = fmaf(of_w[i][0].values[j], of_x.values[j], sums[0][n]);
                        sums[1][n] = fmaf(of_w[i][1].values[j], of_x.values[j], sums[1][n]);
                    }
                }
            }
        }
    } else {
        for (int k = lane; k < n_in; k += 32) {
            float of_w[2] = {w_rows[0][k], w_rows[1][k]};
#pragma unroll
            for (int n = 0; n < N; n++) {
                if (n >= n_rows) break;
                float of_x = x[static_cast<int64_t>(n) * n_in + k];
                sums[0][n] = fmaf(of_w[0], of_x, sums[0][n]);
                sums[1][n] = fmaf(of_w[1], of_x, sums[1][n]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2 * N; i++) {
        int m = i / N, n = i % N;
        float sum = warp_sum(sums[m][n]);
        if (lane == i && n < n_rows && first + m < n_out) {
            float* at = y + static_cast<int64_t>(n) * y_stride + first + m;
            *at = accumulate ? *at + sum : sum;
        }
    }
}

// Grid [n_out / 16], 256 threads.
#define FEW_ROWS_F32(name, N)                                                                                               \
    KERNEL(name)(const float* x, const float* w, float* y, int n_rows, int n_out, int n_in, int y_stride, int accumulate) {   \
        begin();                                                                                                            \
        multiply_f32<N>(x, w, y, n_rows, n_out, n_in, y_stride, accumulate);                                                \
    }                                                                                                                       \
    EXPORT(name)
FEW_ROWS_F32(product_few_rows_1_f32, 1)
FEW_ROWS_F32(product_few_rows_4_f32, 4)
FEW_ROWS_F32(product_few_rows_16_f32, 16)
