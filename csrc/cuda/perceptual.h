// Launchers of the LPIPS passes (fastinv/ops/perceptual.py has the formulas): plain pointers and numbers, no torch and
// no CUDA headers. Features are NHWC.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastinv::cuda {

constexpr int kPerceptualThreads = 128;  // of a block of the stage kernels
constexpr int kPerceptualMostChannels = 512;
constexpr int kPerceptualMostSide = 32768;  // of a picture
constexpr int kPerceptualMostPartials = 8;  // tensors that perceptual_sum takes
constexpr int kPerceptualLossScale = 20;    // log2 of the loss scale of a gradient of 1, float16 features only

// images [n, 3, image_height, image_width] <-> features [n, height, width, channels].
// Pairs (image_dtype, dtype): equal ones, and float32 images with 16-bit features.
struct PerceptualInputParams {
  void* images;            // read by the forward, written by the backward (then contiguous)
  void* features;          // written by the forward, read by the backward
  const void* grad_value;  // backward: [n], float or double (with double features)
  Dtype image_dtype, dtype;
  int64_t n;
  int image_height, image_width, height, width, channels;
  int64_t strides[4];  // of images, in elements
  double scale[3], offset[3];
};
const char* perceptual_input(const PerceptualInputParams& p, void* stream);
const char* perceptual_input_backward(const PerceptualInputParams& p, void* stream);

// C is float, or double with double features.
struct PerceptualStageParams {
  Dtype dtype;
  int64_t n;
  int channels, height, width;  // channels: see perceptual_channels_fit
  const void* u;                // forward: [n, height, width, channels]
  const void* bias;             // forward: [channels]
  const void* head;             // [channels] of C
  const void* target;           // [n, height, width, channels]; forward: null for none
  const void* target_inverse;   // [n, height, width] of C
  const void* pixel_weight;     // [n, height, width] of C, or null for 1
  void* h;                      // [n, height, width, channels], written by the forward, read by the backward
  void* pooled;                 // forward: [n, height / 2, width / 2, channels], or null for none
  void* inverse;                // [n, height, width] of C, likewise
  void* slope;                  // likewise
  void* partial;                // forward: [n, perceptual_blocks()] of C
  const void* grad_value;       // backward: [n] of C
  const void* grad_pooled;      // backward: as pooled, or null for none
  void* grad;                   // backward: [n, height, width, channels]
};
const char* perceptual_stage(const PerceptualStageParams& p, void* stream);
const char* perceptual_stage_backward(const PerceptualStageParams& p, void* stream);

// Channels that a thread takes at once, 16 bytes.
inline int perceptual_vector(Dtype dtype) { return dtype == Dtype::float64 ? 2 : dtype == Dtype::float32 ? 4 : 8; }
inline bool perceptual_channels_fit(Dtype dtype, int64_t channels) {
  return channels >= perceptual_vector(dtype) && channels <= kPerceptualMostChannels &&
         (channels & (channels - 1)) == 0;
}
// Threads of a warp that share a window of 2x2 pixels in the forward.
inline int perceptual_lanes(Dtype dtype, int channels) {
  const int vectors = channels / perceptual_vector(dtype);
  return vectors < 32 ? vectors : 32;
}
// Blocks of the forward for each sample, hence its partial sums. Depends on the shape and dtype only.
inline int perceptual_blocks_in_row(Dtype dtype, int channels, int width) {
  const int windows = kPerceptualThreads / perceptual_lanes(dtype, channels);
  return ((width + 1) / 2 + windows - 1) / windows;
}
inline int64_t perceptual_blocks(Dtype dtype, int channels, int height, int width) {
  return static_cast<int64_t>(perceptual_blocks_in_row(dtype, channels, width)) * ((height + 1) / 2);
}

// values[n] = sum of all columns of all partials [n, columns].
struct PerceptualSumParams {
  Dtype dtype;  // float32 or float64
  int64_t n;
  int count;
  const void* partials[kPerceptualMostPartials];
  int64_t columns[kPerceptualMostPartials];
  void* values;
};
const char* perceptual_sum(const PerceptualSumParams& p, void* stream);

}  // namespace fastinv::cuda
