// Plain loops, compiled once per instruction set.
#include "noise.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr int64_t kRun = 256;  // terms that are added in T, before they go to a double

template <class T>
void products(const T* x, int64_t size, int64_t begin, int64_t end, double* sums) {
  for (int64_t row = begin; row < end; ++row) {
    const T* __restrict own = x + row * size;
    const T* __restrict above = x + (row == 0 ? size - 1 : row - 1) * size;
    sums[0] += own[0] * own[size - 1];
    sums[1] += own[0] * above[0];
    for (int64_t first = 1; first < size; first += kRun) {
      const int64_t last = size - first < kRun ? size : first + kRun;
      T across = 0, down = 0;
#pragma omp simd reduction(+ : across, down)
      for (int64_t i = first; i < last; ++i) {
        across += own[i] * own[i - 1];
        down += own[i] * above[i];
      }
      sums[0] += across;
      sums[1] += down;
    }
  }
}

template <class T>
void average(const T* x, int64_t size, int64_t begin, int64_t end, T* out) {
  const int64_t half = size / 2;
  for (int64_t row = begin; row < end; ++row) {
    const T* __restrict upper = x + 2 * row * size;
    const T* __restrict lower = upper + size;
    T* __restrict to = out + row * half;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      to[i] = (upper[2 * i] + upper[2 * i + 1] + lower[2 * i] + lower[2 * i + 1]) * T(0.25);
    }
  }
}

template <class T>
void gradient(const T* x, int64_t size, int64_t begin, int64_t end, T across, T down, const T* coarse, T* out) {
  const int64_t half = size / 2;
  for (int64_t row = begin; row < end; ++row) {
    const T* __restrict own = x + row * size;
    const T* __restrict above = x + (row == 0 ? size - 1 : row - 1) * size;
    const T* __restrict below = x + (row == size - 1 ? 0 : row + 1) * size;
    T* __restrict to = out + row * size;
#pragma omp simd
    for (int64_t i = 1; i < size - 1; ++i) to[i] = across * (own[i - 1] + own[i + 1]) + down * (above[i] + below[i]);
    for (int64_t i = 0; i < size; i += size > 1 ? size - 1 : 1) {  // the two ends
      const T left = own[i == 0 ? size - 1 : i - 1], right = own[i == size - 1 ? 0 : i + 1];
      to[i] = across * (left + right) + down * (above[i] + below[i]);
    }
    if (coarse != nullptr && row / 2 < half) {
      const T* __restrict from = coarse + row / 2 * half;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        to[2 * i] += T(0.25) * from[i];
        to[2 * i + 1] += T(0.25) * from[i];
      }
    }
  }
}

template <class T>
double sum(const T* x, int64_t count, double shift) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; ++i) total += x[i] - shift;
  return total;
}

template <class T>
double squares(const T* x, int64_t count, double mean) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; ++i) total += (x[i] - mean) * (x[i] - mean);
  return total;
}

template <class T>
void apply(T* x, int64_t count, double mean, double factor) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) x[i] = static_cast<T>((x[i] - mean) * factor);
}

}  // namespace

#define FASTINV_NOISE(T)                                                                                           \
  void neighbour_products(const T* x, int64_t size, int64_t begin, int64_t end, double* sums) {                    \
    products(x, size, begin, end, sums);                                                                           \
  }                                                                                                                \
  void halve(const T* x, int64_t size, int64_t begin, int64_t end, T* out) { average(x, size, begin, end, out); }  \
  void neighbour_gradient(const T* x, int64_t size, int64_t begin, int64_t end, T across, T down, const T* coarse, \
                          T* out) {                                                                                \
    gradient(x, size, begin, end, across, down, coarse, out);                                                      \
  }                                                                                                                \
  double add_up(const T* x, int64_t count, double shift) { return sum(x, count, shift); }                          \
  double add_squares(const T* x, int64_t count, double mean) { return squares(x, count, mean); }                   \
  void centre_and_scale(T* x, int64_t count, double mean, double factor) { apply(x, count, mean, factor); }
FASTINV_NOISE(float)
FASTINV_NOISE(double)

}  // namespace fastinv::FASTINV_ISA
