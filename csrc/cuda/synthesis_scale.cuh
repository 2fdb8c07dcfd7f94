// The power-of-two factors of the synthesis ops: demodulation scales styles by them, gradient_scale the image gradient.
#pragma once

#include <cmath>

#include "device.cuh"

namespace fastinv::cuda {

// The larger of two magnitudes; NaN if one of them is.
template <class T>
__device__ __forceinline__ T larger_magnitude(T a, T b) {
  return a > b || a != a ? a : b;
}

template <class T>
__device__ __forceinline__ T warp_largest(T value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = larger_magnitude(value, shuffle_xor(value, mask));
  return value;
}

// The exponent e with `largest` in [2^(e - 1), 2^e), within +-120; 0 for zero, infinity and NaN.
template <class T>
__device__ __forceinline__ int scale_exponent(T largest) {
  if (!(largest > T(0)) || largest - largest != T(0)) return 0;
  int exponent;
  frexp(largest, &exponent);
  return exponent < -120 ? -120 : exponent > 120 ? 120 : exponent;
}

}  // namespace fastinv::cuda
