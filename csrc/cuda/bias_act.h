// The bias_act launcher's interface. See fastinv/ops/bias_act.py for the definition of the op.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastinv::cuda {

// What is computed, with z = x + b and g(z) = gain * act(z) inside of the clamp, constant beyond it:
// forward g(z), first dy * g'(z), second grad * dy * g''(z).
enum class BiasActOrder { forward, first, second };

// Tensors are dense, of one dtype and one shape: [outer, channels, inner] in the order of memory.
struct BiasActParams {
  Dtype dtype;
  BiasActOrder order;
  int act;  // 0 linear, 1 relu, 2 lrelu, 3 tanh, 4 sigmoid, 5 elu, 6 selu, 7 softplus, 8 swish
  double alpha, gain;
  double clamp;      // below 0: none
  const void* x;     // order first of linear, relu and lrelu: the output of forward instead
  const void* dy;    // orders first and second
  const void* grad;  // order second, which linear, relu and lrelu do not have
  const void* b;     // [channels], or null for none; not used with an output of forward
  void* out;
  void* db;                        // orders first and second: sums of out, [channels]; null for none
  void* partials;                  // with db: bias_act_workspace(p) bytes
  int64_t outer, channels, inner;  // channels at most walk_most_channels where inner is 1
};

int64_t bias_act_workspace(const BiasActParams& p);

// Enqueues the kernels on the stream (a cudaStream_t). Returns null, or what CUDA said went wrong.
const char* bias_act(const BiasActParams& p, void* stream);

}  // namespace fastinv::cuda
