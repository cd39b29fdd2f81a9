// What the kernels are made of: number types, loads of 16 bytes, sums within a warp and a block, tensor cores, copies that
// run while others compute. Each has two versions: instructions of the GPU, and plain C++ in `emulator.h`, by which tests run
// the kernels where there is no GPU.
//
// A kernel is written as
//
//     KERNEL(name)(const float* x, float* out, int64_t n) { ... }
//     EXPORT(name)
//
// and is found by its name. Its arguments are pointers, numbers, and structs of these.
#pragma once

#include <stdint.h>

#ifdef GALERNE_EMULATOR
#include "emulator.h"
#else
#include <cuda_bf16.h>

#define KERNEL(name) extern "C" __global__ void name
// A kernel of `threads` threads of which at least `blocks` blocks are to fit a multiprocessor.
#define KERNEL_BOUNDS(name, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name
#define EXPORT(name)
// Of an argument that is a struct: it is read where the launch put it.
#define LAUNCH_CONSTANT __grid_constant__
#define DEVICE __device__ __forceinline__
// The memory that the launch asked for, shared by the threads of a block; aligned to 128 bytes.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) uint8_t name[]
// The same aligned to 1024 bytes, of which the launch asks for a multiple; the kernel has no static shared memory.
#define DYNAMIC_SHARED_1024(name) extern __shared__ __align__(1024) uint8_t name[]

using bf16 = __nv_bfloat16;

DEVICE float to_f32(float x) { return x; }
DEVICE float to_f32(bf16 x) { return __bfloat162float(x); }
template <typename T>
DEVICE T from_f32(float x);
template <>
DEVICE float from_f32<float>(float x) { return x; }
// Rounds to nearest, ties to even.
template <>
DEVICE bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }

// Two numbers as the register that tensor cores take: `low` in the lower half.
DEVICE uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&pair);
}

// 2^x within 2 units in the last place; results below 2^-126 are 0.
DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// 1 / x within 1 unit in the last place; results below 2^-126 are 0.
DEVICE float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Differences of two pairs, rounded.
DEVICE uint32_t subtract_bf16(uint32_t a, uint32_t b) {
    __nv_bfloat162 pair = __hsub2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
    return *reinterpret_cast<uint32_t*>(&pair);
}

// Products of two pairs, rounded.
DEVICE uint32_t multiply_bf16(uint32_t a, uint32_t b) {
    __nv_bfloat162 pair = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
    return *reinterpret_cast<uint32_t*>(&pair);
}

template <typename T>
DEVICE T shuffle_xor(T x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
template <typename T>
DEVICE T shuffle(T x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE void sync_block() { __syncthreads(); }

// d += a b, with a [16, 16] and b [16, 8] of bf16, d [16, 8] of f32; registers as PTX defines them for
// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32.
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit numbers: lane i gives the address of row i % 8 of matrix i / 8 (16 bytes, in shared memory),
// and gets of each matrix the pair at row lane / 4, columns 2 (lane % 4) and the next.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
// As ldmatrix_x4, each matrix transposed.
DEVICE void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// Begins to copy 16 bytes to shared memory; zeros where `valid` is false (nothing is read then).
DEVICE void copy_16_async(void* shared, const void* global, bool valid) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}
// Closes a group of copies.
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most the last N groups of this thread are still on their way.
template <int N>
DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }

// A read past the first cache, for numbers that are read once.
DEVICE uint4 load_once(const uint4* address) { return __ldcs(address); }

// A read past the first cache, of what other blocks of this launch may have written before wait_for_blocks().
DEVICE uint4 load_fresh(const uint4* address) { return __ldcg(address); }

DEVICE float2 load_fresh(const float2* address) { return __ldcg(address); }

// Counts this block in `counter`; whether it is the last of `n`: it can read what all of them wrote, and the count is 0 again. Callers
// synchronise the block before they call it again.
DEVICE bool arrive_last(uint32_t* counter, uint32_t n) {
    __shared__ bool is_last;
    sync_block();
    if (threadIdx.x == 0) {
        uint32_t n_before;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(n_before) : "l"(counter) : "memory");
        is_last = n_before + 1 == n;
        if (is_last) *counter = 0;
    }
    sync_block();
    return is_last;
}

// Waits until `target` blocks have come here, counted in `counter` (which goes on from 2^32 - 1 at 0); what they wrote before can be
// read then. All blocks must be on the GPU at the same time: where others keep them from it for some seconds, the kernel fails.
constexpr uint32_t MOST_LOOKS = 1 << 25;
DEVICE void wait_for_blocks(uint32_t* counter, uint32_t target) {
    sync_block();
    if (threadIdx.x == 0) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
        uint32_t n_arrived, n_looks = 0;
        do {
            if (++n_looks > MOST_LOOKS) __trap();
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n_arrived) : "l"(counter) : "memory");
        } while (static_cast<int32_t>(n_arrived - target) < 0);
    }
    sync_block();
}

// Adds to a number to which no other thread of the kernel adds: nobody waits for what it was.
DEVICE void add_once(float* address, float x) { asm volatile("red.global.add.f32 [%0], %1;" ::"l"(address), "f"(x) : "memory"); }

// Copies of whole pieces of memory to shared memory, which the GPU makes by itself. One thread begins them and says before how many bytes
// come with the next turn of `arrivals`, all threads wait for that turn: the first has parity 0, the next 1, and so on. Addresses and
// counts are multiples of 16.
DEVICE uint32_t shared_offset(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }
#if __CUDA_ARCH__ >= 900
DEVICE void init_arrivals(uint64_t* arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_offset(arrivals)) : "memory");
}
// After init_arrivals(), before the copies and the barrier after which others wait.
DEVICE void fence_arrivals() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void expect_arrivals(uint64_t* arrivals, uint32_t n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_offset(arrivals)), "r"(n_bytes) : "memory");
}
// Of numbers that are read once: they are the first to leave the second cache, in which what is used again stays.
DEVICE void copy_bulk_async(void* shared, const void* global, uint32_t n_bytes, uint64_t* arrivals) {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
            shared_offset(shared)),
        "l"(global), "r"(n_bytes), "r"(shared_offset(arrivals)), "l"(policy)
        : "memory");
}
DEVICE void wait_for_arrivals(uint64_t* arrivals, uint32_t parity) {
    uint32_t is_done;
    do {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
            : "=r"(is_done)
            : "r"(shared_offset(arrivals)), "r"(parity)
            : "memory");
    } while (is_done == 0);
}
#else
// Older GPUs have no such copies: kernels that use them are not launched there.
DEVICE void init_arrivals(uint64_t*) { __trap(); }
DEVICE void fence_arrivals() {}
DEVICE void expect_arrivals(uint64_t*, uint32_t) {}
DEVICE void copy_bulk_async(void*, const void*, uint32_t, uint64_t*) {}
DEVICE void wait_for_arrivals(uint64_t*, uint32_t) {}
#endif

// Keeps a number, of which the compiler then knows nothing: it computes again what it would else keep in registers.
DEVICE void hide_origin(uint32_t& x) { asm volatile("" : "+r"(x)); }
DEVICE void hide_origin(float& x) { asm volatile("" : "+f"(x)); }

// Kernels that are launched early (Gpu::launch_early) begin while the one before ends, and wait for all before: nothing that these
// write is read earlier. When the next one may begin, they say: when all blocks have, it does, where there is room.
DEVICE void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
DEVICE void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

// What every kernel that is launched early begins with.
DEVICE void begin() {
    let_next_begin();
    wait_for_earlier();
}

// The number that these bits are.
DEVICE float float_of_bits(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}

// exp(x) = exp2(LOG2_E x).
constexpr float LOG2_E = 1.4426950408889634f;

// 16 bytes as numbers of type T.
template <typename T>
struct alignas(16) Pack {
    static constexpr int N = 16 / sizeof(T);
    T values[N];
};
template <typename T>
DEVICE Pack<T> load_pack(const T* address) { return *reinterpret_cast<const Pack<T>*>(address); }
template <typename T>
DEVICE void store_pack(T* address, Pack<T> pack) { *reinterpret_cast<Pack<T>*>(address) = pack; }

// Sums and maxima within a warp; every lane gets the result, the same bits in all.
template <typename T>
DEVICE T warp_sum(T x) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
    return x;
}
// Within a block of N_WARPS warps, through `partials` (shared memory); all threads must call it, and none may use `partials`
// again before the next sync_block().
template <int N_WARPS, typename T>
DEVICE T block_sum(T x, T* partials) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
    sync_block();
    T sum = partials[0];
#pragma unroll
    for (int i = 1; i < N_WARPS; i++) sum += partials[i];
    return sum;
}
template <int N_WARPS>
DEVICE float block_max(float x, float* partials) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
    sync_block();
    float max = partials[0];
#pragma unroll
    for (int i = 1; i < N_WARPS; i++) max = fmaxf(max, partials[i]);
    return max;
}
