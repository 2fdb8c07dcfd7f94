// x * scale[n, c] and the sums over pixels of a * b, as maps of the walk in channel_walk.cuh.
#pragma once

#include "channel_scale.h"
#include "channel_walk.cuh"

namespace fastinv::cuda {

template <class Type>
struct ScaleMap {
  using T = Type;
  using C = compute_t<T>;
  using Operand = C;
  static constexpr int inputs = 1, unroll = 4;
  static constexpr bool writes = true, sums = false;
  const T* in[inputs];
  T* out;
  const Operand* operand;
  int64_t operand_stride;
  bool aligned;
  C* partials;

  template <int V>
  __device__ __forceinline__ void apply(const C (&in)[1][V], const C (&scale)[V], C (&result)[V]) const {
#pragma unroll
    for (int i = 0; i < V; ++i) result[i] = in[0][i] * scale[i];
  }
};

template <class Type>
struct DotMap {
  using T = Type;
  using C = compute_t<T>;
  using Operand = C;
  static constexpr int inputs = 2, unroll = 2;
  static constexpr bool writes = false, sums = true;
  const T* in[inputs];
  T* out;
  const Operand* operand;
  int64_t operand_stride;
  bool aligned;
  C* partials;

  template <int V>
  __device__ __forceinline__ void apply(const C (&in)[2][V], const C (&)[V], C (&result)[V]) const {
#pragma unroll
    for (int i = 0; i < V; ++i) result[i] = in[0][i] * in[1][i];
  }
};

}  // namespace fastinv::cuda
