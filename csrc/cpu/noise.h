// The loops beneath the noise regulariser and the normalisation of noise maps; see fastinv/ops/noise.py.
#pragma once

#include <cstdint>

#include "../common/isa.h"

namespace fastinv {

// Pictures are [size, size], with borders that join; functions with begin and end do the rows [begin, end).
// neighbour_products: adds the sums of the products with the left and the upper neighbour to sums[0] and sums[1].
// halve: the rows of the averages over 2x2.
// neighbour_gradient: across (left + right) + down (above + below) + 1/4 of `coarse` [size / 2, size / 2] (or null) at
// the average's place. add_up: of x - shift. add_squares: of (x - mean)^2.
#define FASTINV_NOISE(T)                                                                                           \
  void neighbour_products(const T* x, int64_t size, int64_t begin, int64_t end, double* sums);                     \
  void halve(const T* x, int64_t size, int64_t begin, int64_t end, T* out);                                        \
  void neighbour_gradient(const T* x, int64_t size, int64_t begin, int64_t end, T across, T down, const T* coarse, \
                          T* out);                                                                                 \
  double add_up(const T* x, int64_t count, double shift);                                                          \
  double add_squares(const T* x, int64_t count, double mean);                                                      \
  void centre_and_scale(T* x, int64_t count, double mean, double factor);
FASTINV_FOR_EACH_ISA(FASTINV_NOISE(float) FASTINV_NOISE(double))
#undef FASTINV_NOISE

}  // namespace fastinv
