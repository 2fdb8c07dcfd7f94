// Parameters of the bias_act kernels. See fastinv/ops/bias_act.py for the definition of the op.
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/isa.h"

namespace fastinv {

// The codes of fastinv.ops.bias_act.ACTIVATIONS.
enum class Activation { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

// What is computed, with z = x + b and g(z) = gain * act(z) inside of the clamp, constant beyond it:
// forward g(z), first dy * g'(z), second grad * dy * g''(z).
enum class Order { forward, first, second };

// x is seen as [outer, size, inner] in memory order, the bias runs along `size`.
template <class T>
struct BiasActParams {
  Activation activation;
  Order order;
  compute_t<T> alpha, gain;
  compute_t<T> clamp;  // NaN for none: every comparison with it is false
  const T* x;          // order first of linear, relu and lrelu: the output of forward instead, bias unused
  const T* dy;         // orders first and second
  const T* grad;       // order second
  T* out;
  const compute_t<T>* bias;  // inner > 1: [size]; inner == 1: [tile]
  int64_t outer, size, inner;
  int64_t tile;  // inner == 1: a multiple of `size` elements, with the bias repeated to that length
};

#define FASTINV_BIAS_ACT(T)                                                                                          \
  /* The elements [begin, end); with inner == 1 begin is a multiple of tile. */                                      \
  void bias_act_range(const BiasActParams<T>& p, int64_t begin, int64_t end);                                        \
  /* The same for inner == 1, and adds the sum of out over all but the axis of the bias; scratch: [tile], db: [size] \
   */                                                                                                                \
  void bias_act_tiles(const BiasActParams<T>& p, int64_t begin, int64_t end, compute_t<T>* scratch, double* db);     \
  /* All elements of the channels [begin, end), and their sums into db [size]. */                                    \
  void bias_act_channels(const BiasActParams<T>& p, int64_t begin, int64_t end, double* db);
FASTINV_FOR_EACH_ISA(FASTINV_BIAS_ACT(float) FASTINV_BIAS_ACT(double) FASTINV_BIAS_ACT(bfloat16))
#undef FASTINV_BIAS_ACT

}  // namespace fastinv
