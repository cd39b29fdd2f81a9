// What primitives.cuh takes from a GPU, in plain C++, so that kernels run and are tested on machines without one.
//
// Each thread of a block is a fiber with a stack of its own (fibers.cpp). Blocks run one after the other, and so do the fibers
// of a block, each until it waits for others. At a warp's primitive all 32 lanes meet, and the last computes for all. The order
// of warps and lanes changes from wait to wait, so that a kernel which lacks a barrier mostly gives another result.
//
// Products of a warpgroup are done when a warp waits for them.
//
// It shows: wrong indices, layouts and sums; reads of what was never written (memory begins as NaN); reads before
// copies_wait(); accesses outside of allocations and of shared memory, misaligned ones; barriers that not all threads reach.
// It does not show: all races between warps (only those that the order reveals), the GPU's rounding within mma_bf16 and its
// approximate functions, use of registers, speed.
//
// A file of kernels is compiled within an anonymous namespace, as a GPU's module has names of its own.
#pragma once

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

struct uint3 { unsigned int x, y, z; };
struct alignas(8) uint2 { unsigned int x, y; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned int x, unsigned int y) { return {x, y}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Where the running fiber is. All fibers of a launch share one thread of the system, and launches exclude one another.
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// What all lanes of a warp do together.
enum class Primitive : uint8_t { SyncWarp, Shuffle, ShuffleXor, Mma, LdMatrix, LdMatrixTransposed, Wgmma, WgmmaCommit, WgmmaWait };

// Waits until all lanes of the warp are at this primitive; `operands` (of the type that the primitive has below) then holds
// its results.
void meet(Primitive primitive, void* operands);
void wait_for_block();
void begin_copy(void* shared, const void* global, bool valid);
void close_copies();
void finish_copies(int n_groups_left);
// Copies of whole pieces. A wait for copies that nobody has begun fails: kernels begin them before a barrier.
void expect_bulk(uint64_t* arrivals, uint32_t n_bytes);
void begin_bulk(void* shared, const void* global, uint32_t n_bytes, uint64_t* arrivals);
void finish_bulk(uint64_t* arrivals, uint32_t parity);
// Counts a block that waits for others; fails where it would wait for ever.
void arrive_block(uint32_t* counter, uint32_t target);
uint8_t* dynamic_shared();
// Where something is, counted as operands of wgmma count.
uint32_t shared_address(const void* shared);

// A product of a warpgroup (wgmma.cuh). What it reads of shared memory is read when the first lane of a warp comes to it, and
// must be the same when the warp waits for it; sums are NaN until then.
struct WgmmaOperands {
    // [N / 2] of this lane.
    float* d;
    // [4] of this lane, or null: then `a_operand`.
    const uint32_t* a;
    uint64_t a_operand, b_operand;
    int n;
    bool b_transposed, add;
};
void wgmma(WgmmaOperands operands);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int n_groups_left);
// What this thread copied and waited for may be read by products.
void fence_copies();

struct ShuffleOperands {
    uint64_t value, result;
    int argument;
};
struct MmaOperands {
    float* d;
    const uint32_t* a;
    uint32_t b0, b1;
};
struct LdMatrixOperands {
    uint32_t* r;
    const void* row;
};

template <typename T>
T shuffled(Primitive primitive, T x, int argument) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a register or two");
    ShuffleOperands operands{0, 0, argument};
    memcpy(&operands.value, &x, sizeof(T));
    meet(primitive, &operands);
    memcpy(&x, &operands.result, sizeof(T));
    return x;
}

// A kernel by name. `call` runs it on the arguments that each of `arguments` points to.
struct Kernel {
    const char* name;
    void (*call)(void** arguments);
    int n_arguments;
    const size_t* argument_bytes;
    // The most dynamic shared memory that a launch may ask for.
    mutable size_t max_shared_bytes = 48 * 1024;
};
void add_kernel(const Kernel& kernel);

template <auto function>
struct Exported;
template <typename... Arguments, void (*function)(Arguments...)>
struct Exported<function> {
    static_assert((std::is_trivially_copyable_v<Arguments> && ...), "arguments are pointers, numbers, and structs of these");
    static constexpr size_t BYTES[sizeof...(Arguments) + 1] = {sizeof(Arguments)..., 0};
    template <size_t... I>
    static void call_each(void** arguments, std::index_sequence<I...>) {
        function(*static_cast<Arguments*>(arguments[I])...);
    }
    static void call(void** arguments) { call_each(arguments, std::index_sequence_for<Arguments...>()); }
    explicit Exported(const char* name) { add_kernel({name, call, sizeof...(Arguments), BYTES}); }
};

}  // namespace emulator

#define KERNEL(name) static void name
#define KERNEL_BOUNDS(name, threads, blocks) \
    static_assert((threads) % 32 == 0 && (threads) <= 1024 && (blocks) >= 1 && (threads) * (blocks) <= 2048); \
    static void name
#define EXPORT(name) static const ::emulator::Exported<&name> exported_##name(#name);
#define LAUNCH_CONSTANT
#define DEVICE inline __attribute__((always_inline))
#define DYNAMIC_SHARED(name) uint8_t* const name = ::emulator::dynamic_shared()
#define DYNAMIC_SHARED_1024(name) DYNAMIC_SHARED(name)
// Static shared memory is the thread-local memory of this library, which fibers.cpp fills with NaN before each block.
#define __shared__ static thread_local
#define __align__(n) __attribute__((aligned(n)))

// Functions that CUDA has and C has not, or under another linkage.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __fdividef(x, y) ((x) / (y))
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline int min(int x, int y) { return y < x ? y : x; }
inline unsigned int min(unsigned int x, unsigned int y) { return y < x ? y : x; }
inline long min(long x, long y) { return y < x ? y : x; }
inline unsigned long min(unsigned long x, unsigned long y) { return y < x ? y : x; }
inline long long min(long long x, long long y) { return y < x ? y : x; }
inline unsigned long long min(unsigned long long x, unsigned long long y) { return y < x ? y : x; }
inline float min(float x, float y) { return fminf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline int max(int x, int y) { return x < y ? y : x; }
inline unsigned int max(unsigned int x, unsigned int y) { return x < y ? y : x; }
inline long max(long x, long y) { return x < y ? y : x; }
inline unsigned long max(unsigned long x, unsigned long y) { return x < y ? y : x; }
inline long long max(long long x, long long y) { return x < y ? y : x; }
inline unsigned long long max(unsigned long long x, unsigned long long y) { return x < y ? y : x; }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double max(double x, double y) { return fmax(x, y); }

struct bf16 {
    uint16_t bits;
};
static_assert(sizeof(bf16) == 2);

DEVICE float to_f32(float x) { return x; }
DEVICE float to_f32(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
template <typename T>
DEVICE T from_f32(float x);
template <>
DEVICE float from_f32<float>(float x) { return x; }
// Rounds to nearest, ties to even; NaN becomes the GPU's NaN.
template <>
DEVICE bf16 from_f32<bf16>(float x) {
    if (x != x) return {0x7fff};
    uint32_t bits = __float_as_uint(x);
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
DEVICE uint32_t pack_bf16(float low, float high) {
    return static_cast<uint32_t>(from_f32<bf16>(low).bits) | static_cast<uint32_t>(from_f32<bf16>(high).bits) << 16;
}

DEVICE uint32_t subtract_bf16(uint32_t a, uint32_t b) {
    float low = __uint_as_float(a << 16) - __uint_as_float(b << 16);
    return pack_bf16(low, __uint_as_float(a & 0xffff0000u) - __uint_as_float(b & 0xffff0000u));
}
DEVICE uint32_t multiply_bf16(uint32_t a, uint32_t b) {
    float low = __uint_as_float(a << 16) * __uint_as_float(b << 16);
    return pack_bf16(low, __uint_as_float(a & 0xffff0000u) * __uint_as_float(b & 0xffff0000u));
}

DEVICE float exp2_approx(float x) {
    float y = exp2f(x);
    return y < FLT_MIN ? 0.0f : y;
}
DEVICE float reciprocal_approx(float x) {
    float y = 1.0f / x;
    return fabsf(y) < FLT_MIN ? copysignf(0.0f, y) : y;
}

template <typename T>
DEVICE T shuffle_xor(T x, int mask) { return emulator::shuffled(emulator::Primitive::ShuffleXor, x, mask); }
template <typename T>
DEVICE T shuffle(T x, int lane) { return emulator::shuffled(emulator::Primitive::Shuffle, x, lane); }
DEVICE void sync_warp() { emulator::meet(emulator::Primitive::SyncWarp, nullptr); }
DEVICE void sync_block() { emulator::wait_for_block(); }

DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulator::MmaOperands operands{d, a, b0, b1};
    emulator::meet(emulator::Primitive::Mma, &operands);
}
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    emulator::LdMatrixOperands operands{r, row};
    emulator::meet(emulator::Primitive::LdMatrix, &operands);
}
DEVICE void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
    emulator::LdMatrixOperands operands{r, row};
    emulator::meet(emulator::Primitive::LdMatrixTransposed, &operands);
}

// The copy happens as late as it may, in copies_wait(); until then its destination is NaN.
DEVICE void copy_16_async(void* shared, const void* global, bool valid) { emulator::begin_copy(shared, global, valid); }
DEVICE void copies_commit() { emulator::close_copies(); }
template <int N>
DEVICE void copies_wait() { emulator::finish_copies(N); }

DEVICE uint4 load_once(const uint4* address) { return *address; }
DEVICE uint4 load_fresh(const uint4* address) { return *address; }
DEVICE float2 load_fresh(const float2* address) { return *address; }
DEVICE bool arrive_last(uint32_t* counter, uint32_t n) {
    static thread_local bool is_last;
    sync_block();
    if (threadIdx.x == 0) {
        is_last = ++*counter == n;
        if (is_last) *counter = 0;
    }
    sync_block();
    return is_last;
}
// Blocks run one after the other, so that only a block without others can wait for all.
DEVICE void wait_for_blocks(uint32_t* counter, uint32_t target) {
    sync_block();
    if (threadIdx.x == 0) emulator::arrive_block(counter, target);
    sync_block();
}
DEVICE void add_once(float* address, float x) { *address += x; }
// A copy arrives as late as it may, when a thread waits for it; until then its destination is NaN.
DEVICE void init_arrivals(uint64_t* arrivals) { *arrivals = 0; }
DEVICE void fence_arrivals() {}
DEVICE void expect_arrivals(uint64_t* arrivals, uint32_t n_bytes) { emulator::expect_bulk(arrivals, n_bytes); }
DEVICE void copy_bulk_async(void* shared, const void* global, uint32_t n_bytes, uint64_t* arrivals) {
    emulator::begin_bulk(shared, global, n_bytes, arrivals);
}
DEVICE void wait_for_arrivals(uint64_t* arrivals, uint32_t parity) { emulator::finish_bulk(arrivals, parity); }
DEVICE void hide_origin(uint32_t&) {}
DEVICE void hide_origin(float&) {}
// Kernels run one after the other.
DEVICE void let_next_begin() {}
DEVICE void wait_for_earlier() {}
