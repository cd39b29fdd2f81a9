// Several operations of one row in one launch, each of which needs what the one before wrote: products, the norms and activations
// that give their left operands, what becomes of queries, keys and values, and attention.
//
// Every block works on every link of the chain, and the blocks wait for one another between links. There is at most one block for each
// multiprocessor, and none of the blocks of a later launch begins before all of these have, so they may wait for one another, as long as
// one stream of one program uses the GPU at a time.
//
// Weights depend on nothing that a chain computes. Each warp of the grid has some rows of W, neighbours and so one piece of memory, which
// it asks for in parts of a row, N_PARTS ahead, beyond the end of a link: memory is read while blocks wait and while left operands are
// made. Only the warp waits for them. They are asked for while launches before this one are still at work, so a kernel that writes weights
// must not be launched early.
//
// The left operand is whole in shared memory; where it comes of a norm or an activation every block makes it, which takes less time
// than to wait for another block.
//
// The sum of an output has one order: a lane sums eights of neighbours, those of a part of 2048 numbers, and these; then the lanes are
// added.
#include "attention_row.cuh"
#include "norm.cuh"
#include "silu.cuh"

constexpr int N_WARPS = 8;
constexpr int N_THREADS = N_WARPS * 32;
// Parts of a warp that are on their way, the most numbers of one, and those that all lanes have at a time.
constexpr int N_PARTS = 4;
constexpr int PART = 2048;
constexpr int UNIT = 256;

enum Kind { PRODUCT_BF16 = 0, PRODUCT_F32 = 1, ADDED_F32 = 2, OPERAND = 3, APPEND = 4, ATTEND = 5 };
enum Source { ROW = 0, NORM = 1, SWIGLU = 2 };

// Names as in chain.rs. A product takes x [n_in] and w [n_out, n_in] of bf16 and gives y [n_out] of bf16 or f32. x is what `source`
// says: a row as it is; the norm of a row [n_in] of f32 by norm_weight, with its scale; or the activation of a row [2, n_in] of bf16. Of
// the last two x is written too; an OPERAND is that alone. Of rotate_and_append y is qkv; attention is from qkv to y, after the same
// where there are angles.
struct Link {
    const void* from;
    const float* norm_weight;
    float* scale;
    bf16* x;
    const bf16* w;
    void* y;
    Angles angles;
    bf16* blocks;
    const uint32_t* tables;
    const uint32_t* row_sequences;
    const uint32_t* row_positions;
    float* scratch;
    uint32_t* n_done;
    int kind;
    int source;
    int n_out;
    int n_in;
    float eps;
    int n_heads;
    int n_kv_heads;
    int head_dim;
    int table_stride;
    // Numbers of a part of a row of W.
    int part;
    int window;
    int n_shares;
    float factor;
};
// Four layers of five links, and two more, which leaves room in the 4 KiB of a kernel's arguments.
constexpr int MAX_LINKS = 22;
struct alignas(16) Links {
    Link links[MAX_LINKS];
    int n_links;
};
static_assert(sizeof(Links) + sizeof(void*) + sizeof(uint32_t) <= 4096, "arguments of a kernel");

DEVICE bool is_product(const Link& link) { return link.kind <= ADDED_F32; }
DEVICE bool has_operand(const Link& link) { return link.kind <= OPERAND; }

// The rows of W of this warp. Rows times warps of the grid are below 2^32 (chain.rs).
struct Rows {
    int begin, end;
};
DEVICE Rows rows_of_warp(const Link& link) {
    uint32_t warp = blockIdx.x * N_WARPS + threadIdx.x / 32, n_warps = gridDim.x * N_WARPS, n_out = link.n_out;
    return {int(n_out * warp / n_warps), int(n_out * (warp + 1) / n_warps)};
}

// What a warp asks for next.
struct Ahead {
    int link;
    const bf16 *from, *end;
    int slot;
};

// The first part of the next product from `ahead.link` on.
DEVICE void find_link(Ahead& ahead, const Links& chain) {
    for (; ahead.link < chain.n_links; ahead.link++) {
        const Link& link = chain.links[ahead.link];
        if (!is_product(link)) continue;
        Rows rows = rows_of_warp(link);
        ahead.from = link.w + int64_t(rows.begin) * link.n_in;
        ahead.end = link.w + int64_t(rows.end) * link.n_in;
        if (rows.begin < rows.end) return;
    }
}

// The parts of this warp in shared memory, and when they have arrived.
struct Parts {
    bf16* numbers;
    uint64_t* arrivals;
};

// Asks for the next part, if there is one, by one lane.
DEVICE void ask(Ahead& ahead, const Links& chain, const Parts& parts) {
    if (ahead.link >= chain.n_links) return;
    int part = chain.links[ahead.link].part;
    if (threadIdx.x % 32 == 0) {
        expect_arrivals(parts.arrivals + ahead.slot, part * 2);
        copy_bulk_async(parts.numbers + ahead.slot * PART, ahead.from, part * 2, parts.arrivals + ahead.slot);
    }
    ahead.slot = (ahead.slot + 1) % N_PARTS;
    ahead.from += part;
    if (ahead.from == ahead.end) {
        ahead.link++;
        find_link(ahead, chain);
    }
}

// Reads of a thread that are on their way at the same time. Those behind a row's end are of its last numbers: with a condition they could
// be waited for one after the other, and would need registers meanwhile.
constexpr int AT_ONCE = 8;

// The row as it is.
DEVICE void copy_row(const Link& link, bf16* x) {
    int n = link.n_in / 8;
    const uint4* from = static_cast<const uint4*>(link.from);
    for (int first = threadIdx.x; first < n; first += AT_ONCE * N_THREADS) {
        uint4 numbers[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) numbers[i] = load_fresh(from + min(first + i * N_THREADS, n - 1));
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int unit = first + i * N_THREADS;
            if (unit < n) reinterpret_cast<uint4*>(x)[unit] = numbers[i];
        }
    }
}

// silu(gate) up
DEVICE void activate_row(const Link& link, bf16* x) {
    int n = link.n_in / 8;
    const uint4* from = static_cast<const uint4*>(link.from);
    for (int first = threadIdx.x; first < n; first += AT_ONCE * N_THREADS) {
        uint4 of_gates[AT_ONCE], of_ups[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int unit = min(first + i * N_THREADS, n - 1);
            of_gates[i] = load_fresh(from + unit), of_ups[i] = load_fresh(from + n + unit);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int unit = first + i * N_THREADS;
            if (unit >= n) break;
            Wide<bf16> gates = widened(of_gates[i]), ups = widened(of_ups[i]);
#pragma unroll
            for (int j = 0; j < 8; j++) gates.values[j] = silu(gates.values[j]) * ups.values[j];
            store_wide(x + unit * 8, gates);
        }
    }
}

// Fours of a row that a thread has at a time.
constexpr int FOURS = 4;
constexpr int PIECE = N_THREADS * 4 * FOURS;

// x weight / sqrt(mean(x^2) + eps)
DEVICE void norm_row(const Link& link, bf16* x, float* partials) {
    int n_in = link.n_in;
    const float* from = static_cast<const float*>(link.from);
    auto place = [&](int start, int i) { return start + (i * N_THREADS + int(threadIdx.x)) * 4; };
    Four values[FOURS], weights[FOURS];
    auto load = [&](int start) {
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            int k = place(start, i);
            values[i] = k < n_in ? load_fresh_four(from + k) : Four{};
            weights[i] = k < n_in ? load_four(link.norm_weight + k) : Four{};
        }
    };
    float sum = 0.0f;
    for (int start = 0; start < n_in; start += PIECE) {
        load(start);
#pragma unroll
        for (int i = 0; i < 4 * FOURS; i++) sum += values[i / 4].values[i % 4] * values[i / 4].values[i % 4];
    }
    float scale = inverse_rms_of(block_sum<N_WARPS>(sum, partials), n_in, link.eps);
    for (int start = 0; start < n_in; start += PIECE) {
        // A row of one piece is still there.
        if (n_in > PIECE) load(start);
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            int k = place(start, i);
            if (k >= n_in) continue;
#pragma unroll
            for (int j = 0; j < 4; j++) values[i].values[j] = values[i].values[j] * scale * counted_weight(weights[i].values[j]);
            store_four(x + k, values[i]);
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) *link.scale = scale;
}

DEVICE void make_operand(const Link& link, bf16* x, float* partials) {
    if (link.source == ROW) {
        copy_row(link, x);
    } else if (link.source == NORM) {
        norm_row(link, x, partials);
    } else {
        activate_row(link, x);
    }
}

DEVICE void write_output(const Link& link, int at, float sum) {
    if (link.kind == PRODUCT_BF16) {
        static_cast<bf16*>(link.y)[at] = from_f32<bf16>(sum);
    } else if (link.kind == PRODUCT_F32) {
        static_cast<float*>(link.y)[at] = sum;
    } else {
        add_once(static_cast<float*>(link.y) + at, sum);
    }
}

// What a part of a row of W gives.
DEVICE float multiply_part(const bf16* numbers, int part, const bf16* x) {
    constexpr int N_UNITS = PART / UNIT;
    int lane = threadIdx.x % 32 * 8;
    float of_units[N_UNITS];
#pragma unroll
    for (int i = 0; i < N_UNITS; i++) {
        of_units[i] = 0.0f;
        if (i * UNIT >= part) continue;
        Wide<bf16> of_w = load_wide(numbers + i * UNIT + lane), of_x = load_wide(x + i * UNIT + lane);
#pragma unroll
        for (int j = 0; j < 8; j++) of_units[i] = fmaf(of_w.values[j], of_x.values[j], of_units[i]);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N_UNITS; i++) sum += of_units[i];
    return sum;
}

// The slot of the part that comes next, and the parity of its arrival.
struct Progress {
    int slot, parity;
};

// The left operand of a product, and the rows of it that this warp has: none where the operand is for what comes after the chain, which has
// n_out 0.
DEVICE void operand_link(const Links& chain, const Link& link, Ahead& ahead, Progress& at, const Parts& parts, bf16* x, float* partials) {
    make_operand(link, x, partials);
    sync_block();
    Rows rows = rows_of_warp(link);
    for (int row = rows.begin; row < rows.end; row++) {
        float sum = 0.0f;
        for (int k = 0; k < link.n_in; k += link.part) {
            wait_for_arrivals(parts.arrivals + at.slot, at.parity);
            sum += multiply_part(parts.numbers + at.slot * PART, link.part, x + k);
            // All lanes have read the part.
            sync_warp();
            ask(ahead, chain, parts);
            at.slot = (at.slot + 1) % N_PARTS;
            if (at.slot == 0) at.parity ^= 1;
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) write_output(link, row, sum);
    }
    if (blockIdx.x > 0 || link.source == ROW) return;
    // One block writes what the others made too.
    for (int i = threadIdx.x; i < link.n_in / 8; i += N_THREADS) reinterpret_cast<uint4*>(link.x)[i] = reinterpret_cast<uint4*>(x)[i];
}

DEVICE void append_link(const Link& link) {
    constexpr int NUMBERS = Pack<bf16>::N;
    unsigned n_threads = (link.n_heads + 2 * link.n_kv_heads) * (link.head_dim / 2 / NUMBERS);
    for (unsigned thread = blockIdx.x * N_THREADS + threadIdx.x; thread < n_threads; thread += gridDim.x * N_THREADS) {
        rotate_and_append<bf16, NUMBERS, 1, Reading::OF_LAUNCH>(
            thread, static_cast<bf16*>(link.y), link.angles, link.blocks, link.tables, link.row_sequences, link.row_positions, 1,
            link.n_heads, link.n_kv_heads, link.head_dim, link.table_stride);
    }
}

// `wait` returns once the links before are done.
template <typename Wait>
DEVICE void attend_link(const Link& link, float* shared, Wait wait) {
    attention_row::Arguments a = {static_cast<const bf16*>(link.from), static_cast<bf16*>(link.y), link.angles, link.blocks,
                                  link.tables, link.row_sequences, link.row_positions, link.scratch, link.n_done, link.n_heads,
                                  link.n_kv_heads, link.table_stride, link.window, link.n_shares, link.factor};
    if (link.head_dim == 128) {
        attention_row::attend<128, N_WARPS>(a, shared, wait);
    } else {
        attention_row::attend<64, N_WARPS>(a, shared, wait);
    }
}

// `counter` counts blocks that have come to the end of a link, of all chains so far; it stands at `n_arrived` before this one. Shared
// memory: the parts of each warp, then the left operand, or what attention keeps.
KERNEL_BOUNDS(chain, N_THREADS, 1)(const LAUNCH_CONSTANT Links of_launch, uint32_t* counter, uint32_t n_arrived) {
    DYNAMIC_SHARED(shared);
    __shared__ float partials[N_WARPS];
    // Copied, since each cache line of an argument would be waited for when a link is first looked at.
    __shared__ Links links;
    for (unsigned i = threadIdx.x; i < sizeof(Links) / 16; i += N_THREADS) {
        reinterpret_cast<uint4*>(&links)[i] = reinterpret_cast<const uint4*>(&of_launch)[i];
    }
    sync_block();
    __shared__ __align__(8) uint64_t arrivals[N_WARPS * N_PARTS];
    bf16* numbers = reinterpret_cast<bf16*>(shared);
    bf16* x = numbers + N_WARPS * N_PARTS * PART;
    Parts parts = {numbers + threadIdx.x / 32 * N_PARTS * PART, arrivals + threadIdx.x / 32 * N_PARTS};
    if (threadIdx.x % 32 < N_PARTS) init_arrivals(parts.arrivals + threadIdx.x % 32);
    fence_arrivals();
    sync_warp();
    Ahead ahead = {};
    find_link(ahead, links);
    for (int i = 0; i < N_PARTS; i++) ask(ahead, links, parts);
    sync_warp();
    wait_for_earlier();
    Progress at = {};
    for (int i = 0; i < links.n_links; i++) {
        const Link& link = links.links[i];
        const auto wait = [&]() {
            if (i > 0) wait_for_blocks(counter, n_arrived + i * gridDim.x);
            // Not earlier: the blocks of the next kernel would take room that these still wait for.
            if (i + 1 == links.n_links) let_next_begin();
        };
        if (link.kind == ATTEND) {
            attend_link(link, reinterpret_cast<float*>(x), wait);
            continue;
        }
        wait();
        if (has_operand(link)) {
            operand_link(links, link, ahead, at, parts, x, partials);
        } else {
            append_link(link);
        }
    }
}
EXPORT(chain)
