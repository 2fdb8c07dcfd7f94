// What modulated_conv2d and styled_conv share: the style, the demodulation, and the pass after the convolution.
#pragma once

#include "../common/stable.h"
#include "styled_conv.h"

namespace fastinv {

inline ScalarType compute_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Shape shape_of(const Tensor& x, bool channels_last);

// x * scale[n, c]. x is dense in the layout given, scale [N, C] dense in the compute dtype. In place if `out` is x.
void scale_channels(const Tensor& x, const Tensor& scale, const Tensor& out, bool channels_last);

// Sums over the pixels of x * other, [N, C] doubles; if `out` is given, also out = x * scale.
std::vector<double> dot_channels(const Tensor& x, const Tensor& other, const Tensor* scale, const Tensor* out,
                                 bool channels_last);

// Sum over the taps of weight^2, [out, in] in the compute dtype.
Tensor weight_sum_squares(const Tensor& weight, ScalarType compute);

// 1 / sqrt(styles^2 sumsq^T + 1e-8), [N, out].
Tensor demodulation(const Tensor& styles, const Tensor& sumsq);

// y = clamp(gain * act(u * scale + noise + bias)), in place if y is u.
void run_epilogue(const Epilogue& p, const Tensor& u, const Tensor& y);

// A small operand: dense, in the compute dtype, of the shape it must have.
Tensor small_operand(const char* op, const char* name, const Tensor& x, const std::vector<int64_t>& sizes,
                     ScalarType compute);

}  // namespace fastinv
