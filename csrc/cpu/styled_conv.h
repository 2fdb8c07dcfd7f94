// The fused passes around the convolution of a synthesis layer. All tensors are dense, NHWC or NCHW; T is the storage
// type and "compute" the type of arithmetic (float for bfloat16). Work is cut into units of (sample, block of pixels)
// whose bounds depend on the shape alone, so results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/isa.h"

namespace fastinv {

constexpr int64_t kBlock = 256;  // pixels per unit
constexpr int64_t kRun = 32;     // pixels that are summed in the compute type before going to a double

struct Shape {
  int64_t n, c, pixels;
  bool channels_last;
  int64_t blocks() const { return (pixels + kBlock - 1) / kBlock; }
};

// Codes of ACTIVATIONS in fastinv/ops/bias_act.py.
enum class Act : int64_t { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

// v = u * scale[n, c] + noise[n, pixel] + bias[c];  y = clamp(gain * act(v))
struct Epilogue {
  Shape shape;
  const void* scale;     // compute [N, C]
  const void* bias;      // compute [C], zeros for none
  const void* noise;     // compute [N or 1, pixels], times its strength; null for none
  int64_t noise_stride;  // 0 for one map for all samples
  Act act;
  double alpha, gain, clamp;  // clamp < 0: none
};

// One pass over dy and what was saved: y (linear, relu, lrelu, whose v can be told from it) or else u. Writes the
// gradient of u, and per unit the sums over its pixels that the gradients of scale and bias are made of.
struct EpilogueBackward {
  Epilogue forward;
  bool from_output;
  double* sums;        // [N, blocks, 2, C]: sum of dv * u * scale (from_output) or dv * u, and sum of dv
  double* pixel_sums;  // [N, pixels]: sum of dv over channels, or null
  void* scratch;       // compute [2 * C], one per thread
};

// out = x * scale and sums[n, block, c] = sum of x * other; either may be left out (null).
struct ScaleDot {
  Shape shape;
  const void* scale;  // compute [N, C]
  const void* other;
  double* sums;
  void* scratch;  // compute [C]
};

// clang-format off
FASTINV_FOR_EACH_ISA(
template <class T> void epilogue(const Epilogue& p, const T* u, T* y, int64_t begin, int64_t end);
template <class T> void epilogue_backward(const EpilogueBackward& p, const T* dy, const T* saved, T* du, int64_t begin, int64_t end);
template <class T> void scale_dot(const ScaleDot& p, const T* x, T* out, int64_t begin, int64_t end);
template <class T> void sum_squares(const T* weight, compute_t<T>* out, int64_t rows, int64_t columns, int64_t taps, int64_t column_stride, int64_t tap_stride);
template <class C> void demodulate(const C* styles, const C* sumsq, C* d, int64_t n, int64_t in, int64_t out, int64_t begin, int64_t end);
)
// clang-format on

}  // namespace fastinv
