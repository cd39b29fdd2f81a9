// The gated activation of the feed-forward part, and its gradient.
//
// gate_up and d_gate_up are [rows, 2, ffn], gate first; out and d_out [rows, ffn]. A thread has units: packs of 16 bytes where
// whole ones fill a row, else single numbers. The wrappers count units by the same rule.
#include "rows.cuh"
#include "silu.cuh"

// Units of a thread, all on their way at once.
constexpr int UNITS = 2;

// Where unit `i` of this thread stands: its row, and its first column.
struct Place {
    int64_t row;
    int column;
    bool is_there;
};
DEVICE Place place(int i, int n_rows, unsigned units_per_row, int numbers_per_unit) {
    unsigned unit = (blockIdx.x * UNITS + i) * blockDim.x + threadIdx.x;
    unsigned row = unit / units_per_row;
    return {row, int(unit - row * units_per_row) * numbers_per_unit, row < unsigned(n_rows)};
}

// out = silu(gate) up, silu(x) = x / (1 + exp(-x)).
template <typename T>
DEVICE void swiglu(const T* gate_up, T* out, int n_rows, int ffn) {
    constexpr int NUMBERS = Wide<T>::N;
    if (ffn % NUMBERS == 0) {
        Wide<T> gates[UNITS], ups[UNITS];
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            Place at = place(i, n_rows, ffn / NUMBERS, NUMBERS);
            if (at.is_there) {
                gates[i] = load_wide(gate_up + at.row * 2 * ffn + at.column);
                ups[i] = load_wide(gate_up + (at.row * 2 + 1) * ffn + at.column);
            }
        }
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            Place at = place(i, n_rows, ffn / NUMBERS, NUMBERS);
#pragma unroll
            for (int j = 0; j < NUMBERS; j++) {
                gates[i].values[j] = silu(gates[i].values[j]) * ups[i].values[j];
            }
            if (at.is_there) store_wide(out + at.row * ffn + at.column, gates[i]);
        }
    } else {
        for (int i = 0; i < UNITS; i++) {
            Place at = place(i, n_rows, ffn, 1);
            if (at.is_there) {
                float gate = to_f32(gate_up[at.row * 2 * ffn + at.column]);
                float up = to_f32(gate_up[(at.row * 2 + 1) * ffn + at.column]);
                out[at.row * ffn + at.column] = from_f32<T>(silu(gate) * up);
            }
        }
    }
}

// With s = 1 / (1 + exp(-gate)): d_gate = d_out up s (1 + gate (1 - s)), d_up = d_out gate s.
struct SwigluGradients {
    float d_gate, d_up;
};
DEVICE SwigluGradients gradients(float gate, float up, float d_out) {
    float s = sigmoid(gate), silu = gate * s;
    return {d_out * up * (s + silu * (1.0f - s)), d_out * silu};
}

template <typename T>
DEVICE void swiglu_backward(const T* gate_up, const T* d_outs, T* d_gate_up, int n_rows, int ffn) {
    constexpr int NUMBERS = Wide<T>::N;
    if (ffn % NUMBERS == 0) {
        Wide<T> gates[UNITS], ups[UNITS], grads[UNITS];
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            Place at = place(i, n_rows, ffn / NUMBERS, NUMBERS);
            if (at.is_there) {
                gates[i] = load_wide(gate_up + at.row * 2 * ffn + at.column);
                ups[i] = load_wide(gate_up + (at.row * 2 + 1) * ffn + at.column);
                grads[i] = load_wide(d_outs + at.row * ffn + at.column);
            }
        }
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            Place at = place(i, n_rows, ffn / NUMBERS, NUMBERS);
            if (!at.is_there) continue;
#pragma unroll
            for (int j = 0; j < NUMBERS; j++) {
                SwigluGradients g = gradients(gates[i].values[j], ups[i].values[j], grads[i].values[j]);
                gates[i].values[j] = g.d_gate;
                ups[i].values[j] = g.d_up;
            }
            store_wide(d_gate_up + at.row * 2 * ffn + at.column, gates[i]);
            store_wide(d_gate_up + (at.row * 2 + 1) * ffn + at.column, ups[i]);
        }
    } else {
        for (int i = 0; i < UNITS; i++) {
            Place at = place(i, n_rows, ffn, 1);
            if (!at.is_there) continue;
            int64_t gate = at.row * 2 * ffn + at.column, up = gate + ffn, single = at.row * ffn + at.column;
            SwigluGradients g = gradients(to_f32(gate_up[gate]), to_f32(gate_up[up]), to_f32(d_outs[single]));
            d_gate_up[gate] = from_f32<T>(g.d_gate);
            d_gate_up[up] = from_f32<T>(g.d_up);
        }
    }
}

#define SWIGLU(suffix, T)                                                                                                       \
    KERNEL(swiglu_##suffix)(const T* gate_up, T* out, int n_rows, int ffn) { begin(); swiglu(gate_up, out, n_rows, ffn); }               \
    EXPORT(swiglu_##suffix)                                                                                                     \
    KERNEL(swiglu_backward_##suffix)(const T* gate_up, const T* d_out, T* d_gate_up, int n_rows, int ffn) {                     \
        begin();                                                                                                                \
        swiglu_backward(gate_up, d_out, d_gate_up, n_rows, ffn);                                                                \
    }                                                                                                                           \
    EXPORT(swiglu_backward_##suffix)
SWIGLU(f32, float)
SWIGLU(bf16, bf16)
