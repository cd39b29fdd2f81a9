// Blocks of the cache of keys and values.
//
// A block holds the keys and the values of 32 positions of a sequence: [2 (keys, values)][n_kv_heads][32][head_dim] numbers, in 8 bits with
// the 32 scales of a head, f32, behind its codes. Row r of a table names the blocks of sequence r by position / 32.
#pragma once

#include "primitives.cuh"

constexpr int KEY_BLOCK = 32;
// In the place of a sequence where a row has none, and of a slot of scratch where none is needed.
constexpr uint32_t NO_SLOT = 0xffffffffu;

// What a cache holds, C: bf16 or f32, or codes of 8 bits.
template <typename C>
constexpr bool IN_8_BITS = sizeof(C) == 1;
template <typename C>
DEVICE float number_of(C x) {
    if constexpr (IN_8_BITS<C>) {
        return static_cast<float>(x);
    } else {
        return to_f32(x);
    }
}
// The maximum of a row's scores, or 0 where it sees nothing yet.
DEVICE float or_zero(float max) { return max == -INFINITY ? 0.0f : max; }

// Bytes of the keys or the values of a head in a block.
template <typename C>
DEVICE constexpr int64_t head_bytes(int head_dim) {
    return KEY_BLOCK * (static_cast<int64_t>(head_dim) * sizeof(C) + (IN_8_BITS<C> ? sizeof(float) : 0));
}

// Of four codes those at even and those at odd places, as bf16: the low seven bits of a code are those of 128 + bits (0x4300), from which
// 128 is taken, and 256 (0x4380) where the eighth is set.
//
// So the columns of 16 codes in operands are in the order 0, 2, .. 14, 1, 3, .. 15.
struct Widened {
    uint32_t even, odd;
};
DEVICE uint32_t widen_pair(uint32_t codes) {
    return subtract_bf16((codes & 0x007f007fu) | 0x43004300u, (codes & 0x00800080u) | 0x43004300u);
}
DEVICE Widened widen(uint32_t codes) { return {widen_pair(codes), widen_pair(codes >> 8)}; }
