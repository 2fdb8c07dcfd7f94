// The bias_act launcher's interface: plain pointers and numbers, no torch and no CUDA headers, so that g++ reads it
// too.
#pragma once

#include <cstdint>

namespace fastinv::cuda {

enum class Dtype { float32, float64, float16, bfloat16 };

// y = clamp(gain * act(x + b), -clamp, clamp) over n elements that lie densely in memory. Element i has channel
// (i / inner) % channels, which holds for any dense layout when inner is the stride of the channel axis.
struct BiasActParams {
  const void* x;
  const void* b;  // [channels], or null for none
  void* y;
  Dtype dtype;
  int64_t n;
  int64_t channels;
  int64_t inner;
  int act;  // 0 linear, 1 relu, 2 lrelu, 3 tanh, 4 sigmoid, 5 elu, 6 selu, 7 softplus, 8 swish
  double alpha;
  double gain;
  double clamp;  // below 0: none
};

// Enqueues the kernel on the stream (a cudaStream_t). Returns null, or what CUDA said went wrong.
const char* bias_act(const BiasActParams& p, void* stream);

}  // namespace fastinv::cuda
