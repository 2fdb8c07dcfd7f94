// The activations of bias_act and their first two derivatives at one point. The twin of csrc/cpu/activations.h; the
// formulas keep their digits for all magnitudes: no difference of nearly equal numbers, no overflow.
#pragma once

#include <cmath>

#include "device.cuh"

namespace fastinv::cuda {

// The codes of fastinv.ops.bias_act.ACTIVATIONS.
enum class Activation { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

// The first three are linear on each side of zero; their derivative follows from their output.
__host__ __device__ __forceinline__ bool is_piecewise(Activation activation) { return activation <= Activation::lrelu; }

// linear, relu and lrelu: `negative` is alpha (1 for linear, unused for relu). A NaN stays a NaN.
template <class C>
__device__ __forceinline__ C piecewise_value(C z, bool relu, C negative) {
  return z < C(0) ? (relu ? C(0) : z * negative) : z;
}

// Value and derivatives; what is not used is not computed, these functions being inlined.
template <class C>
struct Jet {
  C value, first, second;
};

template <class C>
__device__ __forceinline__ C magnitude(C z) {
  return z < C(0) ? -z : z;
}

template <class C>
__device__ __forceinline__ Jet<C> tanh_jet(C z) {
  const C e = std::exp(C(-2) * magnitude(z)), m = std::expm1(C(-2) * magnitude(z));
  const C size = -m / (C(2) + m);
  const C value = z < C(0) ? -size : size;
  const C first = C(4) * e / ((C(1) + e) * (C(1) + e));
  return {value, first, C(-2) * value * first};
}

template <class C>
__device__ __forceinline__ Jet<C> sigmoid_jet(C z) {
  const C e = std::exp(-magnitude(z)), r = C(1) / (C(1) + e);
  const C value = z < C(0) ? e * r : r, first = e * r * r;
  return {value, first, first * (C(1) - C(2) * value)};
}

// scale * (z > 0 ? z : alpha * (exp(z) - 1)); at 0 the second derivative is that of the right side, as in torch
template <class C>
__device__ __forceinline__ Jet<C> exponential_linear_jet(C z, C scale, C alpha) {
  const C bounded = z > C(0) ? C(0) : z;
  const C slope = scale * alpha * std::exp(bounded);
  return {z > C(0) ? scale * z : scale * alpha * std::expm1(bounded), z > C(0) ? scale : slope,
          z < C(0) ? slope : C(0)};
}

template <class C>
__device__ __forceinline__ Jet<C> softplus_jet(C z) {
  const C e = std::exp(-magnitude(z)), r = C(1) / (C(1) + e);
  return {(z < C(0) ? C(0) : z) + std::log1p(e), z < C(0) ? e * r : r, e * r * r};
}

template <class C>
__device__ __forceinline__ Jet<C> swish_jet(C z) {
  const C e = std::exp(-magnitude(z)), r = C(1) / (C(1) + e);
  const C s = z < C(0) ? e * r : r, ds = e * r * r;
  return {z * s, s + z * ds, ds * (C(2) + z * (C(1) - C(2) * s))};
}

}  // namespace fastinv::cuda
