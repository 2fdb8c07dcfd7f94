// Small matrix products with packed weights, from which the frozen convolutions are made: the one place with register
// blocking. C[m, n] (+)= sum over taps t and k of A[m, offsets[t] + k] * B[t, k, n].
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/isa.h"

namespace fastinv {

struct MatrixProduct {
  const void* a;           // T; row m begins at a + m * a_stride; rows may overlap and reach to both sides
  int64_t a_stride;        // elements
  const int64_t* offsets;  // of each tap, in elements of a
  int64_t taps;
  int64_t inner;  // k of each tap: matrix_inner<T>(number of input channels); the rest of A is zeros
  const void* b;  // as matrix_pack left it for (taps, inner, columns)
  float* c;       // row m begins at c + m * c_stride
  int64_t c_stride;
  int64_t rows;
  int64_t first_panel, last_panel;  // columns first_panel * matrix_columns() and on, to last_panel * matrix_columns()
  bool add;                         // to what C holds
};

// clang-format off
FASTINV_FOR_EACH_ISA(
int64_t matrix_columns();                             // columns of a panel; C has whole panels
template <class T> int64_t matrix_inner(int64_t k);   // k rounded up to what the kernel takes: 1, 2 or 32 at a time
template <class T> int64_t matrix_packed_size(int64_t taps, int64_t k, int64_t columns);  // elements of T
// weight(t, k, n) is at source[t * tap_stride + k * k_stride + n * n_stride].
template <class T> void matrix_pack(const float* source, int64_t tap_stride, int64_t k_stride, int64_t n_stride, int64_t taps, int64_t k, int64_t columns, void* packed);
template <class T> void matrix_multiply(const MatrixProduct& p);  // T: float, bfloat16
)
// clang-format on

}  // namespace fastinv
