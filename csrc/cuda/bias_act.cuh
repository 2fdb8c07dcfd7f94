// The forward bias_act kernel: one read and one write of 16 bytes per thread and step, one division per 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "bias_act.h"

namespace fastinv::cuda {

// Arithmetic is in float for the 16-bit types, and in the type itself otherwise.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

template <class C>
__device__ C activate(C x, int act, C alpha) {
  switch (act) {
    case 1:
      return x > C(0) ? x : (x != x ? x : C(0));  // a NaN stays a NaN, as in torch
    case 2:
      return x > C(0) ? x : x * alpha;
    case 3:
      return tanh(x);
    case 4:
      return C(1) / (C(1) + exp(-x));
    case 5:
      return x > C(0) ? x : expm1(x);
    case 6:
      return C(1.0507009873554804934193349852946) * (x > C(0) ? x : C(1.6732632423543772848170429916717) * expm1(x));
    case 7:
      return x > C(20) ? x : log1p(exp(x));  // torch's threshold
    case 8:
      return x / (C(1) + exp(-x));
    default:
      return x;
  }
}

template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

template <class T>
__global__ void bias_act_kernel(BiasActParams p) {
  using C = typename Compute<T>::type;
  const T* x = static_cast<const T*>(p.x);
  const T* b = static_cast<const T*>(p.b);
  T* y = static_cast<T*>(p.y);
  const C alpha = static_cast<C>(p.alpha), gain = static_cast<C>(p.gain), clamp = static_cast<C>(p.clamp);
  const bool aligned = (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % 16 == 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * Pack<T>::size;

  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * Pack<T>::size; first < p.n;
       first += step) {
    const int64_t left = p.n - first;
    const int count = left < Pack<T>::size ? static_cast<int>(left) : Pack<T>::size;
    const bool whole = aligned && count == Pack<T>::size;
    Pack<T> pack;
    if (whole) {
      pack = *reinterpret_cast<const Pack<T>*>(x + first);
    } else {
      for (int i = 0; i < count; ++i) pack.values[i] = x[first + i];
    }

    int64_t row = first / p.inner;
    int64_t until_next_channel = (row + 1) * p.inner - first;
    int64_t channel = row % p.channels;
    for (int i = 0; i < count; ++i) {
      C value = static_cast<C>(pack.values[i]);
      if (b != nullptr) value += static_cast<C>(b[channel]);
      value = activate<C>(value, p.act, alpha) * gain;
      if (clamp >= C(0)) value = value > clamp ? clamp : value < -clamp ? -clamp : value;
      pack.values[i] = static_cast<T>(value);
      if (--until_next_channel == 0) {
        until_next_channel = p.inner;
        channel = channel + 1 == p.channels ? 0 : channel + 1;
      }
    }

    if (whole) {
      *reinterpret_cast<Pack<T>*>(y + first) = pack;
    } else {
      for (int i = 0; i < count; ++i) y[first + i] = pack.values[i];
    }
  }
}

}  // namespace fastinv::cuda
