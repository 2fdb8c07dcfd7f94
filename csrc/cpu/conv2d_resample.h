// Convolution with FIR resampling, made of torch's convolution and upfirdn2d. See fastinv/ops/conv2d_resample.py.
#pragma once

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/stable.h"

namespace fastinv {

struct Fir {
  bool filtered;  // false: it only pads or crops
  int64_t up, down;
  std::array<int64_t, 4> padding;  // x before, after, y before, after
  double gain;
};

// FIR, convolution, FIRs: the cheapest order; the zero-stuffed tensor is never built. The twin of `plan` in Python.
struct Resampling {
  std::optional<Fir> before;
  bool transposed;
  int64_t stride, crop_y, crop_x;
  std::vector<Fir> after;
  int64_t groups;
  bool flip_weight, flip_filter;
  std::optional<Tensor> filter;
};

Resampling plan_resampling(const std::optional<Tensor>& filter, int64_t kernel_y, int64_t kernel_x, int64_t up,
                           int64_t down, const std::vector<int64_t>& padding, int64_t groups, bool flip_weight,
                           bool flip_filter);

// x [N, C, H, W], w [out, C / groups, height, width] of any floating dtype; the result is dense in the layout asked
// for.
Tensor resample(const Resampling& plan, const Tensor& x, const Tensor& w, bool channels_last);

// Gradients with respect to x (in the layout asked for) and w (in the dtype of x); only what is needed. `x` is what
// went into `resample`; if the gradient of w is not needed, only its shape matters.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> resample_backward(const Resampling& plan, const Tensor& dy,
                                                                           const Tensor& x, const Tensor& w,
                                                                           bool need_x, bool need_w,
                                                                           bool channels_last);

}  // namespace fastinv
