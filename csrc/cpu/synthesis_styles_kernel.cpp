// Plain loops, compiled once per instruction set.
#include <cstring>

#include "synthesis_styles.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr int64_t kColumns = 64;  // whose sums stay at hand
constexpr int64_t kRun = 64;      // terms that are added in T, before they go to a double

template <class T>
void columns(const MatrixProduct<T>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* __restrict weights = p.matrix + row * p.width;
    for (int64_t n = 0; n < p.samples; ++n) {
      const T* __restrict vector = p.vectors + n * p.vector_stride;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < p.width; ++k) sum += weights[k] * vector[k];
      p.results[n * p.result_stride + row] = sum;
    }
  }
}

// One sample and up to kColumns columns; the matrix stays in cache for the next sample.
template <class T>
void rows(const T* matrix, int64_t row_count, int64_t width, int64_t count, const T* vector, T* results) {
  double totals[kColumns] = {};
  for (int64_t first = 0; first < row_count; first += kRun) {
    const int64_t last = row_count - first < kRun ? row_count : first + kRun;
    T sums[kColumns] = {};
    for (int64_t row = first; row < last; ++row) {
      const T* __restrict weights = matrix + row * width;
      const T factor = vector[row];
      if (count == kColumns) {  // a loop of known length: the sums stay in registers
#pragma omp simd
        for (int64_t k = 0; k < kColumns; ++k) sums[k] += factor * weights[k];
      } else {
        for (int64_t k = 0; k < count; ++k) sums[k] += factor * weights[k];
      }
    }
    for (int64_t k = 0; k < kColumns; ++k) totals[k] += sums[k];
  }
  for (int64_t k = 0; k < count; ++k) results[k] = static_cast<T>(totals[k]);
}

template <class T>
void all_rows(const MatrixProduct<T>& p, int64_t begin, int64_t end) {
  for (int64_t column = begin; column < end; column += kColumns) {
    const int64_t count = end - column < kColumns ? end - column : kColumns;
    for (int64_t n = 0; n < p.samples; ++n) {
      rows(p.matrix + column, p.rows, p.width, count, p.vectors + n * p.vector_stride,
           p.results + n * p.result_stride + column);
    }
  }
}

template <class T>
void add(const T* x, int64_t row_count, int64_t columns, double* __restrict totals) {
  for (int64_t row = 0; row < row_count; ++row) {
    const T* __restrict values = x + row * columns;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) totals[c] += values[c];
  }
}

// Magnitudes compare like their bits, where a NaN is above infinity.
template <class Bits, class T>
T largest(const T* x, int64_t count) {
  Bits result = 0;
  constexpr Bits sign = Bits(1) << (8 * sizeof(Bits) - 1);
#pragma omp simd reduction(max : result)
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= static_cast<Bits>(~sign);
    result = bits > result ? bits : result;
  }
  T value;
  std::memcpy(&value, &result, sizeof value);
  return value;
}

template <class T>
void scale(const T* __restrict x, T factor, T* __restrict out, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] * factor;
}

}  // namespace

#define FASTINV_SYNTHESIS_STYLES(T, Bits)                                                                     \
  void times_columns(const MatrixProduct<T>& p, int64_t begin, int64_t end) { columns(p, begin, end); }       \
  void times_rows(const MatrixProduct<T>& p, int64_t begin, int64_t end) { all_rows(p, begin, end); }         \
  void add_rows(const T* x, int64_t rows, int64_t columns, double* totals) { add(x, rows, columns, totals); } \
  T largest_magnitude(const T* x, int64_t count) { return largest<Bits>(x, count); }                          \
  void multiply(const T* x, T factor, T* out, int64_t count) { scale(x, factor, out, count); }
FASTINV_SYNTHESIS_STYLES(float, uint32_t)
FASTINV_SYNTHESIS_STYLES(double, uint64_t)

}  // namespace fastinv::FASTINV_ISA
