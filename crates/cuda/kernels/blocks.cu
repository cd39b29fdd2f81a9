// Quantised weights as GGUF files hold them, and 8-bit floats. Layouts: ggml `ggml-common.h`; formulas: ggml `dequantize_row_*`, as crate
// `kernels` has them (blocks/decode.rs). 8-bit floats are E4M3 (arXiv 2209.05433, table 1) and have one scale, of the whole tensor.
//
// unpack_blocks_*: all numbers of some blocks, each as the CPU decodes it (products of scales and codes are exact in f32), rounded
// to the output's type.
//
// product_few_rows_*: y[t, o] (+)= sum_i x[t, i] W[o, i] for up to 8 rows t, as fast as the blocks can be read. Codes and 8-bit floats
// go into tensor cores as bf16, which holds them exactly; the sum over the numbers that share a scale is multiplied by it in f32, so that weights
// are not rounded at all. The eight warps of a block of threads take segments of 256 numbers in turn; a warp sums its segments in
// ascending order, then the warps are added in ascending order. So a row has the same bits however many rows there are.
#include "primitives.cuh"

// Blocks begin at even bytes, and so does everything in them that is read here.
DEVICE uint32_t load_16_bits(const uint8_t* address) { return *reinterpret_cast<const uint16_t*>(address); }
DEVICE uint32_t load_32_bits(const uint8_t* address) { return load_16_bits(address) | load_16_bits(address + 2) << 16; }

// A number of half precision.
DEVICE float half_to_f32(uint32_t half) {
    uint32_t bits = (half & 0x7fff) << 13;
    // 2^112 moves the exponent; it makes numbers of the subnormal ones too.
    float magnitude = (half & 0x7c00) == 0x7c00 ? float_of_bits(bits | 0x7f800000u) : float_of_bits(bits) * 5.192296858534828e33f;
    return half & 0x8000 ? -magnitude : magnitude;
}
DEVICE float load_half(const uint8_t* address) { return half_to_f32(load_16_bits(address)); }

// Eight bytes.
struct Bytes {
    uint32_t low, high;
    DEVICE int operator[](int i) const { return (i < 4 ? low >> 8 * i : high >> 8 * (i - 4)) & 255; }
};
DEVICE Bytes load_bytes(const uint8_t* address) { return {load_32_bits(address), load_32_bits(address + 4)}; }
DEVICE int as_signed(int byte) { return (byte ^ 128) - 128; }

// The table of the IQ4 kinds.
DEVICE int iq4(int code) {
    constexpr uint64_t LOW = 0xf6eaddcfbfad9881ull, HIGH = 0x7159453526190d01ull;
    return as_signed(static_cast<int>((code < 8 ? LOW : HIGH) >> 8 * (code % 8)) & 255);
}

// Scale and minimum of part `j` of eight, 6 bits each, out of 12 bytes.
DEVICE void scale_and_min(const uint8_t* scales, int j, int& scale, int& min) {
    if (j < 4) {
        scale = scales[j] & 63, min = scales[j + 4] & 63;
    } else {
        scale = (scales[j + 4] & 15) | scales[j - 4] >> 6 << 4, min = scales[j + 4] >> 4 | scales[j] >> 6 << 4;
    }
}

// Each kind: the numbers of a block, its bytes, and how the eight numbers from 8 j on are decoded.
struct Q4_0 {
    static constexpr int LEN = 32, BYTES = 18;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        float d = load_half(b);
        Bytes codes = load_bytes(b + 2 + j % 2 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = d * static_cast<float>((codes[i] >> j / 2 * 4 & 15) - 8);
    }
};
struct Q4_1 {
    static constexpr int LEN = 32, BYTES = 20;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        float d = load_half(b), m = load_half(b + 2);
        Bytes codes = load_bytes(b + 4 + j % 2 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = d * static_cast<float>(codes[i] >> j / 2 * 4 & 15) + m;
    }
};
struct Q5_0 {
    static constexpr int LEN = 32, BYTES = 22;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        float d = load_half(b);
        uint32_t fifth = load_32_bits(b + 2) >> 8 * j;
        Bytes codes = load_bytes(b + 6 + j % 2 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int code = (codes[i] >> j / 2 * 4 & 15) | static_cast<int>(fifth >> i & 1) << 4;
            out[i] = d * static_cast<float>(code - 16);
        }
    }
};
struct Q5_1 {
    static constexpr int LEN = 32, BYTES = 24;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        float d = load_half(b), m = load_half(b + 2);
        uint32_t fifth = load_32_bits(b + 4) >> 8 * j;
        Bytes codes = load_bytes(b + 8 + j % 2 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int code = (codes[i] >> j / 2 * 4 & 15) | static_cast<int>(fifth >> i & 1) << 4;
            out[i] = d * static_cast<float>(code) + m;
        }
    }
};
struct Q8_0 {
    static constexpr int LEN = 32, BYTES = 34;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        float d = load_half(b);
        Bytes codes = load_bytes(b + 2 + j * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = d * static_cast<float>(as_signed(codes[i]));
    }
};
struct Iq4Nl {
    static constexpr int LEN = 32, BYTES = 18;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        float d = load_half(b);
        Bytes codes = load_bytes(b + 2 + j % 2 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = d * static_cast<float>(iq4(codes[i] >> j / 2 * 4 & 15));
    }
};
// 16 scales (low half) and minima (high half), 64 bytes of numbers, two factors.
struct Q2K {
    static constexpr int LEN = 256, BYTES = 84;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        int part = j / 2;
        float scale = load_half(b + 80) * static_cast<float>(b[part] & 15);
        float min = load_half(b + 82) * static_cast<float>(b[part] >> 4);
        Bytes codes = load_bytes(b + 16 + part / 8 * 32 + part % 2 * 16 + j % 2 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = scale * static_cast<float>(codes[i] >> part % 8 / 2 * 2 & 3) - min;
    }
};
// 32 bytes of third bits, 64 of low bits, 16 scales of 6 bits in 12 bytes, a factor.
struct Q3K {
    static constexpr int LEN = 256, BYTES = 110;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        int part = j / 2;
        const uint8_t* scales = b + 96;
        int low = scales[part % 8] >> part / 8 * 4 & 15, high = scales[8 + part % 4] >> part / 4 * 2 & 3;
        float scale = load_half(b + 108) * static_cast<float>((low | high << 4) - 32);
        Bytes codes = load_bytes(b + 32 + part / 8 * 32 + part % 2 * 16 + j % 2 * 8);
        Bytes third = load_bytes(b + part % 2 * 16 + j % 2 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            // The third bit is there when the number is not below zero.
            int offset = (third[i] >> part / 2 & 1) == 0 ? 4 : 0;
            out[i] = scale * static_cast<float>((codes[i] >> part % 8 / 2 * 2 & 3) - offset);
        }
    }
};
// Two factors, 12 bytes of scales and minima, 128 bytes of numbers: each 32 bytes hold two parts.
struct Q4K {
    static constexpr int LEN = 256, BYTES = 144;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        int scale, min;
        scale_and_min(b + 4, j / 4, scale, min);
        float by = load_half(b) * static_cast<float>(scale), minus = load_half(b + 2) * static_cast<float>(min);
        Bytes codes = load_bytes(b + 16 + j / 8 * 32 + j % 4 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = by * static_cast<float>(codes[i] >> j / 4 % 2 * 4 & 15) - minus;
    }
};
// As Q4K, with 32 bytes of fifth bits before the numbers.
struct Q5K {
    static constexpr int LEN = 256, BYTES = 176;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        int scale, min;
        scale_and_min(b + 4, j / 4, scale, min);
        float by = load_half(b) * static_cast<float>(scale), minus = load_half(b + 2) * static_cast<float>(min);
        Bytes codes = load_bytes(b + 48 + j / 8 * 32 + j % 4 * 8), fifth = load_bytes(b + 16 + j % 4 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int code = (codes[i] >> j / 4 % 2 * 4 & 15) | (fifth[i] >> j / 4 & 1) << 4;
            out[i] = by * static_cast<float>(code) - minus;
        }
    }
};
// 128 bytes of low halves, 64 of high pairs of bits, 16 scales, a factor.
struct Q6K {
    static constexpr int LEN = 256, BYTES = 210;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        int part = j / 4, half = part / 4, quarter = part % 4;
        float scale = load_half(b + 208) * static_cast<float>(as_signed(b[192 + j / 2]));
        Bytes low = load_bytes(b + half * 64 + quarter % 2 * 32 + j % 4 * 8);
        Bytes high = load_bytes(b + 128 + half * 32 + j % 4 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int code = (low[i] >> quarter / 2 * 4 & 15) | (high[i] >> quarter * 2 & 3) << 4;
            out[i] = scale * static_cast<float>(code - 32);
        }
    }
};
// A factor, high bits of 8 scales, their low bits, 128 bytes of indices.
struct Iq4Xs {
    static constexpr int LEN = 256, BYTES = 136;
    static DEVICE void decode(const uint8_t* b, int j, float (&out)[8]) {
        int part = j / 4;
        int low = b[4 + part / 2] >> part % 2 * 4 & 15, high = load_16_bits(b + 2) >> 2 * part & 3;
        float scale = load_half(b) * static_cast<float>((low | high << 4) - 32);
        Bytes codes = load_bytes(b + 8 + part * 16 + j % 2 * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = scale * static_cast<float>(iq4(codes[i] >> j % 4 / 2 * 4 & 15));
    }
};

// Eight numbers for each thread.
template <typename Kind, typename Out>
DEVICE void unpack(const uint8_t* blocks, Out* out, int64_t n_blocks) {
    constexpr int N_THREADS = Kind::LEN / 8;
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n_blocks * N_THREADS) return;
    float numbers[8];
    Kind::decode(blocks + i / N_THREADS * Kind::BYTES, static_cast<int>(i % N_THREADS), numbers);
    constexpr int N = Pack<Out>::N;
#pragma unroll
    for (int first = 0; first < 8; first += N) {
        Pack<Out> pack;
#pragma unroll
        for (int j = 0; j < N; j++) pack.values[j] = from_f32<Out>(numbers[first + j]);
        store_pack(out + i * 8 + first, pack);
    }
}

#define UNPACK(kind, Kind)                                                                                                           \
    KERNEL(unpack_blocks_##kind##_bf16)(const uint8_t* blocks, bf16* out, int64_t n_blocks) { unpack<Kind, bf16>(blocks, out, n_blocks); } \
    EXPORT(unpack_blocks_##kind##_bf16)                                                                                              \
    KERNEL(unpack_blocks_##kind##_f32)(const uint8_t* blocks, float* out, int64_t n_blocks) { unpack<Kind, float>(blocks, out, n_blocks); } \
    EXPORT(unpack_blocks_##kind##_f32)
UNPACK(q4_0, Q4_0)
UNPACK(q4_1, Q4_1)
UNPACK(q5_0, Q5_0)
UNPACK(q5_1, Q5_1)
UNPACK(q8_0, Q8_0)
UNPACK(q2_k, Q2K)
UNPACK(q3_k, Q3K)
UNPACK(q4_k, Q4K)
UNPACK(q5_k, Q5K)
UNPACK(q6_k, Q6K)
UNPACK(iq4_nl, Iq4Nl)
UNPACK(iq4_xs, Iq4Xs)

// Kinds of one number: one for each thread.
struct F32 {
    static constexpr int BYTES = 4;
    static DEVICE float decode(const uint8_t* b) { return float_of_bits(load_32_bits(b)); }
};
struct F16 {
    static constexpr int BYTES = 2;
    static DEVICE float decode(const uint8_t* b) { return load_half(b); }
};
struct Bf16 {
    static constexpr int BYTES = 2;
    static DEVICE float decode(const uint8_t* b) { return float_of_bits(load_16_bits(b) << 16); }
};
template <typename Kind, typename Out>
DEVICE void unpack_numbers(const uint8_t* blocks, Out* out, int64_t n_blocks) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n_blocks) out[i] = from_f32<Out>(Kind::decode(blocks + i * Kind::BYTES));
}
#define UNPACK_NUMBERS(kind, Kind)                                                                     \
    KERNEL(unpack_blocks_##kind##_bf16)(const uint8_t* blocks, bf16* out, int64_t n_blocks) {          \
        unpack_numbers<Kind, bf16>(blocks, out, n_blocks);                                             \
    }                                                                                                  \
    EXPORT(unpack_blocks_##kind##_bf16)                                                                \
    KERNEL(unpack_blocks_##kind##_f32)(const uint8_t* blocks, float* out, int64_t n_blocks) {          \
        unpack_numbers<Kind, float>(blocks, out, n_blocks);                                            \
    }                                                                                                  \
    EXPORT(unpack_blocks_##kind##_f32)
UNPACK_NUMBERS(f32, F32)
UNPACK_NUMBERS(f16, F16)
UNPACK_NUMBERS(bf16, Bf16)

// A float of 8 bits, times a scale: its exponent, of bias 7, is that of f32, of bias 127, but for 2^120, which makes numbers of the
// subnormal ones too.
DEVICE float f8_e4m3_to_f32(uint32_t byte, float scale) {
    float magnitude = float_of_bits((byte & 0x7fu) == 0x7fu ? 0x7fc00000u : (byte & 0x7fu) << 20) * 0x1p120f;
    return (byte & 0x80u ? -magnitude : magnitude) * scale;
}
// Eight numbers for each thread; rows of a multiple of eight begin at such addresses.
template <typename Out>
DEVICE void unpack_f8_e4m3(const uint8_t* bytes, Out* out, int64_t n, int in_eights, float scale) {
    int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (!in_eights) {
        for (int64_t i = first; i < n && i < first + 8; i++) out[i] = from_f32<Out>(f8_e4m3_to_f32(bytes[i], scale));
    } else if (first < n) {
        uint2 words = *reinterpret_cast<const uint2*>(bytes + first);
        Bytes codes = {words.x, words.y};
        constexpr int N = Pack<Out>::N;
#pragma unroll
        for (int i = 0; i < 8; i += N) {
            Pack<Out> pack;
#pragma unroll
            for (int j = 0; j < N; j++) pack.values[j] = from_f32<Out>(f8_e4m3_to_f32(codes[i + j], scale));
            store_pack(out + first + i, pack);
        }
    }
}
#define UNPACK_F8(name, Out)                                                                      \
    KERNEL(name)(const uint8_t* bytes, Out* out, int64_t n, int in_eights, float scale) {         \
        unpack_f8_e4m3<Out>(bytes, out, n, in_eights, scale);                                     \
    }                                                                                             \
    EXPORT(name)
UNPACK_F8(unpack_f8_e4m3_bf16, bf16)
UNPACK_F8(unpack_f8_e4m3_f32, float)

constexpr int N_WARPS = 8;
// Numbers of a segment of a row.
constexpr int SEGMENT = 256;
constexpr int N_OUTPUTS = 16;
constexpr int MAX_ROWS = 8;

// Codes become bf16 as the low bits of 128 (0x4300), whose last place is 1.
constexpr uint32_t PAIR_128 = 0x43004300u;

// A lane's part of the right operand: four numbers of a row of x, in the order in which codes come out of their bytes.
struct Four {
    uint32_t even, odd;
};
struct RowsOfX {
    // The lane's row, at the lane's first number; nothing past the rows.
    const bf16* row;
    bool exists;
    DEVICE Four operator()(int k) const {
        uint2 words = {0, 0};
        if (exists) words = *reinterpret_cast<const uint2*>(row + k);
        return {(words.x & 0xffffu) | words.y << 16, words.x >> 16 | (words.y & 0xffff0000u)};
    }
};

// Of each kind: bytes of a segment, pieces of 16 bytes that hold it from whatever byte it begins at, the distance of rows in shared
// memory (eight rows lie in different banks), segments there at a time, and the products of a segment of two rows.
struct SegmentsOfQ4K {
    static constexpr int LEN = 256, BYTES = 144, N_PIECES = 9, PITCH = 144, N_STAGES = 3;
    struct Row {
        float scales[8], offsets[8];
    };
    // The factors of sum(x q), where q is what tensor cores see, and of sum(x).
    static DEVICE void factors(const uint8_t* b, Row& row) {
        uint4 head = *reinterpret_cast<const uint4*>(b);
        float d = half_to_f32(head.x & 0xffff), d_min = half_to_f32(head.x >> 16);
        uint32_t scales[2] = {head.y & 0x3f3f3f3fu, (head.w & 0x0f0f0f0fu) | (head.y >> 2 & 0x30303030u)};
        uint32_t mins[2] = {head.z & 0x3f3f3f3fu, (head.w >> 4 & 0x0f0f0f0fu) | (head.z >> 2 & 0x30303030u)};
#pragma unroll
        for (int j = 0; j < 8; j++) {
            // A byte as the low bits of 2^23.
            float scale = float_of_bits(0x4b000000u | (scales[j / 4] >> 8 * (j % 4) & 255)) - 8388608.0f;
            float min = float_of_bits(0x4b000000u | (mins[j / 4] >> 8 * (j % 4) & 255)) - 8388608.0f;
            row.scales[j] = d * scale;
            row.offsets[j] = fmaf(-128.0f, row.scales[j], -(d_min * min));
        }
    }
    static DEVICE void add(const uint8_t* const (&b)[2], int, const RowsOfX& x, float (&sums)[4]) {
        int t = threadIdx.x % 4;
        Row rows[2];
        factors(b[0], rows[0]);
        factors(b[1], rows[1]);
        const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
        constexpr uint32_t MASK = 0x000f000fu;
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            uint32_t words[2][2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    words[half][r] = *reinterpret_cast<const uint32_t*>(b[r] + 16 + 32 * pair + 16 * half + 4 * t);
                }
            }
#pragma unroll
            for (int part = 0; part < 2; part++) {
                float products[4] = {0, 0, 0, 0}, of_x[4] = {0, 0, 0, 0};
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint32_t low = words[half][0] >> 4 * part, high = words[half][1] >> 4 * part;
                    uint32_t a[4] = {(low & MASK) | PAIR_128, (high & MASK) | PAIR_128, (low >> 8 & MASK) | PAIR_128,
                                     (high >> 8 & MASK) | PAIR_128};
                    Four four = x(64 * pair + 32 * part + 16 * half);
                    mma_bf16(products, a, four.even, four.odd);
                    mma_bf16(of_x, ones, four.even, four.odd);
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const Row& row = rows[i / 2];
                    sums[i] = fmaf(row.scales[2 * pair + part], products[i], sums[i]);
                    sums[i] = fmaf(row.offsets[2 * pair + part], of_x[i], sums[i]);
                }
            }
        }
    }
};
struct SegmentsOfQ6K {
    static constexpr int LEN = 256, BYTES = 210, N_PIECES = 14, PITCH = 240, N_STAGES = 3;
    static DEVICE void add(const uint8_t* const (&b)[2], int, const RowsOfX& x, float (&sums)[4]) {
        int t = threadIdx.x % 4;
        // 128 + 32, which codes are above zero by.
        constexpr uint32_t PAIR_160 = 0x43204320u;
        float factors[2] = {load_half(b[0] + 208), load_half(b[1] + 208)};
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int sixteen = 0; sixteen < 2; sixteen++) {
                uint32_t lows[2][2], highs[2];
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const uint8_t* from = b[r] + 16 * sixteen + 4 * t;
                    lows[0][r] = load_32_bits(from + 64 * half);
                    lows[1][r] = load_32_bits(from + 64 * half + 32);
                    highs[r] = load_32_bits(from + 128 + 32 * half);
                }
#pragma unroll
                for (int quarter = 0; quarter < 4; quarter++) {
                    uint32_t a[4];
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        uint32_t low = lows[quarter % 2][r] >> quarter / 2 * 4, high = highs[r] >> 2 * quarter << 4;
                        uint32_t even = (low & 0x000f000fu) | (high & 0x00300030u) | PAIR_128;
                        uint32_t odd = (low >> 8 & 0x000f000fu) | (high >> 8 & 0x00300030u) | PAIR_128;
                        a[r] = subtract_bf16(even, PAIR_160);
                        a[r + 2] = subtract_bf16(odd, PAIR_160);
                    }
                    Four four = x(128 * half + 32 * quarter + 16 * sixteen);
                    float products[4] = {0, 0, 0, 0};
                    mma_bf16(products, a, four.even, four.odd);
                    int scale_at = 192 + 8 * half + 2 * quarter + sixteen;
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        float scale = factors[r] * static_cast<float>(static_cast<int8_t>(b[r][scale_at]));
                        sums[2 * r] = fmaf(scale, products[2 * r], sums[2 * r]);
                        sums[2 * r + 1] = fmaf(scale, products[2 * r + 1], sums[2 * r + 1]);
                    }
                }
            }
        }
    }
};
struct SegmentsOfQ8_0 {
    static constexpr int LEN = 32, BYTES = 272, N_PIECES = 18, PITCH = 304, N_STAGES = 2;
    // The byte codes -128..127 of bits 0 to 7 and 16 to 23.
    static DEVICE uint32_t codes(uint32_t bytes) {
        // 128 and the low seven bits, less 128, or 256 where the code is below zero.
        return subtract_bf16((bytes & 0x007f007fu) | PAIR_128, (bytes & 0x00800080u) | PAIR_128);
    }
    static DEVICE void add(const uint8_t* const (&b)[2], int n_blocks, const RowsOfX& x, float (&sums)[4]) {
        int t = threadIdx.x % 4;
#pragma unroll
        for (int block = 0; block < SEGMENT / LEN; block++) {
            if (block >= n_blocks) break;
            float products[4] = {0, 0, 0, 0};
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t low = load_32_bits(b[0] + 34 * block + 2 + 16 * half + 4 * t);
                uint32_t high = load_32_bits(b[1] + 34 * block + 2 + 16 * half + 4 * t);
                uint32_t a[4] = {codes(low), codes(high), codes(low >> 8), codes(high >> 8)};
                Four four = x(32 * block + 16 * half);
                mma_bf16(products, a, four.even, four.odd);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i] = fmaf(load_half(b[i / 2] + 34 * block), products[i], sums[i]);
        }
    }
};
// None of the numbers is a NaN, and rows are of a multiple of 16.
struct SegmentsOfF8E4M3 {
    static constexpr int LEN = 16, BYTES = 256, N_PIECES = 16, PITCH = 272, N_STAGES = 3;
    // The bytes of bits 0 to 7 and 16 to 23: the exponent, of bias 7, is that of bf16, of bias 127, but for 2^120 (0x7b80), which makes
    // numbers of the subnormal ones too.
    static DEVICE uint32_t numbers(uint32_t bytes) {
        return multiply_bf16((bytes << 4 & 0x07f007f0u) | (bytes << 8 & 0x80008000u), 0x7b807b80u);
    }
    static DEVICE void add(const uint8_t* const (&b)[2], int n_blocks, const RowsOfX& x, float (&sums)[4]) {
        int t = threadIdx.x % 4;
#pragma unroll
        for (int block = 0; block < SEGMENT / LEN; block++) {
            if (block >= n_blocks) break;
            uint32_t low = *reinterpret_cast<const uint32_t*>(b[0] + 16 * block + 4 * t);
            uint32_t high = *reinterpret_cast<const uint32_t*>(b[1] + 16 * block + 4 * t);
            uint32_t a[4] = {numbers(low), numbers(high), numbers(low >> 8), numbers(high >> 8)};
            Four four = x(16 * block);
            mma_bf16(sums, a, four.even, four.odd);
        }
    }
};

// A block of threads computes 16 outputs, which are multiplied by `scale` where SCALED. Shared memory: [warps, stages, 16, PITCH].
template <typename Segments, typename Out, bool SCALED = false>
DEVICE void multiply(const bf16* x, const uint8_t* blocks, Out* y, int n_rows, int n_out, int n_in, int y_stride, int accumulate,
                     uint8_t* shared, float* partials, float scale = 1.0f) {
    constexpr int BLOCK_BYTES = Segments::BYTES * Segments::LEN / SEGMENT;
    constexpr int STAGE_BYTES = N_OUTPUTS * Segments::PITCH;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int n_blocks = n_in / Segments::LEN;
    constexpr int BLOCKS_OF_SEGMENT = SEGMENT / Segments::LEN;
    int64_t row_bytes = static_cast<int64_t>(n_blocks) * BLOCK_BYTES;
    int64_t first_output = static_cast<int64_t>(blockIdx.x) * N_OUTPUTS;
    uint8_t* stages = shared + warp * Segments::N_STAGES * STAGE_BYTES;
    // Byte of `blocks` at which a segment of an output begins; past the outputs, of the last.
    auto begin = [&](int output, int segment) {
        int64_t row = first_output + output < n_out ? first_output + output : n_out - 1;
        return row * row_bytes + static_cast<int64_t>(segment) * Segments::BYTES;
    };
    auto blocks_of = [&](int segment) {
        int left = n_blocks - segment * BLOCKS_OF_SEGMENT;
        return left < BLOCKS_OF_SEGMENT ? left : BLOCKS_OF_SEGMENT;
    };
    auto begin_copy = [&](int i) {
        int segment = i * N_WARPS + warp, n_bytes = blocks_of(segment) * BLOCK_BYTES;
        uint8_t* stage = stages + i % Segments::N_STAGES * STAGE_BYTES;
        for (int j = lane; n_bytes > 0 && j < N_OUTPUTS * Segments::N_PIECES; j += 32) {
            int output = j / Segments::N_PIECES, piece = j % Segments::N_PIECES * 16;
            int64_t from = begin(output, segment);
            int skipped = from % 16;
            copy_16_async(stage + output * Segments::PITCH + piece, blocks + from - skipped + piece, piece < skipped + n_bytes);
        }
        copies_commit();
    };
#pragma unroll
    for (int i = 0; i < Segments::N_STAGES - 1; i++) begin_copy(i);
    float sums[4] = {0, 0, 0, 0};
    for (int i = 0; blocks_of(i * N_WARPS + warp) > 0; i++) {
        begin_copy(i + Segments::N_STAGES - 1);
        copies_wait<Segments::N_STAGES - 1>();
        sync_warp();
        int segment = i * N_WARPS + warp;
        const uint8_t* stage = stages + i % Segments::N_STAGES * STAGE_BYTES;
        const uint8_t* b[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int output = lane / 4 + 8 * half;
            b[half] = stage + output * Segments::PITCH + begin(output, segment) % 16;
        }
        int row = lane / 4;
        bool exists = row < n_rows;
        RowsOfX rows{x + static_cast<int64_t>(exists ? row : 0) * n_in + segment * SEGMENT + lane % 4 * 4, exists};
        Segments::add(b, blocks_of(segment), rows, sums);
        // All lanes have read this stage before it is filled again.
        sync_warp();
    }
    copies_wait<0>();
    // [warps, rows, outputs]
#pragma unroll
    for (int i = 0; i < 4; i++) {
        partials[(warp * MAX_ROWS + lane % 4 * 2 + i % 2) * N_OUTPUTS + lane / 4 + i / 2 * 8] = sums[i];
    }
    sync_block();
    int row = threadIdx.x / N_OUTPUTS;
    int64_t output = first_output + threadIdx.x % N_OUTPUTS;
    if (row < n_rows && output < n_out) {
        float sum = partials[threadIdx.x];
#pragma unroll
        for (int of_warp = 1; of_warp < N_WARPS; of_warp++) sum += partials[of_warp * MAX_ROWS * N_OUTPUTS + threadIdx.x];
        if constexpr (SCALED) sum *= scale;
        Out* out = y + static_cast<int64_t>(row) * y_stride + output;
        *out = from_f32<Out>(accumulate ? to_f32(*out) + sum : sum);
    }
}

// Grid [n_out / 16], 256 threads. The memory of `blocks` begins at, and goes on to, a multiple of 16 bytes.
#define PRODUCT(name, Segments, Out, n_per_multiprocessor)                                                       \
    KERNEL_BOUNDS(name, N_WARPS * 32, n_per_multiprocessor)                                                      \
    (const bf16* x, const uint8_t* blocks, Out* y, int n_rows, int n_out, int n_in, int y_stride, int accumulate) { \
        DYNAMIC_SHARED(shared);                                                                                  \
        __shared__ float partials[N_WARPS * MAX_ROWS * N_OUTPUTS];                                               \
        multiply<Segments, Out>(x, blocks, y, n_rows, n_out, n_in, y_stride, accumulate, shared, partials);      \
    }                                                                                                            \
    EXPORT(name)
PRODUCT(product_few_rows_q4_k, SegmentsOfQ4K, bf16, 3)
PRODUCT(product_few_rows_q4_k_to_f32, SegmentsOfQ4K, float, 3)
PRODUCT(product_few_rows_q6_k, SegmentsOfQ6K, bf16, 2)
PRODUCT(product_few_rows_q6_k_to_f32, SegmentsOfQ6K, float, 2)
PRODUCT(product_few_rows_q8_0, SegmentsOfQ8_0, bf16, 2)
PRODUCT(product_few_rows_q8_0_to_f32, SegmentsOfQ8_0, float, 2)
#define PRODUCT_F8(name, Out)                                                                                    \
    KERNEL_BOUNDS(name, N_WARPS * 32, 2)                                                                         \
    (const bf16* x, const uint8_t* bytes, Out* y, int n_rows, int n_out, int n_in, int y_stride, int accumulate, \
     float scale) {                                                                                              \
        DYNAMIC_SHARED(shared);                                                                                  \
        __shared__ float partials[N_WARPS * MAX_ROWS * N_OUTPUTS];                                               \
        multiply<SegmentsOfF8E4M3, Out, true>(x, bytes, y, n_rows, n_out, n_in, y_stride, accumulate, shared,    \
                                              partials, scale);                                                  \
    }                                                                                                            \
    EXPORT(name)
PRODUCT_F8(product_few_rows_f8_e4m3, bf16)
PRODUCT_F8(product_few_rows_f8_e4m3_to_f32, float)
