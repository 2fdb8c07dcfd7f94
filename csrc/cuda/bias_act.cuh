// bias_act as maps of the walk in channel_walk.cuh. 16 bytes a thread and tensor, arithmetic in float or double.
#pragma once

#include "activations.cuh"
#include "bias_act.h"
#include "channel_walk.cuh"

namespace fastinv::cuda {

template <class Type, int tensors, int on_the_way, bool has_sums>
struct BiasActMap {
  using T = Type;
  using Operand = Type;
  using C = compute_t<T>;
  static constexpr int inputs = tensors, unroll = on_the_way;
  static constexpr bool writes = true, sums = has_sums;
  const T* in[inputs];
  T* out;
  const T* operand;
  int64_t operand_stride;
  bool aligned;
  C* partials;
  Activation activation;
  C alpha, gain, clamp;  // clamp: NaN for none, every comparison with it is false
};

// y = clamp(gain * act(x + b)) of linear, relu and lrelu.
template <class T>
struct PiecewiseForward : BiasActMap<T, 1, 4, false> {
  using C = compute_t<T>;
  template <int V>
  __device__ __forceinline__ void apply(const C (&in)[1][V], const C (&bias)[V], C (&result)[V]) const {
    const bool relu = this->activation == Activation::relu;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      C y = piecewise_value(in[0][i] + bias[i], relu, this->alpha) * this->gain;
      y = y > this->clamp ? this->clamp : y;
      result[i] = y < -this->clamp ? -this->clamp : y;
    }
  }
};

// dx = dy * g'(x + b) of linear, relu and lrelu, from (y, dy): the sign of y is that of x + b times that of the gain.
template <class T>
struct PiecewiseFirst : BiasActMap<T, 2, 2, true> {
  using C = compute_t<T>;
  template <int V>
  __device__ __forceinline__ void apply(const C (&in)[2][V], const C (&)[V], C (&result)[V]) const {
    const C high = this->gain, sign = high < C(0) ? C(-1) : C(1);
    const C low = this->activation == Activation::relu ? C(0) : high * this->alpha;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const C slope = in[0][i] * sign > C(0) ? high : low;
      result[i] = (magnitude(in[0][i]) >= this->clamp ? C(0) : slope) * in[1][i];
    }
  }
};

// The other activations, all orders: inputs (x), (x, dy) or (x, dy, grad).
template <class T, int derivative>
struct Smooth : BiasActMap<T, derivative + 1, 1, (derivative > 0)> {
  using C = compute_t<T>;

  template <class Function, int V>
  __device__ __forceinline__ void each(const C (&in)[derivative + 1][V], const C (&bias)[V], C (&result)[V],
                                       const Function& function) const {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Jet<C> jet = function(in[0][i] + bias[i]);
      const C y = this->gain * jet.value;
      if constexpr (derivative == 0) {
        const C high = y > this->clamp ? this->clamp : y;
        result[i] = high < -this->clamp ? -this->clamp : high;
      } else {
        C slope = this->gain * (derivative == 1 ? jet.first : jet.second) * in[1][i];
        if constexpr (derivative == 2) slope *= in[2][i];
        result[i] = magnitude(y) > this->clamp ? C(0) : slope;
      }
    }
  }

  // One branch for all values of a vector; all threads take the same.
  template <int V>
  __device__ __forceinline__ void apply(const C (&in)[derivative + 1][V], const C (&bias)[V], C (&result)[V]) const {
    constexpr C selu_scale = C(1.0507009873554804934193349852946), selu_alpha = C(1.6732632423543772848170429916717);
    switch (this->activation) {
      case Activation::tanh:
        return each(in, bias, result, [](C z) { return tanh_jet(z); });
      case Activation::sigmoid:
        return each(in, bias, result, [](C z) { return sigmoid_jet(z); });
      case Activation::elu:
        return each(in, bias, result, [](C z) { return exponential_linear_jet(z, C(1), C(1)); });
      case Activation::selu:
        return each(in, bias, result, [=](C z) { return exponential_linear_jet(z, selu_scale, selu_alpha); });
      case Activation::softplus:
        return each(in, bias, result, [](C z) { return softplus_jet(z); });
      default:
        return each(in, bias, result, [](C z) { return swish_jet(z); });
    }
  }
};

}  // namespace fastinv::cuda
