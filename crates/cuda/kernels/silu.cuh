// The activation.
#pragma once

#include "primitives.cuh"

// 1 / (1 + exp(-x))
DEVICE float sigmoid(float x) { return reciprocal_approx(1.0f + exp2_approx(x * -LOG2_E)); }
// x / (1 + exp(-x))
DEVICE float silu(float x) { return x * sigmoid(x); }
