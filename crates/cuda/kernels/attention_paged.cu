// Causal attention of new rows over the paged cache. A single row in a chain is attended by attention_row.cuh, in another order.
//
// Arithmetic of a row, in bf16 with heads of 64 or 128, the same whatever rows share its tile and in whichever of the kernels:
// positions are cut into partitions of 512 and these into steps of 128, counted from position 0. Within a partition a running
// maximum m (of scores in units of log2), divisor l and output o go over the steps in ascending order, all f32:
// m' = max(m, max_k s_k), p_k = exp2(s_k - m'), l' = l exp2(m - m') + sum_k p_k (32 keys at a time, their sums added in
// ascending order), o' = o exp2(m - m') + sum_k round(p_k) v_k. Partitions are merged in ascending order. A position that the
// row does not see has p = 0, so that a step or a partition which others of its tile see leaves its bits alone. In 8 bits codes go into
// the products as bf16, which holds them exactly; a score is multiplied by the scale of its key, and p_k by that of its value after it was
// summed up and before it is rounded.
//
// Query heads of one KV head are folded into rows: row t * group_len + h of a tile is head h of its token t. `few` takes up to 16
// folded rows and one partition; its four warps share out the keys of a step, then the columns of the output. `many` takes up to 64, 16
// per warp, over any number of partitions. Results of single partitions go to scratch, which `merge` sums up.
#include "paged_cache.cuh"

constexpr int STEP = 128;
constexpr int PARTITION = 512;
constexpr int N_WARPS = 4;

// What the kernels of tiles take.
struct Arguments {
    const bf16* qkv;
    const uint8_t* blocks;
    const uint32_t* tables;
    bf16* out;
    float* sums;   // [slots, head_dim]
    float* stats;  // [slots, 2 (maximum, divisor)]
    int n_heads;
    int n_kv_heads;
    int table_stride;
    int window;    // 0 for none
    float factor;  // of the scores, with log2(e) in it; positive
};

// Some tokens of one sequence and some partitions of its positions, as the host lists them.
struct Tile {
    int sequence, first_row, n_tokens, first_position, first_partition, n_partitions;
    // Where the results of the only partition go, [n_kv_heads, folded rows]; NO_SLOT where they are the whole sum.
    uint32_t slot;
    // Of the positions that its tokens see, and that lie in its partitions.
    int first_key, end_key;
    int kv_head, group_len, n_rows;
    // A token's distance in qkv and out.
    int64_t qkv_width, out_width;
};

template <int D>
DEVICE Tile read_tile(const uint32_t* tiles, const Arguments& a) {
    const uint4* words = reinterpret_cast<const uint4*>(tiles) + 2 * static_cast<int64_t>(blockIdx.x);
    uint4 low = words[0], high = words[1];
    Tile tile;
    tile.sequence = low.x, tile.first_row = low.y, tile.n_tokens = low.z, tile.first_position = low.w;
    tile.first_partition = high.x, tile.n_partitions = high.y, tile.slot = high.z;
    tile.kv_head = blockIdx.y;
    tile.group_len = a.n_heads / a.n_kv_heads;
    tile.n_rows = tile.n_tokens * tile.group_len;
    tile.qkv_width = static_cast<int64_t>(a.n_heads + 2 * a.n_kv_heads) * D;
    tile.out_width = static_cast<int64_t>(a.n_heads) * D;
    int first_visible = a.window > 0 ? tile.first_position + 1 - a.window : 0;
    int first_of_partition = tile.first_partition * PARTITION;
    int end_of_partition = (tile.first_partition + tile.n_partitions) * PARTITION;
    int end_visible = tile.first_position + tile.n_tokens;
    tile.first_key = first_visible > first_of_partition ? first_visible : first_of_partition;
    tile.end_key = end_visible < end_of_partition ? end_visible : end_of_partition;
    return tile;
}

// The block of a position, or block 0 (of which nothing is read then) where no token of the tile sees one of its keys.
DEVICE uint32_t block_id(const Tile& tile, const Arguments& a, int position) {
    bool seen = position + KEY_BLOCK > tile.first_key && position < tile.end_key;
    return seen ? a.tables[static_cast<int64_t>(tile.sequence) * a.table_stride + position / KEY_BLOCK] : 0;
}

// Where 16 bytes of a row of keys or values stand in shared memory. Eight rows at one column lie in different banks.
template <int D, typename C>
DEVICE int place(int row, int column) {
    constexpr int N = Pack<C>::N, N_PIECES = D / N;
    return row * D + ((column / N) ^ (N_PIECES < 8 ? row / 2 % N_PIECES : row % 8)) * N;
}

// The keys (part 0) or values (part 1) of a block.
template <int D, typename C>
DEVICE const uint8_t* head_of_block(const Tile& tile, const Arguments& a, uint32_t id, int part) {
    int64_t head = static_cast<int64_t>(id) * 2 * a.n_kv_heads + part * a.n_kv_heads + tile.kv_head;
    return a.blocks + head * head_bytes<C>(D);
}
DEVICE bool is_seen(const Tile& tile, int position) { return position >= tile.first_key && position < tile.end_key; }

// Begins to copy the keys (part 0) or values (part 1) of the block at a position, by one warp; zeros where no token of the tile
// sees the key, so that nothing of an earlier owner of the block is read.
template <int D, typename C>
DEVICE void copy_block(const Tile& tile, const Arguments& a, C* shared, uint32_t id, int part, int position) {
    constexpr int N = Pack<C>::N;
    const C* from = reinterpret_cast<const C*>(head_of_block<D, C>(tile, a, id, part));
    constexpr int N_COPIES = KEY_BLOCK * D / N / 32;
    // `attend_many` has no registers for more addresses beside codes.
    constexpr int N_UNROLLED = IN_8_BITS<C> ? 2 : N_COPIES;
    int lane = threadIdx.x % 32;
#pragma unroll N_UNROLLED
    for (int i = 0; i < N_COPIES; i++) {
        int number = (i * 32 + lane) * N;
        int row = number / D;
        copy_16_async(shared + place<D, C>(row, number % D), from + number, is_seen(tile, position + row));
    }
}

// Begins to copy the 32 scales of the keys or values of a block, by one warp, those too that no token of the tile sees.
template <int D>
DEVICE void copy_scales(const Tile& tile, const Arguments& a, float* shared, uint32_t id, int part, int position) {
    int first = threadIdx.x % 32 * 4;
    if (first >= KEY_BLOCK) return;
    const float* from = reinterpret_cast<const float*>(head_of_block<D, int8_t>(tile, a, id, part) + KEY_BLOCK * D);
    bool seen = position + first + 4 > tile.first_key && position + first < tile.end_key;
    copy_16_async(shared + first, from + first, seen);
}
// The scale of the lane's key or value in a block; 0 where no token of the tile sees it.
template <int D>
DEVICE float load_scale(const Tile& tile, const Arguments& a, uint32_t id, int part, int position) {
    int lane = threadIdx.x % 32;
    if (!is_seen(tile, position + lane)) return 0;
    return reinterpret_cast<const float*>(head_of_block<D, int8_t>(tile, a, id, part) + KEY_BLOCK * D)[lane];
}

// What 32 keys or values, counted from the first, are to be multiplied by: nothing, what lanes have, or what shared memory has.
struct NoScales {
    static constexpr bool EXIST = false;
    DEVICE float operator()(int) const { return 1; }
};
struct ScalesOfLanes {
    static constexpr bool EXIST = true;
    float of_lane;
    DEVICE float operator()(int key) const { return shuffle(of_lane, key); }
};
struct SharedScales {
    static constexpr bool EXIST = true;
    const float* scales;
    DEVICE float operator()(int key) const { return scales[key]; }
};
template <typename C>
DEVICE auto scales_of(float of_lane) {
    if constexpr (IN_8_BITS<C>) {
        return ScalesOfLanes{of_lane};
    } else {
        return NoScales{};
    }
}
template <typename C>
DEVICE auto scales_of(const float* scales) {
    if constexpr (IN_8_BITS<C>) {
        return SharedScales{scales};
    } else {
        return NoScales{};
    }
}
// Multiplies scores or probabilities of 32 keys.
template <typename Scales>
DEVICE void multiply(float (&x)[4][4], const Scales& scales) {
    if constexpr (Scales::EXIST) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float scale = scales(8 * n + threadIdx.x % 4 * 2 + i);
                x[n][i] *= scale, x[n][i + 2] *= scale;
            }
        }
    }
}

// A block of codes as operands, by one warp.
template <int D>
DEVICE void widen_block(const int8_t* codes, bf16* to) {
    int lane = threadIdx.x % 32;
    // Scores and sums leave no registers for more at a time.
#pragma unroll 1
    for (int i = 0; i < KEY_BLOCK * D / 16 / 32; i++) {
        int number = (i * 32 + lane) * 16;
        int row = number / D, column = number % D;
        uint4 words = *reinterpret_cast<const uint4*>(codes + place<D, int8_t>(row, column));
        Widened a = widen(words.x), b = widen(words.y), c = widen(words.z), d = widen(words.w);
        *reinterpret_cast<uint4*>(to + place<D, bf16>(row, column)) = {a.even, b.even, c.even, d.even};
        *reinterpret_cast<uint4*>(to + place<D, bf16>(row, column + 8)) = {a.odd, b.odd, c.odd, d.odd};
    }
}

// The queries of 16 folded rows from `first` on, as left operands, in the order of the columns of C; zeros past the tile's.
template <int D, typename C>
DEVICE void load_queries(const Tile& tile, const Arguments& a, int first, uint32_t (&queries)[D / 16][4]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + lane / 4 + 8 * half;
        bool exists = row < tile.n_rows;
        int token = exists ? row / tile.group_len : 0, head = exists ? row % tile.group_len : 0;
        const bf16* from = a.qkv + (tile.first_row + token) * tile.qkv_width +
                           static_cast<int64_t>(tile.kv_head * tile.group_len + head) * D;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            if constexpr (IN_8_BITS<C>) {
                uint2 four = {0, 0};
                if (exists) four = *reinterpret_cast<const uint2*>(from + 16 * k + 4 * (lane % 4));
                queries[k][half] = (four.x & 0xffffu) | four.y << 16;
                queries[k][half + 2] = four.x >> 16 | (four.y & 0xffff0000u);
            } else {
                const bf16* pair = from + 16 * k + 2 * (lane % 4);
                queries[k][half] = exists ? *reinterpret_cast<const uint32_t*>(pair) : 0;
                queries[k][half + 2] = exists ? *reinterpret_cast<const uint32_t*>(pair + 8) : 0;
            }
        }
    }
}

// scores = queries keys^T, of 16 keys.
template <int D>
DEVICE void score_16_keys(const uint32_t (&queries)[D / 16][4], const bf16* keys, float (&first)[4], float (&second)[4]) {
    int lane = threadIdx.x % 32;
    int row = lane / 16 * 8 + lane % 8, column = lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < 4; i++) first[i] = second[i] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t b[4];
        ldmatrix_x4(b, keys + place<D, bf16>(row, 16 * k + column));
        mma_bf16(first, queries[k], b[0], b[1]);
        mma_bf16(second, queries[k], b[2], b[3]);
    }
}
// Of 32 keys.
template <int D>
DEVICE void score_32_keys(const uint32_t (&queries)[D / 16][4], const bf16* keys, float (&scores)[4][4]) {
    score_16_keys<D>(queries, keys, scores[0], scores[1]);
    score_16_keys<D>(queries, keys + 16 * D, scores[2], scores[3]);
}
// The four codes that a lane gets of a row are the four numbers which it has of a column of the right operand.
template <int D>
DEVICE void score_32_keys(const uint32_t (&queries)[D / 16][4], const int8_t* keys, float (&scores)[4][4]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[n][i] = 0;
    }
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t codes[4];
        ldmatrix_x4(codes, keys + place<D, int8_t>(lane, 16 * k));
#pragma unroll
        for (int n = 0; n < 4; n++) {
            Widened b = widen(codes[n]);
            mma_bf16(scores[n], queries[k], b.even, b.odd);
        }
    }
}

// out += probabilities values, of 16 keys and the columns [column, column + 16).
template <int D>
DEVICE void add_16_values(const uint32_t (&probabilities)[4], const bf16* values, int column, float (&first)[4],
                          float (&second)[4]) {
    int lane = threadIdx.x % 32;
    int row = lane / 8 % 2 * 8 + lane % 8;
    uint32_t b[4];
    ldmatrix_x4_transposed(b, values + place<D, bf16>(row, column + lane / 16 * 8));
    mma_bf16(first, probabilities, b[0], b[1]);
    mma_bf16(second, probabilities, b[2], b[3]);
}
// sums += probabilities values, of the 32 keys of two left operands and the columns from `column` on.
template <int D, int N>
DEVICE void add_32_values(const uint32_t (&left)[2][4], const bf16* values, int column, float (&sums)[N][4]) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
#pragma unroll
        for (int n = 0; n < N; n += 2) add_16_values<D>(left[k], values + k * 16 * D, column + 8 * n, sums[n], sums[n + 1]);
    }
}
// Neighbouring codes move as one number of 16 bits, so that a lane gets those of two keys in two columns.
template <int D, int N>
DEVICE void add_32_values(const uint32_t (&left)[2][4], const int8_t* values, int column, float (&sums)[N][4]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        uint32_t codes[4];
        ldmatrix_x4_transposed(codes, values + place<D, int8_t>(lane, column + 8 * n));
#pragma unroll
        for (int k = 0; k < 2; k++) {
            Widened low = widen(codes[2 * k]), high = widen(codes[2 * k + 1]);
            mma_bf16(sums[n], left[k], low.even, high.even);
            mma_bf16(sums[n + 1], left[k], low.odd, high.odd);
        }
    }
}

// The two folded rows of a lane, of those from `first` on: where what they see ends.
struct Visible {
    int end[2];
};
DEVICE Visible visible_keys(const Tile& tile, int first) {
    Visible visible;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + threadIdx.x % 32 / 4 + 8 * half;
        int position = tile.first_position + (row < tile.n_rows ? row : tile.n_rows - 1) / tile.group_len;
        visible.end[half] = position + 1;
    }
    return visible;
}
// Scores of keys that are not seen become minus infinity; `position` is that of the 8 keys.
DEVICE void mask(const Visible& visible, const Arguments& a, int position, float (&scores)[4]) {
    int window = a.window > 0 ? a.window : 0x7fffffff;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int key = position + threadIdx.x % 4 * 2 + i % 2;
        int end = visible.end[i / 2];
        if (key < end - window || key >= end) scores[i] = -INFINITY;
    }
}

// The largest of a row's numbers, and their sum, over the four lanes that hold them.
DEVICE float row_max(float x) {
    x = fmaxf(x, shuffle_xor(x, 1));
    return fmaxf(x, shuffle_xor(x, 2));
}
DEVICE float row_sum(float x) {
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}

// Turns the scores of 32 keys into probabilities, as two left operands; gives the sums of a lane's rows before they are multiplied by
// the scales of values and rounded. `base` is the maximum of each row, or 0 where it sees nothing yet.
template <typename Scales>
DEVICE void probabilities_of(float (&scores)[4][4], float factor, const float (&base)[2], const Scales& value_scales,
                             uint32_t (&first)[4], uint32_t (&second)[4], float (&sums)[2]) {
    sums[0] = sums[1] = 0;
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            scores[n][i] = exp2_approx(fmaf(scores[n][i], factor, -base[i / 2]));
            sums[i / 2] += scores[n][i];
        }
    }
    sums[0] = row_sum(sums[0]), sums[1] = row_sum(sums[1]);
    multiply(scores, value_scales);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        first[half] = pack_bf16(scores[0][2 * half], scores[0][2 * half + 1]);
        first[half + 2] = pack_bf16(scores[1][2 * half], scores[1][2 * half + 1]);
        second[half] = pack_bf16(scores[2][2 * half], scores[2][2 * half + 1]);
        second[half + 2] = pack_bf16(scores[3][2 * half], scores[3][2 * half + 1]);
    }
}

// Running results of a row over partitions; the factors of what was there and of what comes.
struct Merge {
    float before, added;
};
DEVICE Merge merge_partition(float& max, float& divisor, float added_max, float added_divisor) {
    float new_max = fmaxf(max, added_max);
    Merge merge{exp2_approx(max - or_zero(new_max)), exp2_approx(added_max - or_zero(new_max))};
    divisor = fmaf(divisor, merge.before, added_divisor * merge.added);
    max = new_max;
    return merge;
}
DEVICE float merged(const Merge& merge, float sum, float added) { return fmaf(sum, merge.before, added * merge.added); }

// Two numbers of a row of the output, or of scratch.
DEVICE void write_out(const Tile& tile, const Arguments& a, int row, int head_dim, int column, float low, float high, float divisor) {
    int token = row / tile.group_len, head = tile.kv_head * tile.group_len + row % tile.group_len;
    bf16* out = a.out + (tile.first_row + token) * tile.out_width + static_cast<int64_t>(head) * head_dim + column;
    *reinterpret_cast<uint32_t*>(out) = pack_bf16(low / divisor, high / divisor);
}
DEVICE int64_t slot_of(const Tile& tile, int row) {
    return tile.slot + static_cast<int64_t>(tile.kv_head) * tile.n_rows + row;
}
struct alignas(8) Two {
    float low, high;
};
// Pair `n` of a lane's columns, and its sums in one of its two rows.
template <typename C>
DEVICE int column_of_pair(int n) {
    int lane = threadIdx.x % 32;
    return IN_8_BITS<C> ? n / 2 * 16 + lane % 4 * 4 + n % 2 * 2 : 8 * n + lane % 4 * 2;
}
template <typename C, int N>
DEVICE Two sums_of_pair(const float (&sums)[N][4], int n, int half) {
    if constexpr (IN_8_BITS<C>) {
        return {sums[n / 2 * 2][2 * half + n % 2], sums[n / 2 * 2 + 1][2 * half + n % 2]};
    } else {
        return {sums[n][2 * half], sums[n][2 * half + 1]};
    }
}

// Shared memory: the keys of a step, a block for each warp; the values of two steps; probabilities; maxima and sums.
template <int D, typename C>
DEVICE void attend_few(const Arguments& a, const uint32_t* tiles, uint8_t* shared) {
    constexpr int N_COLUMNS = D / N_WARPS;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    C* keys = reinterpret_cast<C*>(shared) + warp * KEY_BLOCK * D;
    C* values = reinterpret_cast<C*>(shared) + STEP * D;
    uint4* probabilities = reinterpret_cast<uint4*>(values + 2 * STEP * D);
    float* maxima = reinterpret_cast<float*>(probabilities + STEP / 16 * 32);
    float* divisors = maxima + N_WARPS * 16;

    Tile tile = read_tile<D>(tiles, a);
    int first_step = tile.first_key / STEP * STEP;
    // Each lane keeps the id of one block of the partition.
    uint32_t ids = lane < PARTITION / KEY_BLOCK ? block_id(tile, a, tile.first_partition * PARTITION + lane * KEY_BLOCK) : 0;
    // Where codes are, the scales of the key and of the value of the lane in the block that is copied.
    float scales[2] = {0, 0};
    auto begin_copy = [&](int step, int part, C* to) {
        int position = step + warp * KEY_BLOCK;
        uint32_t id = shuffle(ids, position / KEY_BLOCK % (PARTITION / KEY_BLOCK));
        if (step < tile.end_key) {
            copy_block<D>(tile, a, to, id, part, position);
            if constexpr (IN_8_BITS<C>) scales[part] = load_scale<D>(tile, a, id, part, position);
        }
        copies_commit();
    };
    begin_copy(first_step, 0, keys);
    begin_copy(first_step, 1, values + warp * KEY_BLOCK * D);
    uint32_t queries[D / 16][4];
    load_queries<D, C>(tile, a, 0, queries);
    Visible visible = visible_keys(tile, 0);
    float sums[N_COLUMNS / 8][4];
#pragma unroll
    for (int n = 0; n < N_COLUMNS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0;
    }
    float max[2] = {-INFINITY, -INFINITY}, divisor[2] = {0, 0};
    int slot = 0;
    for (int step = first_step; step < tile.end_key; step += STEP, slot = 1 - slot) {
        copies_wait<1>();
        sync_warp();
        float scores[4][4];
        score_32_keys<D>(queries, keys, scores);
        multiply(scores, scales_of<C>(scales[0]));
        sync_warp();
        begin_copy(step + STEP, 0, keys);
        float step_max[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int n = 0; n < 4; n++) {
            mask(visible, a, step + warp * KEY_BLOCK + 8 * n, scores[n]);
#pragma unroll
            for (int i = 0; i < 4; i++) step_max[i / 2] = fmaxf(step_max[i / 2], scores[n][i] * a.factor);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            step_max[half] = row_max(step_max[half]);
            if (lane % 4 == 0) maxima[warp * 16 + lane / 4 + 8 * half] = step_max[half];
        }
        sync_block();
        // All warps are done with the values of the step before.
        float value_scale = scales[1];
        begin_copy(step + STEP, 1, values + (1 - slot) * STEP * D + warp * KEY_BLOCK * D);
        float rescale[2], base[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float new_max = max[half];
#pragma unroll
            for (int w = 0; w < N_WARPS; w++) new_max = fmaxf(new_max, maxima[w * 16 + lane / 4 + 8 * half]);
            base[half] = or_zero(new_max);
            rescale[half] = exp2_approx(max[half] - base[half]);
            max[half] = new_max;
        }
        uint32_t first[4], second[4];
        float block_sums[2];
        probabilities_of(scores, a.factor, base, scales_of<C>(value_scale), first, second, block_sums);
        probabilities[2 * warp * 32 + lane] = {first[0], first[1], first[2], first[3]};
        probabilities[(2 * warp + 1) * 32 + lane] = {second[0], second[1], second[2], second[3]};
        if (lane % 4 == 0) {
            divisors[warp * 16 + lane / 4] = block_sums[0];
            divisors[warp * 16 + lane / 4 + 8] = block_sums[1];
        }
        copies_wait<2>();
        sync_block();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float* of_row = divisors + lane / 4 + 8 * half;
            float sum = of_row[0];
#pragma unroll
            for (int w = 1; w < N_WARPS; w++) sum += of_row[w * 16];
            divisor[half] = fmaf(divisor[half], rescale[half], sum);
        }
#pragma unroll
        for (int n = 0; n < N_COLUMNS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][i] *= rescale[i / 2];
        }
#pragma unroll
        for (int b = 0; b < STEP / 32; b++) {
            uint4 p = probabilities[2 * b * 32 + lane], q = probabilities[(2 * b + 1) * 32 + lane];
            uint32_t left[2][4] = {{p.x, p.y, p.z, p.w}, {q.x, q.y, q.z, q.w}};
            add_32_values<D>(left, values + (slot * STEP + b * 32) * D, warp * N_COLUMNS, sums);
        }
    }
    copies_wait<0>();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = lane / 4 + 8 * half;
        if (row >= tile.n_rows) continue;
#pragma unroll
        for (int n = 0; n < N_COLUMNS / 8; n++) {
            int column = warp * N_COLUMNS + column_of_pair<C>(n);
            Two pair = sums_of_pair<C>(sums, n, half);
            if (tile.slot == NO_SLOT) {
                write_out(tile, a, row, D, column, pair.low, pair.high, divisor[half]);
            } else {
                *reinterpret_cast<Two*>(a.sums + slot_of(tile, row) * D + column) = pair;
            }
        }
        if (tile.slot != NO_SLOT && warp == 0 && lane % 4 == 0) {
            *reinterpret_cast<Two*>(a.stats + slot_of(tile, row) * 2) = {max[half], divisor[half]};
        }
    }
}

// Shared memory: the keys and the values of a step, what earlier partitions gave, and in 8 bits the codes of a block for each warp and the
// scales of the keys and the values of a step. Codes are widened once, by the warp that copied them.
template <int D, typename C>
DEVICE void attend_many(const Arguments& a, const uint32_t* tiles, uint8_t* shared) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bf16* keys = reinterpret_cast<bf16*>(shared);
    bf16* values = keys + STEP * D;
    // What earlier partitions gave, each thread's own: [D / 8, 4, threads].
    float* totals = reinterpret_cast<float*>(values + STEP * D) + threadIdx.x;
    float* scales = reinterpret_cast<float*>(values + STEP * D) + D / 8 * 4 * N_WARPS * 32;
    C* codes = reinterpret_cast<C*>(scales + 2 * STEP) + warp * KEY_BLOCK * D;

    Tile tile = read_tile<D>(tiles, a);
    int position = tile.first_key / STEP * STEP + warp * KEY_BLOCK;
    uint32_t id = block_id(tile, a, position), next_id = block_id(tile, a, position + STEP);
    auto begin_copy = [&](int part, int position) {
        if constexpr (IN_8_BITS<C>) {
            copy_block<D>(tile, a, codes, id, part, position);
            copy_scales<D>(tile, a, scales + part * STEP + warp * KEY_BLOCK, id, part, position);
        } else {
            copy_block<D>(tile, a, (part == 0 ? keys : values) + warp * KEY_BLOCK * D, id, part, position);
        }
    };
    // Waits until all warps have their part of the operands there.
    auto end_copy = [&](int part, int position) {
        copies_wait<0>();
        if constexpr (IN_8_BITS<C>) {
            sync_warp();
            widen_block<D>(codes, (part == 0 ? keys : values) + warp * KEY_BLOCK * D);
            if (!is_seen(tile, position + lane)) scales[part * STEP + warp * KEY_BLOCK + lane] = 0;
        }
        sync_block();
    };
    begin_copy(0, position);
    copies_commit();
    uint32_t queries[D / 16][4];
    load_queries<D, C>(tile, a, 16 * warp, queries);
    Visible visible = visible_keys(tile, 16 * warp);
    float sums[D / 8][4];
    float max[2] = {-INFINITY, -INFINITY}, divisor[2] = {0, 0}, total_max[2] = {-INFINITY, -INFINITY}, total_divisor[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0;
    }
    bool has_totals = false;
    // Positions that all tokens see: no mask is needed there.
    int all_begin = a.window > 0 ? tile.first_position + tile.n_tokens - a.window : 0, all_end = tile.first_position + 1;
    for (int step = tile.first_key / STEP * STEP; step < tile.end_key; step += STEP) {
        end_copy(0, step + warp * KEY_BLOCK);
        // The keys are there, and all warps are done with the values of the step before.
        begin_copy(1, step + warp * KEY_BLOCK);
        copies_commit();
        float scores[STEP / 32][4][4];
#pragma unroll
        for (int b = 0; b < STEP / 32; b++) {
            score_32_keys<D>(queries, keys + b * 32 * D, scores[b]);
            multiply(scores[b], scales_of<C>(scales + b * 32));
        }
        end_copy(1, step + warp * KEY_BLOCK);
        id = next_id;
        if (step + STEP < tile.end_key) begin_copy(0, step + STEP + warp * KEY_BLOCK);
        copies_commit();
        next_id = block_id(tile, a, step + 2 * STEP + warp * KEY_BLOCK);
        if (step < all_begin || step + STEP > all_end) {
#pragma unroll
            for (int n = 0; n < STEP / 8; n++) mask(visible, a, step + 8 * n, scores[n / 4][n % 4]);
        }
        float rescale[2], base[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float new_max = -INFINITY;
#pragma unroll
            for (int n = 0; n < STEP / 8; n++) {
                new_max = fmaxf(new_max, scores[n / 4][n % 4][2 * half] * a.factor);
                new_max = fmaxf(new_max, scores[n / 4][n % 4][2 * half + 1] * a.factor);
            }
            new_max = fmaxf(max[half], row_max(new_max));
            base[half] = or_zero(new_max);
            rescale[half] = exp2_approx(max[half] - base[half]);
            max[half] = new_max;
        }
        uint32_t left[STEP / 16][4];
        float sum[2] = {0, 0};
#pragma unroll
        for (int b = 0; b < STEP / 32; b++) {
            float block_sums[2];
            probabilities_of(scores[b], a.factor, base, scales_of<C>(scales + STEP + b * 32), left[2 * b], left[2 * b + 1], block_sums);
#pragma unroll
            for (int half = 0; half < 2; half++) sum[half] = b == 0 ? block_sums[half] : sum[half] + block_sums[half];
        }
#pragma unroll
        for (int half = 0; half < 2; half++) divisor[half] = fmaf(divisor[half], rescale[half], sum[half]);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][i] *= rescale[i / 2];
        }
#pragma unroll
        for (int k = 0; k < STEP / 16; k++) {
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) add_16_values<D>(left[k], values + k * 16 * D, 8 * n, sums[n], sums[n + 1]);
        }
        bool is_last = step + STEP >= tile.end_key;
        if (tile.slot != NO_SLOT || (is_last && !has_totals) || (!is_last && (step + STEP) % PARTITION != 0)) continue;
        // The end of one partition of several: it joins those before it.
        Merge merge[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            merge[half] = merge_partition(total_max[half], total_divisor[half], max[half], divisor[half]);
            max[half] = -INFINITY, divisor[half] = 0;
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float* total = totals + (n * 4 + i) * N_WARPS * 32;
                float sum_so_far = merged(merge[i / 2], has_totals ? *total : 0.0f, sums[n][i]);
                *total = sum_so_far;
                // Those of the last partition stay here, to be written.
                sums[n][i] = is_last ? sum_so_far : 0.0f;
            }
        }
        has_totals = true;
    }
    // Read again, so that what only this part takes does not stand in registers.
    tile = read_tile<D>(tiles, a);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = 16 * warp + lane / 4 + 8 * half;
        if (row >= tile.n_rows) continue;
        float by = has_totals ? total_divisor[half] : divisor[half];
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            int column = column_of_pair<C>(n);
            Two pair = sums_of_pair<C>(sums, n, half);
            if (tile.slot == NO_SLOT) {
                write_out(tile, a, row, D, column, pair.low, pair.high, by);
            } else {
                *reinterpret_cast<Two*>(a.sums + slot_of(tile, row) * D + column) = pair;
            }
        }
        if (tile.slot != NO_SLOT && lane % 4 == 0) {
            *reinterpret_cast<Two*>(a.stats + slot_of(tile, row) * 2) = {max[half], divisor[half]};
        }
    }
}

// Grid [tiles, n_kv_heads], 128 threads.
#define TILES(name, attend, D, C)                                                                                                  \
    KERNEL_BOUNDS(name, N_WARPS * 32, 2)                                                                                           \
    (const bf16* qkv, const uint8_t* blocks, const uint32_t* tables, const uint32_t* tiles, bf16* out, float* sums, float* stats,  \
     int n_heads, int n_kv_heads, int table_stride, int window, float factor) {                                                    \
        begin();                                                                                                                   \
        DYNAMIC_SHARED(shared);                                                                                                    \
        attend<D, C>({qkv, blocks, tables, out, sums, stats, n_heads, n_kv_heads, table_stride, window, factor}, tiles, shared);   \
    }                                                                                                                              \
    EXPORT(name)
TILES(attention_paged_few_64, attend_few, 64, bf16)
TILES(attention_paged_few_128, attend_few, 128, bf16)
TILES(attention_paged_many_64, attend_many, 64, bf16)
TILES(attention_paged_many_128, attend_many, 128, bf16)
TILES(attention_paged_few_int8_64, attend_few, 64, int8_t)
TILES(attention_paged_few_int8_128, attend_few, 128, int8_t)
TILES(attention_paged_many_int8_64, attend_many, 64, int8_t)
TILES(attention_paged_many_int8_128, attend_many, 128, int8_t)

// Sums up the partitions of tiles, in ascending order. A tile is {first_row, n_tokens, first slot, n_partitions}, with slots
// [n_partitions, n_kv_heads, n_tokens * group_len]. Grid [tiles, n_kv_heads], 128 threads.
KERNEL(attention_paged_merge)(const uint32_t* tiles, const float* sums, const float* stats, bf16* out, int n_heads, int n_kv_heads,
                              int head_dim) {
    begin();
    uint4 tile = reinterpret_cast<const uint4*>(tiles)[blockIdx.x];
    int group_len = n_heads / n_kv_heads, kv_head = blockIdx.y;
    int n_rows = tile.y * group_len, n_partitions = tile.w;
    int packs_per_row = head_dim / 4;
    for (int i = threadIdx.x; i < n_rows * packs_per_row; i += blockDim.x) {
        int row = i / packs_per_row, column = i % packs_per_row * 4;
        float max = -INFINITY, divisor = 0, total[4] = {0, 0, 0, 0};
#pragma unroll 4
        for (int partition = 0; partition < n_partitions; partition++) {
            int64_t slot = tile.z + (static_cast<int64_t>(partition) * n_kv_heads + kv_head) * n_rows + row;
            Two stat = *reinterpret_cast<const Two*>(stats + slot * 2);
            Pack<float> added = load_pack(sums + slot * head_dim + column);
            Merge merge = merge_partition(max, divisor, stat.low, stat.high);
#pragma unroll
            for (int j = 0; j < 4; j++) total[j] = merged(merge, total[j], added.values[j]);
        }
        int64_t head = (tile.x + row / group_len) * static_cast<int64_t>(n_heads) + kv_head * group_len + row % group_len;
        uint32_t* to = reinterpret_cast<uint32_t*>(out + head * head_dim + column);
        to[0] = pack_bf16(total[0] / divisor, total[1] / divisor);
        to[1] = pack_bf16(total[2] / divisor, total[3] / divisor);
    }
}
EXPORT(attention_paged_merge)

// Of any head and number type: a warp for each row and head, a lane for each key of a block. 128 threads; shared memory holds for
// each warp its query and its sums, 2 head_dim numbers.
template <typename T, typename C>
DEVICE void attend_plain(const T* qkv, const uint8_t* blocks, const uint32_t* tables, const uint32_t* row_sequences,
                         const uint32_t* row_positions, T* out, int n_rows, int n_heads, int n_kv_heads, int head_dim,
                         int table_stride, int window, float scale, float* shared) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t row_head = static_cast<int64_t>(blockIdx.x) * N_WARPS + warp;
    int64_t row = row_head / n_heads;
    // The branch is the same for a whole warp, and warps do not wait for each other.
    if (row >= n_rows || row_sequences[row] == NO_SLOT) return;
    int head = row_head % n_heads, kv_head = head / (n_heads / n_kv_heads);
    float* query = shared + warp * 2 * head_dim;
    float* sums = query + head_dim;
    for (int i = lane; i < head_dim; i += 32) {
        query[i] = to_f32(qkv[(row * (n_heads + 2 * n_kv_heads) + head) * head_dim + i]);
        sums[i] = 0;
    }
    sync_warp();
    int position = row_positions[row];
    int first_key = window > 0 && position + 1 > window ? position + 1 - window : 0;
    const uint32_t* table = tables + static_cast<int64_t>(row_sequences[row]) * table_stride;
    float max = -INFINITY, divisor = 0;
    for (int block = first_key / KEY_BLOCK; block <= position / KEY_BLOCK; block++) {
        const uint8_t* key_bytes = blocks + (static_cast<int64_t>(table[block]) * 2 * n_kv_heads + kv_head) * head_bytes<C>(head_dim);
        const uint8_t* value_bytes = key_bytes + n_kv_heads * head_bytes<C>(head_dim);
        const C* keys = reinterpret_cast<const C*>(key_bytes);
        const C* values = reinterpret_cast<const C*>(value_bytes);
        int begin = first_key - block * KEY_BLOCK, end = position + 1 - block * KEY_BLOCK;
        if (begin < 0) begin = 0;
        if (end > KEY_BLOCK) end = KEY_BLOCK;
        bool seen = lane >= begin && lane < end;
        float score = 0;
        for (int i = 0; seen && i < head_dim; i++) score = fmaf(query[i], number_of(keys[lane * head_dim + i]), score);
        float value_scale = 1;
        if constexpr (IN_8_BITS<C>) {
            // Scales are behind the codes.
            score *= seen ? reinterpret_cast<const float*>(keys + KEY_BLOCK * head_dim)[lane] : 0.0f;
            value_scale = seen ? reinterpret_cast<const float*>(values + KEY_BLOCK * head_dim)[lane] : 0.0f;
        }
        score = seen ? score * scale : -INFINITY;
        float new_max = fmaxf(max, warp_max(score));
        float base = or_zero(new_max);
        float probability = seen ? expf(score - base) : 0.0f;
        float rescale = expf(max - base);
        divisor = fmaf(divisor, rescale, warp_sum(probability));
        max = new_max;
        if constexpr (IN_8_BITS<C>) probability *= value_scale;
        probability = to_f32(from_f32<T>(probability));
        for (int first = 0; first < head_dim; first += 32) {
            int i = first + lane < head_dim ? first + lane : head_dim - 1;
            float sum = sums[i] * rescale;
            for (int key = begin; key < end; key++) sum = fmaf(shuffle(probability, key), number_of(values[key * head_dim + i]), sum);
            sync_warp();
            if (first + lane < head_dim) sums[i] = sum;
        }
        sync_warp();
    }
    for (int i = lane; i < head_dim; i += 32) out[row_head * head_dim + i] = from_f32<T>(sums[i] / divisor);
}

#define PLAIN(name, T, C)                                                                                                         \
    KERNEL(name)(const T* qkv, const uint8_t* blocks, const uint32_t* tables, const uint32_t* row_sequences,                      \
                 const uint32_t* row_positions, T* out, int n_rows, int n_heads, int n_kv_heads, int head_dim, int table_stride,  \
                 int window, float scale) {                                                                                       \
        DYNAMIC_SHARED(shared);                                                                                                   \
        attend_plain<T, C>(qkv, blocks, tables, row_sequences, row_positions, out, n_rows, n_heads, n_kv_heads, head_dim,         \
                           table_stride, window, scale, reinterpret_cast<float*>(shared));                                        \
    }                                                                                                                             \
    EXPORT(name)
PLAIN(attention_paged_plain_f32, float, float)
PLAIN(attention_paged_plain_bf16, bf16, bf16)
PLAIN(attention_paged_plain_int8_f32, float, int8_t)
PLAIN(attention_paged_plain_int8_bf16, bf16, int8_t)
