// What kernels may use of the device, and the only file that knows which compiler reads it. nvcc: thin inline wrappers.
// g++: twins that run the grid on the CPU, one fiber per thread (csrc/host/simulator.h), and check what the device
// would not: alignment, bounds, races, divergent barriers. Names that nvcc has by itself (threadIdx, __global__, dim3,
// tanh, rsqrtf, min, ...) work in both.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include "../host/float16.h"
#include "../host/simulator.h"
#endif

namespace fastinv::cuda {

using half = __half;
using bfloat16 = __nv_bfloat16;

// Arithmetic is in float for the 16-bit types, and in the type itself otherwise.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

template <class T>
__host__ __device__ __forceinline__ compute_t<T> to_compute(T value) {
  return static_cast<compute_t<T>>(value);
}
template <class T>
__host__ __device__ __forceinline__ T from_compute(compute_t<T> value) {  // rounds to nearest even
  return static_cast<T>(value);
}

// V values that are loaded and stored as one.
template <class T, int V>
struct alignas(sizeof(T) * V) Vec {
  T values[V];
};

}  // namespace fastinv::cuda

#ifdef __CUDACC__
#include "device_intrinsics.cuh"
#else
#include "../host/intrinsics.h"
#endif
