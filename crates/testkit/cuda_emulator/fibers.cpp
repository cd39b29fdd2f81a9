// Runs kernels: fibers, barriers, the primitives of a warp, copies that are done late. emulator.h says what for.
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <vector>

#include "runtime.h"
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr int N_LANES = 32;
constexpr int MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 64 * 1024;
constexpr size_t SIGNAL_STACK_BYTES = 256 * 1024;
constexpr size_t PAGE_BYTES = 4096;
constexpr size_t MAX_SHARED_BYTES = 232448;
constexpr uint8_t NAN_BYTE = 0xff;
constexpr uint8_t GUARD_BYTE = 0xa5;
// What operands of wgmma can address.
constexpr size_t ADDRESSABLE_BYTES = 1 << 18;
constexpr int GROUP_WARPS = 4;

struct Copy {
    uint8_t* shared;
    uint8_t bytes[16];
    uint64_t group;
};

enum class State : uint8_t { Ready, InWarp, InBlock, Exited };

struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    uint8_t* stack;
    uint3 index;
    State state;
    Primitive primitive;
    void* operands;
    std::vector<Copy> copies;
    // Groups of copies that were closed.
    uint64_t n_groups;
    // Where copies arrived that fence_copies() has not been told of.
    std::vector<uint8_t*> unfenced;
};

// 16 bytes of shared memory that a product reads, and what they were.
struct Chunk {
    const uint8_t* address;
    uint8_t bytes[16];
};

// A product of a warp, its part of that of the warpgroup, which is on its way.
struct Product {
    WgmmaOperands operands;
    uint64_t group;
    std::vector<Chunk> chunks;
    float a[16][16];
    std::vector<float> b;
    float* d[N_LANES];
    // [N_LANES, N / 2], unless an earlier product that is on its way has the same sums.
    std::vector<float> sums;
    bool is_chained;
};

struct Warp {
    uint32_t ready;
    int n_lanes;
    int n_waiting;
    // Products on their way, in order; groups of them that were closed; whether registers were fenced since the last wait.
    std::vector<Product> products;
    uint64_t n_groups;
    bool is_fenced;
    // Products so far.
    size_t n_products;
};

// A copy of a whole piece that is on its way.
struct BulkCopy {
    uint8_t* shared;
    std::vector<uint8_t> bytes;
    uint64_t* arrivals;
};

struct Block {
    const Kernel* kernel;
    void** arguments;
    int n_threads;
    int n_warps;
    int n_waiting;
    int n_exited;
    // Warps with a lane that can run.
    uint32_t ready;
    // State of the numbers by which the order of warps changes.
    uint32_t order;
    Warp warps[MAX_THREADS / N_LANES];
    // The products that a warpgroup came to: those of its warps must be the same.
    std::vector<WgmmaOperands> products[MAX_THREADS / N_LANES / GROUP_WARPS];
    std::vector<BulkCopy> bulk_copies;
    std::map<uint64_t*, size_t> expected_bytes;
    // Of each 16 bytes that products can address, whether a copy arrived that was not fenced.
    bool is_unfenced[ADDRESSABLE_BYTES / 16];
};

Fiber fibers[MAX_THREADS];
Fiber host;
Block block;
int current;
uint8_t* shared_end;
uint8_t* shared_begin;
// This library's thread-local memory, in which static shared arrays are.
uint8_t* static_shared;
size_t static_shared_bytes;
pthread_t launching_thread;
// Its use makes the system give this thread its thread-local memory.
thread_local volatile uint8_t touched;

std::string place(int thread) {
    const uint3 t = fibers[thread].index;
    char text[200];
    snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z, t.x, t.y, t.z);
    return text;
}

[[noreturn]] void fail_in_kernel(const std::string& message) {
    fail("kernel `" + std::string(block.kernel->name) + "`, " + place(current) + ": " + message);
}

#if defined(__x86_64__)
// Saves what a called function must leave alone, then goes on where the other stack was left.
extern "C" void galerne_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.hidden galerne_switch_stack
.globl galerne_switch_stack
.type galerne_switch_stack, @function
galerne_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size galerne_switch_stack, .-galerne_switch_stack
)");

void switch_fiber(Fiber& from, Fiber& to) { galerne_switch_stack(&from.stack_pointer, to.stack_pointer); }

void prepare(Fiber& fiber, void (*entry)()) {
    // At the entry of a function the stack is 8 below a multiple of 16, at a return address, which is never used.
    void** top = reinterpret_cast<void**>(fiber.stack + STACK_BYTES);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
}
#else
void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

void prepare(Fiber& fiber, void (*entry)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
}
#endif

void go_to(int thread) {
    Fiber& from = fibers[current];
    current = thread;
    threadIdx = fibers[thread].index;
    switch_fiber(from, fibers[thread]);
}

// The first set bit at or after `start`, around.
int next_bit(uint32_t bits, int start) {
    uint32_t rotated = bits >> start | bits << (-start & 31);
    return (__builtin_ctz(rotated) + start) & 31;
}

int any_warp() {
    block.order = block.order * 1664525 + 1013904223;
    return next_bit(block.ready, static_cast<int>(block.order >> 27));
}

const char* name_of(Primitive primitive) {
    switch (primitive) {
        case Primitive::SyncWarp: return "sync_warp";
        case Primitive::Shuffle: return "shuffle";
        case Primitive::ShuffleXor: return "shuffle_xor";
        case Primitive::Mma: return "mma_bf16";
        case Primitive::LdMatrix: return "ldmatrix_x4";
        case Primitive::LdMatrixTransposed: return "ldmatrix_x4_transposed";
        case Primitive::Wgmma: return "a product of the warpgroup";
        case Primitive::WgmmaCommit: return "wgmma_commit";
        case Primitive::WgmmaWait: return "wgmma_wait";
    }
    return "?";
}

// Where the threads [begin, end) are, such as `3 at sync_block, 29 exited`.
std::string whereabouts(int begin, int end) {
    std::map<std::string, int> counts;
    for (int i = begin; i < end; i++) {
        const Fiber& fiber = fibers[i];
        switch (fiber.state) {
            case State::Ready: counts["running"]++; break;
            case State::InWarp: counts[std::string("at ") + name_of(fiber.primitive)]++; break;
            case State::InBlock: counts["at sync_block"]++; break;
            case State::Exited: counts["exited"]++; break;
        }
    }
    std::string text;
    for (const auto& [where, n] : counts) text += (text.empty() ? "" : ", ") + std::to_string(n) + " " + where;
    return text;
}

// Runs another fiber; the current one waits or has exited.
void leave() {
    const int w = current / N_LANES;
    Warp& warp = block.warps[w];
    warp.ready &= ~(1u << current % N_LANES);
    if (warp.ready != 0) {
        go_to(w * N_LANES + next_bit(warp.ready, current % N_LANES));
        return;
    }
    if (warp.n_waiting != 0)
        fail_in_kernel("the lanes of warp " + std::to_string(w) + " cannot meet: " +
                       whereabouts(w * N_LANES, w * N_LANES + warp.n_lanes) +
                       (warp.n_lanes < N_LANES ? " (it has " + std::to_string(warp.n_lanes) + " lanes)" : ""));
    block.ready &= ~(1u << w);
    if (block.ready == 0) {
        if (block.n_exited == block.n_threads) {
            switch_fiber(fibers[current], host);
        }
        fail_in_kernel("the threads of the block cannot meet: " + whereabouts(0, block.n_threads));
    }
    const int next = any_warp();
    go_to(next * N_LANES + next_bit(block.warps[next].ready, static_cast<int>(block.order >> 22 & 31)));
}

void run_thread() {
    block.kernel->call(block.arguments);
    Fiber& fiber = fibers[current];
    if (!fiber.copies.empty())
        fail_in_kernel("ends while " + std::to_string(fiber.copies.size()) + " copies are on their way (copies_wait)");
    if (!block.warps[current / N_LANES].products.empty()) fail_in_kernel("ends while products are on their way (wgmma_wait)");
    fiber.state = State::Exited;
    block.n_exited++;
    if (block.n_exited == block.n_threads && !block.bulk_copies.empty())
        fail_in_kernel("ends while " + std::to_string(block.bulk_copies.size()) + " bulk copies are on their way");
    leave();
    abort();
}

bool is_shared(const void* address, size_t n_bytes) {
    const uint8_t* begin = static_cast<const uint8_t*>(address);
    return (begin >= shared_begin && begin + n_bytes <= shared_end) ||
           (begin >= static_shared && begin + n_bytes <= static_shared + static_shared_bytes);
}

void shuffle_lanes(Fiber* lanes, bool by_mask) {
    for (int i = 0; i < N_LANES; i++) {
        auto& operands = *static_cast<ShuffleOperands*>(lanes[i].operands);
        const int from = by_mask ? i ^ operands.argument : operands.argument;
        if (from < 0 || from >= N_LANES) fail_in_kernel("a shuffle from lane " + std::to_string(from));
        operands.result = static_cast<ShuffleOperands*>(lanes[from].operands)->value;
    }
}

float low(uint32_t pair) { return __uint_as_float(pair << 16); }
float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Fragments as the PTX manual draws them for m16n8k16: lane 4 g + t has rows g and g + 8 of a and d, column g of b.
void multiply(Fiber* lanes) {
    float a[16][16], b[16][8], d[16][8];
    for (int i = 0; i < N_LANES; i++) {
        const auto& operands = *static_cast<MmaOperands*>(lanes[i].operands);
        const int g = i / 4, t = i % 4 * 2;
        for (int j = 0; j < 4; j++) {
            const int row = g + j % 2 * 8, column = t + j / 2 * 8;
            a[row][column] = low(operands.a[j]);
            a[row][column + 1] = high(operands.a[j]);
            d[g + j / 2 * 8][t + j % 2] = operands.d[j];
        }
        b[t][g] = low(operands.b0);
        b[t + 1][g] = high(operands.b0);
        b[t + 8][g] = low(operands.b1);
        b[t + 9][g] = high(operands.b1);
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    for (int i = 0; i < N_LANES; i++) {
        const auto& operands = *static_cast<MmaOperands*>(lanes[i].operands);
        for (int j = 0; j < 4; j++) operands.d[j] = d[i / 4 + j / 2 * 8][i % 4 * 2 + j % 2];
    }
}

void load_matrices(Fiber* lanes, bool transposed) {
    uint16_t rows[N_LANES][8];
    for (int i = 0; i < N_LANES; i++) {
        const void* row = static_cast<LdMatrixOperands*>(lanes[i].operands)->row;
        if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
            fail_in_kernel("ldmatrix: the address of lane " + std::to_string(i) + " is no multiple of 16");
        if (!is_shared(row, 16))
            fail_in_kernel("ldmatrix: the address of lane " + std::to_string(i) + " is not in shared memory");
        memcpy(rows[i], row, 16);
    }
    for (int i = 0; i < N_LANES; i++)
        for (int matrix = 0; matrix < 4; matrix++) {
            const int row = i / 4, column = i % 4 * 2;
            const auto at = [&](int r, int c) -> uint32_t { return rows[matrix * 8 + r][c]; };
            static_cast<LdMatrixOperands*>(lanes[i].operands)->r[matrix] =
                transposed ? at(column, row) | at(column + 1, row) << 16 : at(row, column) | at(row, column + 1) << 16;
        }
}

const uint8_t* addressable() { return shared_end - ADDRESSABLE_BYTES; }

// The number at this byte of an operand, before the exchange of chunks: bits 4 to 6 of an address are exchanged by bits 7 to 9.
float number_at(Product& product, uint64_t operand, size_t byte) {
    size_t address = (operand & 0x3fff) * 16 + byte;
    address ^= address >> 3 & 0x70;
    const uint8_t* chunk = addressable() + address / 16 * 16;
    if (!is_shared(chunk, 16)) fail_in_kernel("a product reads outside of shared memory");
    if (block.is_unfenced[address / 16]) fail_in_kernel("a product reads what was copied without fence_async");
    // Those of one call are near one another.
    size_t i = product.chunks.size();
    while (i > 0 && product.chunks.size() - i < 4 && product.chunks[i - 1].address != chunk) i--;
    if (i == 0 || product.chunks[i - 1].address != chunk) {
        Chunk copy = {chunk, {}};
        memcpy(copy.bytes, chunk, 16);
        product.chunks.push_back(copy);
    }
    uint16_t bits;
    memcpy(&bits, chunk + address % 16, 2);
    return low(bits);
}

void check_operand(uint64_t operand) {
    const size_t unit = 1024 / 16;
    if (operand >> 62 != 1) fail_in_kernel("an operand of a product has another swizzle mode than 128 bytes");
    if ((operand >> 32 & 0x3fff) != unit) fail_in_kernel("rows of an operand lie in groups of 8 that are 1024 bytes apart");
    if ((operand >> 49 & 7) != 0) fail_in_kernel("an operand of a product has a base offset");
}

void begin_product(Warp& warp, int warp_idx, Fiber* lanes) {
    const WgmmaOperands& operands = *static_cast<WgmmaOperands*>(lanes[0].operands);
    if (!warp.is_fenced) fail_in_kernel("a product of the warpgroup without wgmma_fence since the last wait");
    for (int i = 1; i < N_LANES; i++) {
        const auto& other = *static_cast<WgmmaOperands*>(lanes[i].operands);
        if (other.a_operand != operands.a_operand || other.b_operand != operands.b_operand || other.add != operands.add ||
            other.n != operands.n)
            fail_in_kernel("the lanes of a warp have different operands of a product");
    }
    auto& together = block.products[warp_idx / GROUP_WARPS];
    if (warp.n_products == together.size()) together.push_back(operands);
    const WgmmaOperands& theirs = together[warp.n_products++];
    if (theirs.a_operand != operands.a_operand || theirs.b_operand != operands.b_operand || theirs.n != operands.n ||
        theirs.add != operands.add)
        fail_in_kernel("the warps of a warpgroup have different operands of a product");
    warp.products.emplace_back();
    Product& product = warp.products.back();
    product.operands = operands;
    product.group = warp.n_groups;
    // An operand whose first 16 columns or rows are elsewhere begins that many bytes later.
    if (operands.a == nullptr) {
        check_operand(operands.a_operand);
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < 16; k++) {
                const int m = warp_idx % GROUP_WARPS * 16 + row;
                product.a[row][k] = number_at(product, operands.a_operand, m / 8 * 1024 + m % 8 * 128 + k * 2);
            }
    } else {
        for (int i = 0; i < N_LANES; i++)
            for (int j = 0; j < 4; j++) {
                const uint32_t pair = static_cast<WgmmaOperands*>(lanes[i].operands)->a[j];
                const int row = i / 4 + j % 2 * 8, k = i % 4 * 2 + j / 2 * 8;
                product.a[row][k] = low(pair);
                product.a[row][k + 1] = high(pair);
            }
    }
    check_operand(operands.b_operand);
    const int n_columns = operands.n;
    const size_t panel_bytes = (operands.b_operand >> 16 & 0x3fff) * 16;
    product.b.resize(16 * n_columns);
    const auto b_at = [&](int k, int n) {
        const size_t byte = operands.b_transposed ? n / 64 * panel_bytes + n % 64 * 2 + k / 8 * 1024 + k % 8 * 128
                                                  : n / 8 * 1024 + n % 8 * 128 + k * 2;
        product.b[k * n_columns + n] = number_at(product, operands.b_operand, byte);
    };
    if (operands.b_transposed) {
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < n_columns; n++) b_at(k, n);
    } else {
        for (int n = 0; n < n_columns; n++)
            for (int k = 0; k < 16; k++) b_at(k, n);
    }
    const size_t n_sums = n_columns / 2;
    product.d[0] = operands.d;
    product.is_chained = false;
    for (size_t i = 0; i + 1 < warp.products.size(); i++)
        product.is_chained = product.is_chained || warp.products[i].d[0] == operands.d;
    for (int i = 0; i < N_LANES; i++) {
        float* d = static_cast<WgmmaOperands*>(lanes[i].operands)->d;
        product.d[i] = d;
        if (product.is_chained) continue;
        product.sums.insert(product.sums.end(), d, d + n_sums);
        memset(d, NAN_BYTE, n_sums * sizeof(float));
    }
}

void finish_products(Warp& warp, Fiber* lanes) {
    const int n_groups_left = static_cast<ShuffleOperands*>(lanes[0].operands)->argument;
    warp.is_fenced = false;
    size_t n_done = 0;
    for (Product& product : warp.products) {
        if (product.group + static_cast<uint64_t>(n_groups_left) >= warp.n_groups) break;
        n_done++;
        for (const Chunk& chunk : product.chunks)
            if (memcmp(chunk.address, chunk.bytes, 16) != 0)
                fail_in_kernel("shared memory was written while a product that reads it was on its way");
        const int n_columns = product.operands.n, n_sums = n_columns / 2;
        for (int i = 0; i < N_LANES; i++) {
            if (product.is_chained) continue;
            for (int j = 0; j < n_sums; j++)
                if (__float_as_uint(product.d[i][j]) != 0xffffffffu)
                    fail_in_kernel("sums were written while a product was on its way");
            memcpy(product.d[i], &product.sums[i * n_sums], n_sums * sizeof(float));
        }
        std::vector<float> d(16 * n_columns);
        const auto sum_of = [&](int lane, int j) -> float& {
            return d[(lane / 4 + j % 4 / 2 * 8) * n_columns + j / 4 * 8 + lane % 4 * 2 + j % 2];
        };
        for (int i = 0; i < N_LANES && product.operands.add; i++)
            for (int j = 0; j < n_sums; j++) sum_of(i, j) = product.d[i][j];
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < 16; k++)
                for (int column = 0; column < n_columns; column++)
                    d[row * n_columns + column] += product.a[row][k] * product.b[k * n_columns + column];
        for (int i = 0; i < N_LANES; i++)
            for (int j = 0; j < n_sums; j++) product.d[i][j] = sum_of(i, j);
    }
    warp.products.erase(warp.products.begin(), warp.products.begin() + static_cast<ptrdiff_t>(n_done));
    // Sums of which a later product is still on its way are not to be read.
    for (Product& product : warp.products) {
        if (!product.is_chained) continue;
        bool has_earlier = false;
        for (const Product& other : warp.products) {
            if (&other == &product) break;
            has_earlier = has_earlier || other.d[0] == product.d[0];
        }
        if (has_earlier) continue;
        product.is_chained = false;
        const size_t n_sums = product.operands.n / 2;
        for (float* d : product.d) {
            product.sums.insert(product.sums.end(), d, d + n_sums);
            memset(d, NAN_BYTE, n_sums * sizeof(float));
        }
    }
}

void compute(Primitive primitive, int warp_idx) {
    Fiber* lanes = &fibers[warp_idx * N_LANES];
    Warp& warp = block.warps[warp_idx];
    switch (primitive) {
        case Primitive::SyncWarp: break;
        case Primitive::Shuffle: shuffle_lanes(lanes, false); break;
        case Primitive::ShuffleXor: shuffle_lanes(lanes, true); break;
        case Primitive::Mma: multiply(lanes); break;
        case Primitive::LdMatrix: load_matrices(lanes, false); break;
        case Primitive::LdMatrixTransposed: load_matrices(lanes, true); break;
        case Primitive::Wgmma: begin_product(warp, warp_idx, lanes); break;
        case Primitive::WgmmaCommit: warp.n_groups++; break;
        case Primitive::WgmmaWait: finish_products(warp, lanes); break;
    }
}

uint8_t* map_memory(size_t n_bytes, int protection) {
    void* memory = mmap(nullptr, n_bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("mmap refuses " + std::to_string(n_bytes) + " bytes");
    return static_cast<uint8_t*>(memory);
}

// Stacks with a page between that faults, and shared memory that ends before such a page.
void make_stacks() {
    if (shared_end != nullptr) return;
    const size_t stride = STACK_BYTES + PAGE_BYTES;
    uint8_t* stacks = map_memory((MAX_THREADS + 1) * stride, PROT_NONE);
    for (int i = 0; i < MAX_THREADS; i++) {
        fibers[i].stack = stacks + (i + 1) * stride + PAGE_BYTES;
        if (mprotect(fibers[i].stack, STACK_BYTES, PROT_READ | PROT_WRITE) != 0) fail("mprotect refuses a stack");
    }
    const size_t n_bytes = (MAX_SHARED_BYTES + 2 * PAGE_BYTES) / PAGE_BYTES * PAGE_BYTES;
    uint8_t* shared = map_memory(n_bytes + PAGE_BYTES, PROT_NONE);
    if (mprotect(shared, n_bytes, PROT_READ | PROT_WRITE) != 0) fail("mprotect refuses shared memory");
    shared_end = shared + n_bytes;
}

int find_static_shared(dl_phdr_info* info, size_t, void*) {
    const uintptr_t here = reinterpret_cast<uintptr_t>(&fibers);
    bool is_ours = false;
    size_t n_bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& header = info->dlpi_phdr[i];
        const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
        if (header.p_type == PT_LOAD && here >= begin && here < begin + header.p_memsz) is_ours = true;
        if (header.p_type == PT_TLS) n_bytes = header.p_memsz;
    }
    if (!is_ours) return 0;
    static_shared_bytes = n_bytes;
    static_shared = n_bytes == 0 ? nullptr : static_cast<uint8_t*>(info->dlpi_tls_data);
    return 1;
}

void start_block(size_t shared_bytes, uint8_t* shared_limit) {
    memset(shared_begin, NAN_BYTE, shared_bytes);
    memset(shared_begin + shared_bytes, GUARD_BYTE, static_cast<size_t>(shared_limit - shared_begin) - shared_bytes);
    if (static_shared != nullptr) memset(static_shared, NAN_BYTE, static_shared_bytes);
    block.n_waiting = 0;
    block.n_exited = 0;
    block.ready = block.n_warps == 32 ? ~0u : (1u << block.n_warps) - 1;
    block.order = blockIdx.x * 2654435761u + blockIdx.y * 40503u + blockIdx.z + 1;
    for (int w = 0; w < block.n_warps; w++) {
        const int n_lanes = block.n_threads - w * N_LANES < N_LANES ? block.n_threads - w * N_LANES : N_LANES;
        block.warps[w] = {n_lanes == N_LANES ? ~0u : (1u << n_lanes) - 1, n_lanes, 0, {}, 0, false, 0};
    }
    for (auto& products : block.products) products.clear();
    memset(block.is_unfenced, 0, sizeof block.is_unfenced);
    for (int i = 0; i < block.n_threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
        fiber.state = State::Ready;
        fiber.n_groups = 0;
        fiber.unfenced.clear();
        prepare(fiber, run_thread);
    }
}

void run_block(size_t shared_bytes, uint8_t* shared_limit) {
    start_block(shared_bytes, shared_limit);
    const int warp = any_warp();
    current = warp * N_LANES;
    threadIdx = fibers[current].index;
    switch_fiber(host, fibers[current]);
    for (uint8_t* guard = shared_begin + shared_bytes; guard < shared_limit; guard++)
        if (*guard != GUARD_BYTE)
            fail_in_kernel("the block wrote behind its " + std::to_string(shared_bytes) + " bytes of shared memory, at byte " +
                           std::to_string(guard - shared_begin));
}

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
struct sigaction previous_actions[4];
stack_t previous_stack;

// The line of source at this address, by addr2line.
void print_line(const void* address) {
    Dl_info info;
    if (dladdr(address, &info) == 0) return;
    char command[1200];
    snprintf(command, sizeof command, "addr2line -Cfipe '%s' %#zx >&2", info.dli_fname,
             static_cast<size_t>(static_cast<const uint8_t*>(address) - static_cast<uint8_t*>(info.dli_fbase)));
    if (system(command) != 0) fprintf(stderr, "(%s fails)\n", command);
}

void unwatch_signals() {
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &previous_actions[i], nullptr);
    // One that this thread has not had before is disabled.
    sigaltstack(&previous_stack, nullptr);
}

void on_signal(int signal, siginfo_t* info, void* context) {
    // What faults from here on, or in another thread, is none of a kernel's.
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &previous_actions[i], nullptr);
    if (!pthread_equal(pthread_self(), launching_thread)) return;
#if defined(__x86_64__)
    print_line(reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]));
#else
    (void)context;
#endif
    const uint8_t* address = static_cast<uint8_t*>(info->si_addr);
    if (signal == SIGILL)
        fail_in_kernel("a misaligned access, an index outside of an array or a shift by more than the width (-fsanitize)");
    if (signal == SIGFPE) fail_in_kernel("a division by zero");
    if (address >= shared_end && address < shared_end + PAGE_BYTES)
        fail_in_kernel("an access " + std::to_string(address - shared_begin) +
                       " bytes from the beginning of shared memory, of which it has " +
                       std::to_string(shared_end - shared_begin));
    // Below a stack are a page that faults and the stack of the fiber before.
    const uint8_t* stack = fibers[current].stack;
    if (address < stack && address >= stack - (STACK_BYTES + PAGE_BYTES)) fail_in_kernel("local variables of more than 64 KiB");
    fail_in_kernel("an access " + describe_address(address));
}

void watch_signals() {
    static uint8_t* stack = map_memory(SIGNAL_STACK_BYTES, PROT_READ | PROT_WRITE);
    stack_t signal_stack = {};
    signal_stack.ss_sp = stack;
    signal_stack.ss_size = SIGNAL_STACK_BYTES;
    sigaltstack(&signal_stack, &previous_stack);
    launching_thread = pthread_self();
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &previous_actions[i]);
}

std::map<std::string, Kernel>& registered() {
    static std::map<std::string, Kernel> all;
    return all;
}

}  // namespace

void meet(Primitive primitive, void* operands) {
    Fiber& fiber = fibers[current];
    const int w = current / N_LANES;
    Warp& warp = block.warps[w];
    fiber.state = State::InWarp;
    fiber.primitive = primitive;
    fiber.operands = operands;
    if (++warp.n_waiting < N_LANES) {
        leave();
        return;
    }
    Fiber* lanes = &fibers[w * N_LANES];
    for (int i = 0; i < N_LANES; i++)
        if (lanes[i].primitive != primitive)
            fail_in_kernel("the lanes of warp " + std::to_string(w) + " are at different primitives: " +
                           whereabouts(w * N_LANES, (w + 1) * N_LANES));
    compute(primitive, w);
    for (int i = 0; i < N_LANES; i++) lanes[i].state = State::Ready;
    warp.n_waiting = 0;
    warp.ready = ~0u;
}

void wait_for_block() {
    fibers[current].state = State::InBlock;
    if (++block.n_waiting < block.n_threads) {
        leave();
        return;
    }
    block.n_waiting = 0;
    block.ready = block.n_warps == 32 ? ~0u : (1u << block.n_warps) - 1;
    for (int i = 0; i < block.n_threads; i++) fibers[i].state = State::Ready;
    for (int w = 0; w < block.n_warps; w++)
        block.warps[w].ready = block.warps[w].n_lanes == N_LANES ? ~0u : (1u << block.warps[w].n_lanes) - 1;
    // Whoever comes last does not go on first.
    const int next = any_warp();
    const int thread = next * N_LANES + next_bit(block.warps[next].ready, static_cast<int>(block.order >> 22 & 31));
    if (thread != current) go_to(thread);
}

void arrive_block(uint32_t* counter, uint32_t target) {
    *counter += 1;
    if (static_cast<int32_t>(*counter - target) < 0) fail_in_kernel("waits for blocks that run after it");
}

void begin_copy(void* shared, const void* global, bool valid) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
        fail_in_kernel("copy_16_async: an address is no multiple of 16");
    if (!is_shared(shared, 16)) fail_in_kernel("copy_16_async: the destination is not in shared memory");
    Fiber& fiber = fibers[current];
    Copy copy = {static_cast<uint8_t*>(shared), {}, fiber.n_groups};
    if (valid) memcpy(copy.bytes, global, 16);
    memset(shared, NAN_BYTE, 16);
    fiber.copies.push_back(copy);
}

// What the 64 bits of arrivals are here.
struct Arrivals {
    uint32_t n_turns;
    bool is_expected;
};

void expect_bulk(uint64_t* arrivals, uint32_t n_bytes) {
    Arrivals& turn = *reinterpret_cast<Arrivals*>(arrivals);
    if (turn.is_expected) fail_in_kernel("expects copies while those of the turn before are on their way");
    turn.is_expected = true;
    block.expected_bytes[arrivals] = n_bytes;
}

void begin_bulk(void* shared, const void* global, uint32_t n_bytes, uint64_t* arrivals) {
    const uintptr_t all = reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global) | n_bytes;
    if (all % 16 != 0 || n_bytes == 0) fail_in_kernel("copy_bulk_async: an address or the size is no multiple of 16");
    if (!is_shared(shared, n_bytes)) fail_in_kernel("copy_bulk_async: the destination is not in shared memory");
    const uint8_t* bytes = static_cast<const uint8_t*>(global);
    block.bulk_copies.push_back({static_cast<uint8_t*>(shared), {bytes, bytes + n_bytes}, arrivals});
    memset(shared, NAN_BYTE, n_bytes);
}

void finish_bulk(uint64_t* arrivals, uint32_t parity) {
    Arrivals& turn = *reinterpret_cast<Arrivals*>(arrivals);
    if (turn.is_expected && turn.n_turns % 2 == parity) {
        size_t n_bytes = 0, n_kept = 0;
        for (BulkCopy& copy : block.bulk_copies) {
            if (copy.arrivals == arrivals) {
                memcpy(copy.shared, copy.bytes.data(), copy.bytes.size());
                n_bytes += copy.bytes.size();
            } else {
                std::swap(block.bulk_copies[n_kept++], copy);
            }
        }
        block.bulk_copies.resize(n_kept);
        if (n_bytes != block.expected_bytes[arrivals]) fail_in_kernel("other bytes were copied than expected");
        turn = {turn.n_turns + 1, false};
    }
    if (turn.n_turns % 2 == parity) fail_in_kernel("waits for copies that nobody began");
}

void close_copies() { fibers[current].n_groups++; }

static void arrive(Fiber& fiber, const Copy& copy) {
    memcpy(copy.shared, copy.bytes, 16);
    if (copy.shared < addressable() || copy.shared >= shared_end) return;
    block.is_unfenced[(copy.shared - addressable()) / 16] = true;
    fiber.unfenced.push_back(copy.shared);
}

void finish_copies(int n_groups_left) {
    Fiber& fiber = fibers[current];
    size_t n_kept = 0;
    for (const Copy& copy : fiber.copies) {
        if (copy.group + static_cast<uint64_t>(n_groups_left) < fiber.n_groups)
            arrive(fiber, copy);
        else
            fiber.copies[n_kept++] = copy;
    }
    fiber.copies.resize(n_kept);
}

uint8_t* dynamic_shared() { return shared_begin; }

uint32_t shared_address(const void* shared) {
    const uint8_t* address = static_cast<const uint8_t*>(shared);
    if (address < shared_begin || address >= shared_end) fail_in_kernel("an operand of a product is not in dynamic shared memory");
    return static_cast<uint32_t>(address - addressable());
}

void fence_copies() {
    for (uint8_t* copy : fibers[current].unfenced) block.is_unfenced[(copy - addressable()) / 16] = false;
    fibers[current].unfenced.clear();
}

void wgmma(WgmmaOperands operands) { meet(Primitive::Wgmma, &operands); }
void wgmma_fence() { block.warps[current / N_LANES].is_fenced = true; }
void wgmma_commit() { meet(Primitive::WgmmaCommit, nullptr); }
void wgmma_wait(int n_groups_left) {
    ShuffleOperands operands = {0, 0, n_groups_left};
    meet(Primitive::WgmmaWait, &operands);
}

void add_kernel(const Kernel& kernel) {
    if (!registered().emplace(kernel.name, kernel).second) fail("two kernels are called `" + std::string(kernel.name) + "`");
}

const std::map<std::string, Kernel>& kernels() { return registered(); }

void run_kernel(const Kernel& kernel, uint3 grid, uint3 shape, size_t shared_bytes, void** arguments) {
    make_stacks();
    touched = NAN_BYTE;
    dl_iterate_phdr(find_static_shared, nullptr);
    gridDim = grid;
    blockDim = shape;
    block.kernel = &kernel;
    block.arguments = arguments;
    block.n_threads = static_cast<int>(shape.x * shape.y * shape.z);
    block.n_warps = (block.n_threads + N_LANES - 1) / N_LANES;
    uint8_t* shared_limit = shared_end;
    shared_begin = shared_end - (shared_bytes + 127) / 128 * 128;
    watch_signals();
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) run_block(shared_bytes, shared_limit);
    unwatch_signals();
}

void fail(const std::string& message) {
    fprintf(stderr, "emulated GPU: %s\n", message.c_str());
    fflush(stderr);
    abort();
}

}  // namespace emulator
