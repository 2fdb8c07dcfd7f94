// The upfirdn2d launcher's interface. See fastinv/ops/upfirdn2d.py for the definition of the op.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastinv::cuda {

struct Upfirdn2dAxis {
  int64_t size, out;       // samples, outputs
  int64_t up, down;        // at least 1
  int64_t padding_before;  // of the up-sampled samples; negative crops
  int64_t taps;
};

// Dense images [images, y.size, x.size, channels] -> [images, y.out, x.out, channels]; a contiguous NCHW tensor is N*C
// images of one channel.
struct Upfirdn2dParams {
  const void* input;
  void* output;
  void* between;        // scratch of upfirdn2d_between_bytes(p) bytes, or null where that is 0
  const float* filter;  // on the device: [x.taps] for both axes (x.taps == y.taps), or [y.taps, x.taps]
  Dtype dtype;
  int64_t images, channels;
  Upfirdn2dAxis x, y;
  bool one_dimensional;
  bool flip_filter;
  double gain;
};

// How a call is computed; depends on shapes, dtype and the alignment of the pointers only.
enum class Upfirdn2dKernel {
  channels,    // at most 4 taps: marches down rows with vectors of channels
  planes,      // at most 4 taps: marches down rows of one channel, several pixels to a thread
  pixels,      // at most 12 taps: marches down rows with one channel to a thread
  direct,      // one output to a thread, all its taps
  two_passes,  // direct along x, then direct along y
};
Upfirdn2dKernel upfirdn2d_kernel(const Upfirdn2dParams& p);

int64_t upfirdn2d_between_bytes(const Upfirdn2dParams& p);

// Enqueues the kernels on the stream (a cudaStream_t). Returns null, or what CUDA said went wrong.
const char* upfirdn2d(const Upfirdn2dParams& p, void* stream);

}  // namespace fastinv::cuda
