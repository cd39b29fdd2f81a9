// A fake cuBLASLt, libcublasLt.so.13: D = alpha op(A) op(B) + beta C, column by column, on the memory of driver.cpp.
//
// Sums are in f32 with k ascending. What cuBLASLt refuses of numbers' types and shapes is refused here too.
#include <string.h>

#include <vector>

#include "runtime.h"

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum NumberType { F32 = 0, BF16 = 14 };

struct MatmulDescription {
    int compute_type, scale_type;
    int transposes_a = 0, transposes_b = 0;
};

struct Layout {
    int type;
    uint64_t n_rows, n_columns;
    int64_t leading;
    int32_t n_batches = 1;
    int64_t batch_stride = 0;

    int64_t offset(int32_t batch, uint64_t column, uint64_t row) const {
        return batch * batch_stride + static_cast<int64_t>(column) * leading + static_cast<int64_t>(row);
    }
    size_t bytes() const { return type == F32 ? 4 : 2; }
    // From the first value to behind the last.
    size_t span() const {
        return static_cast<size_t>(offset(n_batches - 1, n_columns - 1, n_rows)) * bytes();
    }
};

struct Preference {
    uint64_t max_workspace_bytes = 0;
};

struct HeuristicResult {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int state;
    float n_waves;
    int reserved[4];
};

float value_at(const Layout& layout, const void* values, int64_t i) {
    return layout.type == F32 ? static_cast<const float*>(values)[i] : to_f32(static_cast<const bf16*>(values)[i]);
}

// op(matrix) as f32 of batch `batch`, column after column without gaps.
std::vector<float> widened(const Layout& layout, const void* values, int32_t batch, bool is_transposed) {
    std::vector<float> out(layout.n_rows * layout.n_columns);
    for (uint64_t column = 0; column < layout.n_columns; column++)
        for (uint64_t row = 0; row < layout.n_rows; row++)
            out[is_transposed ? row * layout.n_columns + column : column * layout.n_rows + row] =
                value_at(layout, values, layout.offset(batch, column, row));
    return out;
}

struct Product {
    uint64_t m, n, k;
    float alpha, beta;
    Layout a, b, c, d;
    bool transposes_a, transposes_b;
    const void *a_values, *b_values, *c_values;
    void* d_values;

    void run() const {
        std::vector<float> sums(m);
        for (int32_t batch = 0; batch < d.n_batches; batch++) {
            const std::vector<float> left = widened(a, a_values, batch, transposes_a);
            const std::vector<float> right = widened(b, b_values, batch, transposes_b);
            for (uint64_t column = 0; column < n; column++) {
                sums.assign(m, 0.0f);
                for (uint64_t i = 0; i < k; i++) {
                    const float factor = right[column * k + i];
                    const float* from = &left[i * m];
                    for (uint64_t row = 0; row < m; row++) sums[row] += from[row] * factor;
                }
                for (uint64_t row = 0; row < m; row++) store(batch, column, row, sums[row]);
            }
        }
    }

    void store(int32_t batch, uint64_t column, uint64_t row, float sum) const {
        float result = alpha * sum;
        if (beta != 0) result += beta * value_at(c, c_values, c.offset(batch, column, row));
        const int64_t at = d.offset(batch, column, row);
        if (d.type == F32)
            static_cast<float*>(d_values)[at] = result;
        else
            static_cast<bf16*>(d_values)[at] = from_f32<bf16>(result);
    }
};

bool is_layout(const Layout& layout) {
    const bool is_empty = layout.n_rows == 0 || layout.n_columns == 0 || layout.n_batches <= 0;
    return !is_empty && layout.leading >= static_cast<int64_t>(layout.n_rows);
}

// Fills in the shape of the product.
Status check(const MatmulDescription& description, Product& product) {
    const auto &a = product.a, &b = product.b, &c = product.c, &d = product.d;
    if (!is_layout(a) || !is_layout(b) || !is_layout(c) || !is_layout(d)) return INVALID_VALUE;
    product.transposes_a = description.transposes_a != 0;
    product.transposes_b = description.transposes_b != 0;
    product.m = product.transposes_a ? a.n_columns : a.n_rows;
    product.k = product.transposes_a ? a.n_rows : a.n_columns;
    product.n = product.transposes_b ? b.n_rows : b.n_columns;
    const uint64_t k_of_b = product.transposes_b ? b.n_columns : b.n_rows;
    if (k_of_b != product.k || d.n_rows != product.m || d.n_columns != product.n) return INVALID_VALUE;
    if (c.n_rows != d.n_rows || c.n_columns != d.n_columns) return INVALID_VALUE;
    if (a.n_batches != d.n_batches || b.n_batches != d.n_batches || c.n_batches != d.n_batches) return INVALID_VALUE;
    if (a.type != b.type || c.type != d.type || (a.type == F32 && d.type != F32)) return NOT_SUPPORTED;
    return SUCCESS;
}

int set(void* to, size_t n_bytes, const void* value, size_t value_bytes) {
    if (value == nullptr || value_bytes != n_bytes) return INVALID_VALUE;
    memcpy(to, value, n_bytes);
    return SUCCESS;
}

}  // namespace

PUBLIC int cublasLtCreate(void** handle) {
    static int the;
    *handle = &the;
    return SUCCESS;
}
PUBLIC int cublasLtDestroy(void*) { return SUCCESS; }
PUBLIC size_t cublasLtGetVersion() { return 130000; }

PUBLIC int cublasLtMatmulDescCreate(MatmulDescription** out, int compute_type, int scale_type) {
    if (scale_type != F32) return NOT_SUPPORTED;
    *out = new MatmulDescription{compute_type, scale_type};
    return SUCCESS;
}
PUBLIC int cublasLtMatmulDescDestroy(MatmulDescription* description) {
    delete description;
    return SUCCESS;
}
PUBLIC int cublasLtMatmulDescSetAttribute(MatmulDescription* description, int which, const void* value, size_t n_bytes) {
    switch (which) {
        case 3: return set(&description->transposes_a, 4, value, n_bytes);
        case 4: return set(&description->transposes_b, 4, value, n_bytes);
        // Alpha and beta are on the host, C is not transposed, and no epilogue is more than the default.
        case 2: case 5: case 7: {
            int chosen = 0;
            if (set(&chosen, 4, value, n_bytes) != SUCCESS) return INVALID_VALUE;
            return chosen == (which == 7 ? 1 : 0) ? SUCCESS : NOT_SUPPORTED;
        }
        default: return NOT_SUPPORTED;
    }
}

PUBLIC int cublasLtMatrixLayoutCreate(Layout** out, int type, uint64_t n_rows, uint64_t n_columns, int64_t leading) {
    if (type != F32 && type != BF16) return NOT_SUPPORTED;
    *out = new Layout{type, n_rows, n_columns, leading};
    return SUCCESS;
}
PUBLIC int cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return SUCCESS;
}
PUBLIC int cublasLtMatrixLayoutSetAttribute(Layout* layout, int which, const void* value, size_t n_bytes) {
    switch (which) {
        case 0: return set(&layout->type, 4, value, n_bytes);
        case 1: {
            int order = 0;
            return set(&order, 4, value, n_bytes) == SUCCESS && order == 0 ? SUCCESS : NOT_SUPPORTED;
        }
        case 2: return set(&layout->n_rows, 8, value, n_bytes);
        case 3: return set(&layout->n_columns, 8, value, n_bytes);
        case 4: return set(&layout->leading, 8, value, n_bytes);
        case 5: return set(&layout->n_batches, 4, value, n_bytes);
        case 6: return set(&layout->batch_stride, 8, value, n_bytes);
        default: return NOT_SUPPORTED;
    }
}

PUBLIC int cublasLtMatmulPreferenceCreate(Preference** out) {
    *out = new Preference;
    return SUCCESS;
}
PUBLIC int cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return SUCCESS;
}
PUBLIC int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int which, const void* value, size_t n_bytes) {
    return which == 1 ? set(&preference->max_workspace_bytes, 8, value, n_bytes) : SUCCESS;
}

PUBLIC int cublasLtMatmulAlgoGetHeuristic(void*, const MatmulDescription* description, const Layout* a, const Layout* b,
                                          const Layout* c, const Layout* d, const Preference*, int n_wanted,
                                          HeuristicResult* results, int* n_found) {
    *n_found = 0;
    if (n_wanted < 1) return INVALID_VALUE;
    Product product{0, 0, 0, 1, 0, *a, *b, *c, *d, false, false, nullptr, nullptr, nullptr, nullptr};
    const Status status = check(*description, product);
    if (status != SUCCESS) return status;
    results[0] = {{1}, 0, SUCCESS, 1.0f, {}};
    *n_found = 1;
    return SUCCESS;
}

PUBLIC int cublasLtMatmul(void*, const MatmulDescription* description, const void* alpha, const void* a, const Layout* a_layout,
                          const void* b, const Layout* b_layout, const void* beta, const void* c, const Layout* c_layout, void* d,
                          const Layout* d_layout, const void*, void*, size_t, void* stream) {
    Product product{0,     0,     0, *static_cast<const float*>(alpha), *static_cast<const float*>(beta), *a_layout, *b_layout,
                    *c_layout, *d_layout, false, false, a, b, c, d};
    const Status status = check(*description, product);
    if (status != SUCCESS) return status;
    const int result = emulator::in_stream(stream, [product] {
        const auto require = [](const Layout& layout, const void* values, const char* name) {
            if (!emulator::is_device_memory(values, layout.span()))
                emulator::fail("cublasLtMatmul: matrix " + std::string(name) + " of " + std::to_string(layout.span()) +
                               " bytes begins " + emulator::describe_address(values));
        };
        require(product.a, product.a_values, "A");
        require(product.b, product.b_values, "B");
        if (product.beta != 0) require(product.c, product.c_values, "C");
        require(product.d, product.d_values, "D");
        product.run();
    });
    return result == 0 ? SUCCESS : EXECUTION_FAILED;
}
