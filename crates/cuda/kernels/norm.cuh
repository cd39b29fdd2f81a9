// What a root-mean-square norm multiplies with.
#pragma once

#include "primitives.cuh"

// 1 / sqrt(mean(x^2) + eps)
DEVICE float inverse_rms_of(float sum_of_squares, int width, float eps) {
    return 1.0f / sqrtf(sum_of_squares / float(width) + eps);
}
// A weight of 0 counts as the smallest: the output is nothing to a product and still tells what it was before the weight, so that
// the gradient needs the output alone.
constexpr float SMALLEST_WEIGHT = 0x1p-100f;
DEVICE float counted_weight(float weight) {
    return fabsf(weight) < SMALLEST_WEIGHT ? copysignf(SMALLEST_WEIGHT, weight) : weight;
}
