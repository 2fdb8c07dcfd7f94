// The kernels of adam_record (one block) and adam_step (grid: pieces of a picture's variables, pictures).
#pragma once

#include "adam.h"
#include "device.cuh"

namespace fastinv::cuda {

constexpr int adam_threads = 256;
constexpr int adam_unroll = 4;  // elements of a thread: enough loads at once to keep memory busy

template <class T>
__device__ __forceinline__ void write(T* address, T value) {
  store<1>(address, Vec<T, 1>{value});
}

template <class T>
__global__ void __launch_bounds__(adam_threads) adam_record_kernel(AdamRecordParams p) {
  const int64_t row = p.clock[0] + 1, done = p.clock[1] + 1;
  block_barrier();  // everyone has read the clock
  if (threadIdx.x == 0) {
    write(p.clock, row);
    write(p.clock + 1, done);
  }
  const T* total = static_cast<const T*>(p.total);
  const T* values = static_cast<const T*>(p.values);
  T* lowest = static_cast<T*>(p.lowest);
  T* curve = static_cast<T*>(p.curves) + row * (1 + p.terms) * p.pictures;
  const bool on_page = row >= 0 && row < p.page;
  for (int64_t n = threadIdx.x; n < p.pictures; n += adam_threads) {
    const T loss = load<1>(total + n).values[0];
    if (on_page) {
      write(curve + n, loss);
#pragma unroll 1
      for (int64_t term = 0; term < p.terms; ++term) {
        const T value = load<1>(values + term * p.pictures + n).values[0];
        write(curve + (1 + term) * p.pictures + n, value);
      }
    }
    const bool finite = loss - loss == T(0);  // infinity and NaN give NaN
    const bool better = p.last ? finite : loss < lowest[n];
    p.better[n] = better;
    if (better) {
      write(lowest + n, loss);
      write(p.best_step + n, done);
    }
    if (!finite && p.bad_step[n] < 0) write(p.bad_step + n, done);
  }
}

template <class T>
__global__ void __launch_bounds__(adam_threads) adam_step_kernel(AdamStepParams p, T keep1, T keep2, T eps) {
  const T* coefficients = static_cast<const T*>(p.coefficients);
  const int64_t row = min(max(p.clock[0], int64_t(0)), p.page - 1) * p.columns;
  const T rate = load<1>(coefficients + row + p.column).values[0];
  const T correction = load<1>(coefficients + row + p.columns - 1).values[0];
  for (int64_t picture = blockIdx.y; picture < p.pictures; picture += gridDim.y) {
    const int64_t base = picture * p.size;
    const T* gradient = static_cast<const T*>(p.gradient) + base;
    T* variable = static_cast<T*>(p.variable) + base;
    T* mean = static_cast<T*>(p.mean) + base;
    T* square = static_cast<T*>(p.square) + base;
    T* best = static_cast<T*>(p.best) + base;
    const bool better = p.better[picture];
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (adam_threads * adam_unroll) + threadIdx.x;
    T g[adam_unroll], x[adam_unroll], m[adam_unroll], s[adam_unroll];
#pragma unroll
    for (int i = 0; i < adam_unroll; ++i) {
      const int64_t at = first + i * adam_threads;
      if (at >= p.size) continue;
      g[i] = load<1>(gradient + at).values[0];
      x[i] = variable[at];
      m[i] = mean[at];
      s[i] = square[at];
    }
#pragma unroll
    for (int i = 0; i < adam_unroll; ++i) {
      const int64_t at = first + i * adam_threads;
      if (at >= p.size) continue;
      m[i] += keep1 * (g[i] - m[i]);
      s[i] += keep2 * (g[i] * g[i] - s[i]);
      if (better) write(best + at, x[i]);
      write(mean + at, m[i]);
      write(square + at, s[i]);
      write(variable + at, x[i] + rate * m[i] / (sqrt(s[i] / correction) + eps));
    }
  }
}

}  // namespace fastinv::cuda
