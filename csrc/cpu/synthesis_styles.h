// The loops beneath the ops of styles and sums of fastinv/ops/synthesis.py.
#pragma once

#include <cstdint>

#include "../common/isa.h"

namespace fastinv {

// A matrix [rows, width] and its product with `samples` vectors that lie vector_stride apart, results result_stride.
template <class T>
struct MatrixProduct {
  const T* matrix;
  int64_t rows, width;
  const T* vectors;
  T* results;
  int64_t samples, vector_stride, result_stride;
};

#define FASTINV_SYNTHESIS_STYLES(T)                                                        \
  /* results[n, r] = sum_k matrix[r, k] vectors[n, k] for the rows r in [begin, end) */    \
  void times_columns(const MatrixProduct<T>& p, int64_t begin, int64_t end);               \
  /* results[n, k] = sum_r vectors[n, r] matrix[r, k] for the columns k in [begin, end) */ \
  void times_rows(const MatrixProduct<T>& p, int64_t begin, int64_t end);                  \
  /* totals[c] += sum_t x[t, c], x: [rows, columns] */                                     \
  void add_rows(const T* x, int64_t rows, int64_t columns, double* totals);                \
  /* The largest magnitude; NaN if there is one. */                                        \
  T largest_magnitude(const T* x, int64_t count);                                          \
  void multiply(const T* x, T factor, T* out, int64_t count);
FASTINV_FOR_EACH_ISA(FASTINV_SYNTHESIS_STYLES(float) FASTINV_SYNTHESIS_STYLES(double))
#undef FASTINV_SYNTHESIS_STYLES

}  // namespace fastinv
