// Several operations of few rows in one launch, each of which needs what the one before wrote: products, the norms and activations
// that give their left operands, and what becomes of queries, keys and values.
//
// Every block works on every link of the chain, and the blocks wait for one another between links. There is at most one block for each
// multiprocessor, and none of the blocks of a later launch begins before all of these have, so they may wait for one another.
//
// Weights depend on nothing that a chain computes. Each warp of the grid has some rows of W, neighbours and so one piece of memory, which
// it asks for in parts of a row, N_PARTS ahead, beyond the end of a link: memory is read while blocks wait and while left operands are
// made. Only the warp waits for them.
//
// The left operand is whole in shared memory; where it comes of a norm or an activation every block makes it, which takes less time
// than to wait for another block.
//
// The sum of an output has one order: a lane sums eights of neighbours, those of a part of 2048 numbers, and these; then the lanes are
// added.
#include "append.cuh"
#include "norm.cuh"
#include "silu.cuh"

constexpr int N_WARPS = 8;
constexpr int N_THREADS = N_WARPS * 32;
constexpr int MAX_ROWS = 4;
// Parts of a warp that are on their way, the most numbers of one, and those that all lanes have at a time.
constexpr int N_PARTS = 4;
constexpr int PART = 2048;
constexpr int UNIT = 256;
// Of the left operand in shared memory, so that rows lie in different banks.
constexpr int GAP = 8;

enum Kind { PRODUCT_BF16 = 0, PRODUCT_F32 = 1, ADDED_F32 = 2, OPERAND = 3, APPEND = 4 };
enum Source { ROWS = 0, NORM = 1, SWIGLU = 2 };

// Names as in chain.rs. A product takes x [rows, n_in] and w [n_out, n_in] of bf16 and gives y [rows, stride] of bf16 or f32. x is what
// `source` says: rows as they are; the norm of the rows [rows, n_in] of f32 by norm_weight, with scales [rows]; or the activation of
// [rows, 2, n_in] of bf16. Of the last two x is written too; an OPERAND is that alone. Of rotate_and_append y is qkv.
struct Link {
    const void* from;
    const float* norm_weight;
    float* scales;
    bf16* x;
    const bf16* w;
    void* y;
    Angles angles;
    bf16* blocks;
    const uint32_t* tables;
    const uint32_t* row_sequences;
    const uint32_t* row_positions;
    int kind;
    int source;
    int n_rows;
    int n_out;
    int n_in;
    int stride;
    float eps;
    int n_heads;
    int n_kv_heads;
    int head_dim;
    int table_stride;
    // Numbers of a part of a row of W.
    int part;
};
constexpr int MAX_LINKS = 8;
struct Links {
    Link links[MAX_LINKS];
    int n_links;
};

DEVICE bool is_product(const Link& link) { return link.kind <= ADDED_F32; }

// The rows of W of this warp.
struct Rows {
    int begin, end;
};
DEVICE Rows rows_of_warp(const Link& link) {
    int64_t warp = int64_t(blockIdx.x) * N_WARPS + threadIdx.x / 32, n_warps = int64_t(gridDim.x) * N_WARPS;
    return {int(link.n_out * warp / n_warps), int(link.n_out * (warp + 1) / n_warps)};
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

// Where left operands go: the matrix x, shared memory, or both.
struct Operand {
    // [rows, n_in], or null.
    bf16* x;
    // [rows, row_len], or null.
    bf16* shared;
    int n_in;

    DEVICE int row_len() const { return n_in + GAP; }
};

// Reads of a thread that are on their way at the same time.
constexpr int AT_ONCE = 8;

// The rows as they are.
DEVICE void copy_rows(const Link& link, Operand to) {
    int per_row = to.n_in / 8, n = link.n_rows * per_row;
    const uint4* from = static_cast<const uint4*>(link.from);
    for (int first = threadIdx.x; first < n; first += AT_ONCE * N_THREADS) {
        uint4 numbers[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int unit = first + i * N_THREADS;
            if (unit < n) numbers[i] = load_fresh(from + unit);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int unit = first + i * N_THREADS;
            if (unit < n) *reinterpret_cast<uint4*>(to.shared + unit / per_row * to.row_len() + unit % per_row * 8) = numbers[i];
        }
    }
}

// silu(gate) up
DEVICE void activate_rows(const Link& link, int first_row, int n_rows, Operand to) {
    int per_row = to.n_in / 8, n = n_rows * per_row;
    const bf16* from = static_cast<const bf16*>(link.from);
    for (int first = threadIdx.x; first < n; first += AT_ONCE * N_THREADS) {
        uint4 of_gates[AT_ONCE], of_ups[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int unit = first + i * N_THREADS, row = first_row + unit / per_row;
            const uint4* gate = reinterpret_cast<const uint4*>(from + int64_t(row) * 2 * to.n_in) + unit % per_row;
            if (unit < n) of_gates[i] = load_fresh(gate), of_ups[i] = load_fresh(gate + per_row);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int unit = first + i * N_THREADS, row = first_row + unit / per_row, column = unit % per_row * 8;
            if (unit >= n) break;
            Wide<bf16> gates = widened(of_gates[i]), ups = widened(of_ups[i]);
#pragma unroll
            for (int j = 0; j < 8; j++) gates.values[j] = silu(gates.values[j]) * ups.values[j];
            if (to.x != nullptr) store_wide(to.x + int64_t(row) * to.n_in + column, gates);
            if (to.shared != nullptr) store_wide(to.shared + row * to.row_len() + column, gates);
        }
    }
}

// Fours of a row that a thread has at a time.
constexpr int FOURS = 4;

// x weight / sqrt(mean(x^2) + eps). The warps share out the rows; each row belongs to neighbours.
DEVICE void norm_rows(const Link& link, int first_row, int n_rows, Operand to, float* partials) {
    int n_groups = 1;
    while (n_groups < n_rows) n_groups *= 2;
    int n_threads = N_THREADS / n_groups, thread = threadIdx.x % n_threads, of_group = threadIdx.x / n_threads;
    int row = first_row + of_group, piece = n_threads * 4 * FOURS;
    // Groups behind the last row have rows of width 0.
    int n_in = of_group < n_rows ? to.n_in : 0;
    const float* from = static_cast<const float*>(link.from) + int64_t(row) * to.n_in;
    auto place = [&](int start, int i) { return start + (i * n_threads + thread) * 4; };
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
    for (int start = 0; start < n_in; start += piece) {
        load(start);
#pragma unroll
        for (int i = 0; i < 4 * FOURS; i++) sum += values[i / 4].values[i % 4] * values[i / 4].values[i % 4];
    }
    float scale = inverse_rms_of(group_sum(sum, partials, n_threads / 32), to.n_in, link.eps);
    if (n_in == 0) return;
    for (int start = 0; start < n_in; start += piece) {
        // A row of one piece is still there.
        if (n_in > piece) load(start);
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            int k = place(start, i);
            if (k >= n_in) continue;
#pragma unroll
            for (int j = 0; j < 4; j++) values[i].values[j] *= scale * counted_weight(weights[i].values[j]);
            if (to.x != nullptr) store_four(to.x + int64_t(row) * n_in + k, values[i]);
            if (to.shared != nullptr) store_four(to.shared + row * to.row_len() + k, values[i]);
        }
    }
    if (to.x != nullptr && thread == 0) link.scales[row] = scale;
}

DEVICE void write_output(const Link& link, int64_t at, float sum) {
    if (link.kind == PRODUCT_BF16) {
        static_cast<bf16*>(link.y)[at] = from_f32<bf16>(sum);
    } else if (link.kind == PRODUCT_F32) {
        static_cast<float*>(link.y)[at] = sum;
    } else {
        add_once(static_cast<float*>(link.y) + at, sum);
    }
}

// What a part of a row of W adds to its sums.
DEVICE void multiply_part(float (&sums)[MAX_ROWS], const bf16* numbers, int part, const bf16* x, int row_len, int n_rows) {
    constexpr int N_UNITS = PART / UNIT;
    int lane = threadIdx.x % 32 * 8;
    uint4 of_w[N_UNITS];
#pragma unroll
    for (int i = 0; i < N_UNITS; i++) {
        of_w[i] = {0, 0, 0, 0};
        if (i * UNIT < part) of_w[i] = *reinterpret_cast<const uint4*>(numbers + i * UNIT + lane);
    }
#pragma unroll
    for (int n = 0; n < MAX_ROWS; n++) {
        if (n >= n_rows) break;
        float of_units[N_UNITS];
#pragma unroll
        for (int i = 0; i < N_UNITS; i++) {
            of_units[i] = 0.0f;
            if (i * UNIT >= part) continue;
            Wide<bf16> w = widened(of_w[i]), of_x = load_wide(x + n * row_len + i * UNIT + lane);
#pragma unroll
            for (int j = 0; j < 8; j++) of_units[i] = fmaf(w.values[j], of_x.values[j], of_units[i]);
        }
#pragma unroll
        for (int i = 0; i < N_UNITS; i++) sums[n] += of_units[i];
    }
}

// The slot of the part that comes next, and the parity of its arrival.
struct Progress {
    int slot, parity;
};

// The rows of a product that this warp has.
DEVICE void product_link(const Links& chain, const Link& link, Ahead& ahead, Progress& at, const Parts& parts, bf16* x, float* partials) {
    // One block writes what the others make too.
    Operand operand = {blockIdx.x == 0 ? link.x : nullptr, x, link.n_in};
    if (link.source == ROWS) {
        copy_rows(link, operand);
    } else if (link.source == NORM) {
        norm_rows(link, 0, link.n_rows, operand, partials);
    } else {
        activate_rows(link, 0, link.n_rows, operand);
    }
    sync_block();
    Rows rows = rows_of_warp(link);
    for (int row = rows.begin; row < rows.end; row++) {
        float sums[MAX_ROWS] = {};
        for (int k = 0; k < link.n_in; k += link.part) {
            wait_for_arrivals(parts.arrivals + at.slot, at.parity);
            multiply_part(sums, parts.numbers + at.slot * PART, link.part, x + k, operand.row_len(), link.n_rows);
            // All lanes have read the part.
            sync_warp();
            ask(ahead, chain, parts);
            at.slot = (at.slot + 1) % N_PARTS;
            if (at.slot == 0) at.parity ^= 1;
        }
#pragma unroll
        for (int n = 0; n < MAX_ROWS; n++) {
            if (n >= link.n_rows) break;
            float sum = warp_sum(sums[n]);
            if (threadIdx.x % 32 == 0) write_output(link, int64_t(n) * link.stride + row, sum);
        }
    }
}

// A left operand for what comes after the chain: a block for each row.
DEVICE void operand_link(const Link& link, float* partials) {
    Operand operand = {link.x, nullptr, link.n_in};
    for (int row = blockIdx.x; row < link.n_rows; row += gridDim.x) {
        if (link.source == NORM) {
            norm_rows(link, row, 1, operand, partials);
            sync_block();
        } else {
            activate_rows(link, row, 1, operand);
        }
    }
}

DEVICE void append_link(const Link& link) {
    constexpr int NUMBERS = Pack<bf16>::N;
    int n_groups = (link.n_heads + 2 * link.n_kv_heads + HEADS - 1) / HEADS;
    unsigned n_threads = link.n_rows * n_groups * (link.head_dim / 2 / NUMBERS);
    for (unsigned thread = blockIdx.x * N_THREADS + threadIdx.x; thread < n_threads; thread += gridDim.x * N_THREADS) {
        rotate_and_append<bf16, NUMBERS, Reading::OF_LAUNCH>(
            thread, static_cast<bf16*>(link.y), link.angles, link.blocks, link.tables, link.row_sequences, link.row_positions,
            link.n_rows, link.n_heads, link.n_kv_heads, link.head_dim, link.table_stride);
    }
}

// `counter` counts blocks that have come to the end of a link, of all chains so far; it stands at `n_arrived` before this one. Shared
// memory: the parts of each warp, then the left operand.
KERNEL_BOUNDS(chain, N_THREADS, 1)(const LAUNCH_CONSTANT Links links, uint32_t* counter, uint32_t n_arrived) {
    DYNAMIC_SHARED(shared);
    __shared__ float partials[N_WARPS];
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
        if (i > 0) wait_for_blocks(counter, n_arrived + i * gridDim.x);
        // Not earlier: the blocks of the next kernel would take room that these still wait for.
        if (i + 1 == links.n_links) let_next_begin();
        if (is_product(link)) {
            product_link(links, link, ahead, at, parts, x, partials);
        } else if (link.kind == OPERAND) {
            operand_link(link, partials);
        } else {
            append_link(link);
        }
    }
}
EXPORT(chain)
