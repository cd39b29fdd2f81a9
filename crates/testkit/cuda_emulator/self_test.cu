// Kernels that show whether the emulator does what a GPU does, and whether it catches what a kernel must not do.
#include "wgmma.cuh"

// Each block reverses `blockDim.x` numbers through shared memory, then moves them down by one place, the first to the end.
KERNEL(reverse_blocks)(const float* x, float* out) {
    DYNAMIC_SHARED(bytes);
    float* values = reinterpret_cast<float*>(bytes);
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * blockDim.x;
    values[threadIdx.x] = x[begin + threadIdx.x];
    sync_block();
    const float reversed = values[blockDim.x - 1 - threadIdx.x];
    sync_block();
    values[threadIdx.x] = reversed;
    sync_block();
    out[begin + threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}
EXPORT(reverse_blocks)

// As above without the barrier: a lane must see that the others have not written.
KERNEL(reverse_without_barrier)(const float* x, float* out) {
    DYNAMIC_SHARED(bytes);
    float* values = reinterpret_cast<float*>(bytes);
    values[threadIdx.x] = x[threadIdx.x];
    out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}
EXPORT(reverse_without_barrier)

// Static and dynamic shared memory as a block finds it: not as the block before has left it.
KERNEL(unwritten_shared)(float* out) {
    __shared__ float fixed[32];
    DYNAMIC_SHARED(bytes);
    float* dynamic = reinterpret_cast<float*>(bytes);
    out[blockIdx.x * 64 + threadIdx.x] = fixed[threadIdx.x];
    out[blockIdx.x * 64 + 32 + threadIdx.x] = dynamic[threadIdx.x];
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 1.0f;
}
EXPORT(unwritten_shared)

// out = lane of (shuffle from lane + 1, shuffle_xor by 5) for a number of 4 bytes, then of 8.
KERNEL(shuffles)(double* out) {
    const int lane = threadIdx.x;
    out[lane] = shuffle(static_cast<float>(lane), (lane + 1) % 32);
    out[32 + lane] = shuffle_xor(lane, 5);
    out[64 + lane] = shuffle(lane + 0.125, (lane + 1) % 32);
    out[96 + lane] = shuffle_xor(static_cast<int64_t>(lane) << 40, 5);
}
EXPORT(shuffles)

DEVICE uint32_t pair(bf16 low, bf16 high) { return pack_bf16(to_f32(low), to_f32(high)); }

// out += a b of a [16, 16], b [16, 8], with the fragments as the PTX manual gives them number by number.
KERNEL(multiply_by_table)(const bf16* a, const bf16* b, float* out) {
    const int group = threadIdx.x >> 2, thread = threadIdx.x % 4;
    uint32_t fragment[4];
    for (int i = 0; i < 8; i += 2) {
        // a_i: row = group for i in 0, 1, 4, 5, else group + 8; column = 2 thread + (i & 1), + 8 for i >= 4.
        const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
        const int column = thread * 2 + (i >= 4 ? 8 : 0);
        fragment[i / 2] = pair(a[row * 16 + column], a[row * 16 + column + 1]);
    }
    uint32_t right[2];
    for (int i = 0; i < 4; i += 2) {
        // b_i: row = 2 thread + (i & 1), + 8 for i >= 2; column = group.
        const int row = thread * 2 + (i >= 2 ? 8 : 0);
        right[i / 2] = pair(b[row * 8 + group], b[(row + 1) * 8 + group]);
    }
    float d[4];
    // c_i: row = group for i < 2, else group + 8; column = 2 thread + (i & 1).
    for (int i = 0; i < 4; i++) d[i] = out[(i < 2 ? group : group + 8) * 8 + thread * 2 + (i & 1)];
    mma_bf16(d, fragment, right[0], right[1]);
    for (int i = 0; i < 4; i++) out[(i < 2 ? group : group + 8) * 8 + thread * 2 + (i & 1)] = d[i];
}
EXPORT(multiply_by_table)

// out = a b of a [16, 16], b [16, 16], with operands from shared memory: a as it lies, b transposed on the way.
KERNEL(multiply_by_ldmatrix)(const bf16* a, const bf16* b, float* out) {
    __shared__ __align__(16) bf16 left[256];
    __shared__ __align__(16) bf16 right[256];
    const int lane = threadIdx.x;
    store_pack(left + lane * 8, load_pack(a + lane * 8));
    store_pack(right + lane * 8, load_pack(b + lane * 8));
    sync_block();
    uint32_t fragment[4], columns[4];
    ldmatrix_x4(fragment, left + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x4_transposed(columns, right + lane % 16 * 16 + lane / 16 * 8);
    for (int half = 0; half < 2; half++) {
        float d[4] = {};
        mma_bf16(d, fragment, columns[half * 2], columns[half * 2 + 1]);
        float* to = out + lane / 4 * 16 + half * 8 + lane % 4 * 2;
        to[0] = d[0];
        to[1] = d[1];
        to[8 * 16] = d[2];
        to[8 * 16 + 1] = d[3];
    }
}
EXPORT(multiply_by_ldmatrix)

// Two groups of copies; what each lane sees of its two places before it waits, after the first group, and after both.
// Odd lanes copy zeros in place of the first.
KERNEL(copies)(const float* x, float* out) {
    __shared__ __align__(16) float values[2][32][4];
    const int lane = threadIdx.x;
    values[0][lane][3] = values[1][lane][3] = 1.0f;
    copy_16_async(values[0][lane], x + lane * 4, lane % 2 == 0);
    copies_commit();
    copy_16_async(values[1][lane], x + (32 + lane) * 4, true);
    copies_commit();
    const volatile float* first = &values[0][lane][3];
    const volatile float* second = &values[1][lane][3];
    out[lane] = *first;
    out[32 + lane] = *second;
    copies_wait<1>();
    out[64 + lane] = *first;
    out[96 + lane] = *second;
    copies_wait<0>();
    out[128 + lane] = *first;
    out[160 + lane] = *second;
}
EXPORT(copies)

KERNEL(round_to_bf16)(const float* x, float* out) { out[threadIdx.x] = to_f32(from_f32<bf16>(x[threadIdx.x])); }
EXPORT(round_to_bf16)

// One fault, by number; each of them is caught on the way.
KERNEL(faults)(const float* x, float* out, int which) {
    __shared__ float values[32];
    DYNAMIC_SHARED(bytes);
    const int thread = threadIdx.x;
    float got = 0;
    values[thread % 32] = 1;
    if (which == 0) got = x[thread + 1];
    if (which == 1) out[thread - 1] = 1;
    if (which == 2) bytes[256 + thread] = 1;
    if (which == 3) got = load_pack(x + thread).values[0];
    if (which == 4 && thread != 7) sync_block();
    if (which == 5 && thread != 7) got = warp_sum(got);
    if (which == 6) {
        if (thread % 2 == 0)
            got = shuffle(got, 0);
        else
            sync_warp();
    }
    if (which == 7) copy_16_async(values, x, true);
    if (which == 8) got = values[thread + 1];
    if (which == 9) {
        uint32_t r[4];
        ldmatrix_x4(r, x);
    }
    if (which == 10) copy_16_async(values + 1, x, true);
    if (which == 11) got = shuffle(got, thread + 1);
    if (which == 13) got = x[thread];
    if (which == 12) {
        if (thread % 2 == 0)
            sync_block();
        else
            sync_warp();
    }
    out[thread] = got;
}
EXPORT(faults)

// A fault of its own: its local variables do not fit a fiber's stack.
KERNEL(much_local)(const float* x, float* out, int) {
    volatile float much[24 * 1024];
    for (int i = 24 * 1024 - 1; i >= 0; i--) much[i] = x[0];
    out[threadIdx.x] = much[threadIdx.x];
}
EXPORT(much_local)

// Puts rows of `width` numbers into panels.
DEVICE void copy_to_panels(bf16* panels, const bf16* rows, int n_rows, int width) {
    for (int i = threadIdx.x; i < n_rows * width / 8; i += blockDim.x) {
        const int row = i / (width / 8), chunk = i % (width / 8);
        bf16* const to = panels + chunk / 8 * n_rows * 64 + row * 64 + ((chunk % 8) ^ (row % 8)) * 8;
        copy_16_async(to, rows + i * 8, true);
    }
    copies_commit();
    copies_wait<0>();
}

// first = a b^T, second = bf16(first) c for a [64, 128], b [64, 128], c [64, 128]: a from shared memory, then from registers.
KERNEL(multiply_by_warpgroup)(const bf16* a, const bf16* b, const bf16* c, float* first, float* second) {
    DYNAMIC_SHARED_1024(memory);
    bf16* const panels = reinterpret_cast<bf16*>(memory);
    copy_to_panels(panels, a, 64, 128);
    copy_to_panels(panels + 64 * 128, b, 64, 128);
    copy_to_panels(panels + 2 * 64 * 128, c, 64, 128);
    fence_async();
    sync_block();
    constexpr int PANEL_BYTES = 64 * 128;
    const uint64_t left = wgmma_operand(panels, PANEL_BYTES), right = wgmma_operand(panels + 64 * 128, PANEL_BYTES);
    const uint64_t across = wgmma_operand(panels + 2 * 64 * 128, PANEL_BYTES);
    float x[8][4], y[16][4] = {};
    wgmma_fence();
    for (int k = 0; k < 8; k++) {
        const int bytes = k % 4 * 32 + k / 4 * PANEL_BYTES;
        Wgmma<64>::shared<0>(x, wgmma_moved(left, bytes), wgmma_moved(right, bytes), k > 0);
    }
    wgmma_commit();
    const bool early = x[0][0] == x[0][0];
    wgmma_wait<0>(x);
    uint32_t packed[4][4];
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++) packed[k][i] = pack_bf16(x[2 * k + i / 2][i % 2 * 2], x[2 * k + i / 2][i % 2 * 2 + 1]);
    wgmma_fence();
    for (int k = 0; k < 4; k++) {
        Wgmma<128>::registers<1>(y, packed[k], wgmma_moved(across, k * 2048), 1);
        wgmma_commit();
    }
    // The last is on its way: so are the sums.
    wgmma_wait<1>(y);
    const bool late = y[15][3] == y[15][3];
    wgmma_wait<0>(y);
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < 4; i++) {
        for (int n = 0; n < 8; n++) first[(row + i / 2 * 8) * 64 + n * 8 + column + i % 2] = early ? 0.0f : x[n][i];
        for (int n = 0; n < 16; n++) second[(row + i / 2 * 8) * 128 + n * 8 + column + i % 2] = late ? 0.0f : y[n][i];
    }
}
EXPORT(multiply_by_warpgroup)

// A fault with products of a warpgroup, by number.
KERNEL(warpgroup_faults)(const bf16* x, float* out, int which) {
    DYNAMIC_SHARED_1024(memory);
    bf16* const panels = reinterpret_cast<bf16*>(memory);
    copy_to_panels(panels, x, 64, 64);
    if (which != 15) fence_async();
    sync_block();
    const uint64_t operand = wgmma_operand(panels + (which == 20 ? 8 * 1024 : 0), 64 * 128);
    float sums[8][4] = {};
    if (which != 16) wgmma_fence();
    Wgmma<64>::shared<0>(sums, operand, which == 21 && threadIdx.x >= 64 ? wgmma_moved(operand, 32) : operand, 1);
    wgmma_commit();
    if (which == 17) panels[threadIdx.x] = from_f32<bf16>(3.0f);
    if (which == 18) sums[3][1] = 1.0f;
    if (which != 19) wgmma_wait<0>(sums);
    out[threadIdx.x] = sums[0][0];
}
EXPORT(warpgroup_faults)
