// Interface of the launchers of modulated_conv2d_scale, out = x * scale[n, c], and modulated_conv2d_dot,
// out[n, c] = sum over the pixels of a * b: the passes of a modulated convolution, each the other's derivative.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastinv::cuda {

// Tensors are dense: [samples, channels, pixels], or with channels_last [samples, pixels, channels] (and then of at
// most walk_most_channels channels).
struct ChannelScaleParams {
  Dtype dtype;  // of x and out
  const void* x;
  const void* scale;  // [samples, channels], float (double for float64)
  void* out;
  int64_t samples, channels, pixels;
  bool channels_last;
};

struct ChannelDotParams {
  Dtype dtype;  // of a and b
  const void* a;
  const void* b;
  void* out;       // [samples, channels], float (double for float64)
  void* partials;  // channel_dot_workspace(p) bytes
  int64_t samples, channels, pixels;
  bool channels_last;
};

int64_t channel_dot_workspace(const ChannelDotParams& p);

// Enqueue the kernels on the stream (a cudaStream_t). Return null, or what CUDA said went wrong.
const char* channel_scale(const ChannelScaleParams& p, void* stream);
const char* channel_dot(const ChannelDotParams& p, void* stream);

}  // namespace fastinv::cuda
