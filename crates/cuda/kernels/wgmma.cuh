// Products of a warpgroup, four warps, on the tensor cores of Hopper (wgmma, sm_90a): asynchronous, operands read from shared memory.
//
// d[64, N] = or += a [64, 16] b [16, N] of bf16. Of d and of a in registers a warp has 16 rows, in the fragments of mma_bf16():
// d[n] are columns 8 n to 8 n + 7. Operands in shared memory are panels: 64 columns of rows, 128 bytes each, in which the 16 bytes
// `chunk` of a row stand at chunk ^ (row % 8); a panel begins at a multiple of 1024 bytes. The hardware undoes that exchange by
// bits of the address (swizzle mode 128 B). Sums run along the rows of the panels (a; b "K-major"), or, for a transposed b
// ("MN-major"), across them.
//
// The order is: stores, copies_wait() -> fence_async() -> barrier -> wgmma_fence() -> products -> wgmma_commit() ->
// wgmma_wait(). Until the wait neither registers nor shared memory of a product may be touched.
#pragma once

#include "primitives.cuh"

#ifdef GALERNE_EMULATOR
template <int N>
struct Wgmma {
    template <int TRANSPOSED, int M>
    DEVICE static void shared(float (&d)[M][4], uint64_t a, uint64_t b, int add) {
        static_assert(M * 8 >= N, "accumulators");
        emulator::wgmma({&d[0][0], nullptr, a, b, N, TRANSPOSED != 0, add != 0});
    }
    template <int TRANSPOSED, int M>
    DEVICE static void registers(float (&d)[M][4], const uint32_t (&a)[4], uint64_t b, int add) {
        static_assert(M * 8 >= N, "accumulators");
        emulator::wgmma({&d[0][0], a, 0, b, N, TRANSPOSED != 0, add != 0});
    }
};
DEVICE uint32_t shared_address(const void* shared) { return emulator::shared_address(shared); }
DEVICE void fence_async() { emulator::fence_copies(); }
DEVICE void wgmma_fence() { emulator::wgmma_fence(); }
DEVICE void wgmma_commit() { emulator::wgmma_commit(); }
template <int N>
DEVICE void wgmma_wait_groups() { emulator::wgmma_wait(N); }
template <int M>
DEVICE void wgmma_hold(float (&)[M][4]) {}
#else
DEVICE uint32_t shared_address(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

// Makes what this thread wrote to shared memory, and what it copied there and waited for, visible to products.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Orders registers before products; needed before the first of some and after registers were changed.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes a group of products.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
DEVICE void wgmma_wait_groups() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// No use of these registers is moved across.
template <int M>
DEVICE void wgmma_hold(float (&d)[M][4]) {
#pragma unroll
    for (int n = 0; n < M; n++) asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

// One product, not waited for: a in shared memory or in registers, b in shared memory. Without `add`, d is overwritten.
template <int N>
struct Wgmma;

template <>
struct Wgmma<64> {
    template <int TRANSPOSED, int M>
    DEVICE static void shared(float (&d)[M][4], uint64_t a, uint64_t b, int add) {
        static_assert(M >= 8, "accumulators");
        asm volatile(
            "{\n.reg .pred p;\n"
            "setp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
            "%32, %33, p, 1, 1, 0, %35;\n}\n"
            : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
              "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
              "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
              "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
              "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
              "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
              "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
              "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
            : "l"(a), "l"(b), "r"(add), "n"(TRANSPOSED));
    }
    template <int TRANSPOSED, int M>
    DEVICE static void registers(float (&d)[M][4], const uint32_t (&a)[4], uint64_t b, int add) {
        static_assert(M >= 8, "accumulators");
        asm volatile(
            "{\n.reg .pred p;\n"
            "setp.ne.b32 p, %37, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
            "{%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}\n"
            : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
              "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
              "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
              "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
              "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
              "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
              "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
              "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED));
    }
};

template <>
struct Wgmma<128> {
    template <int TRANSPOSED, int M>
    DEVICE static void shared(float (&d)[M][4], uint64_t a, uint64_t b, int add) {
        static_assert(M >= 16, "accumulators");
        asm volatile(
            "{\n.reg .pred p;\n"
            "setp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
            "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
            "%64, %65, p, 1, 1, 0, %67;\n}\n"
            : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
              "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
              "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
              "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
              "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
              "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
              "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
              "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
              "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),
              "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
              "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),
              "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
              "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),
              "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
              "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),
              "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
            : "l"(a), "l"(b), "r"(add), "n"(TRANSPOSED));
    }
    template <int TRANSPOSED, int M>
    DEVICE static void registers(float (&d)[M][4], const uint32_t (&a)[4], uint64_t b, int add) {
        static_assert(M >= 16, "accumulators");
        asm volatile(
            "{\n.reg .pred p;\n"
            "setp.ne.b32 p, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
            "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
            "{%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}\n"
            : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
              "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
              "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
              "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
              "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
              "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
              "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
              "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
              "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),
              "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
              "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),
              "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
              "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),
              "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
              "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),
              "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED));
    }
};
#endif

// Waits until at most the last N groups are still on their way. `sums` are those of the products that are waited for.
template <int N, int M>
DEVICE void wgmma_wait(float (&sums)[M][4]) {
    wgmma_wait_groups<N>();
    wgmma_hold(sums);
}

// Where an operand begins: `panel_bytes` from a panel to the next, which matters where b is transposed and N is 128.
DEVICE uint64_t wgmma_operand(const void* shared, int panel_bytes) {
    constexpr uint64_t GROUP_BYTES = 8 * 128, SWIZZLE_128 = 1;
    return (shared_address(shared) & 0x3ffff) >> 4 | static_cast<uint64_t>(panel_bytes >> 4) << 16 | GROUP_BYTES >> 4 << 32 |
           SWIZZLE_128 << 62;
}
// The operand that begins so many bytes later: 32 for the next 16 columns of a panel, 2048 for its next 16 rows.
DEVICE uint64_t wgmma_moved(uint64_t operand, int bytes) { return operand + static_cast<uint64_t>(bytes >> 4); }
