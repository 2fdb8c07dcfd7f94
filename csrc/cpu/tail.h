// What follows a convolution of a frozen network, for a block of pixels whose sums are still in the cache: forward or
// backward, formulas in fastinv/ops/frozen_conv.py. The cores (direct, winograd, up, down) call it block by block.
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/isa.h"

namespace fastinv {

// Rows of the result whose sums are added up together: one band is one unit of work of a core's last phase. Twin of
// band_rows in fastinv/ops/frozen_conv.py.
FASTINV_INLINE int64_t band_rows(int64_t height, int64_t width) {
  const int64_t all = (height + 3) / 4, wanted = width > 0 ? 64 / width : 64;
  const int64_t rows = (all < wanted ? all : wanted) * 4;
  return rows > 4 ? rows : 4;
}
FASTINV_INLINE int64_t band_count(int64_t height, int64_t width) {
  const int64_t count = (height + band_rows(height, width) - 1) / band_rows(height, width);
  return count > 1 ? count : 1;
}

// A rectangle of the result. The value of pixel (row + i, column + j) and channel c is
// values[i * row_stride + j * pixel_stride + c]; null for zeros (backward without a convolution).
template <class T>
struct TailBlock {
  int64_t sample, row, column, rows, columns;
  const compute_t<T>* values;
  int64_t row_stride, pixel_stride;
};

// The same for values of type V (T or the compute type) whose y or du goes to a place of its own, of type O.
template <class V, class O>
struct TailPlaces {
  int64_t sample, row, column, rows, columns;
  const V* values;
  int64_t row_stride, pixel_stride;
  O* result;
  int64_t result_row_stride, result_pixel_stride;
};

struct TailLayer {
  int64_t channels, height, width;  // of the result, dense NHWC of T
  const void* d;                    // [N, C] of the compute type, one row every d_stride; null for ones
  int64_t d_stride;
  const void* noise;  // [1 or N, H, W] (stride 0 for one), or null
  int64_t noise_stride;
  double strength;
  const void* rgb_weight;  // [3, C], or null for a layer without a picture
  const void* rgb_styles;
  int64_t rgb_stride;
  double alpha, gain, clamp, rgb_clamp;  // clamps below 0: none
};

struct TailForward : TailLayer {
  const void* bias;      // [C], or null
  const void* rgb_bias;  // [3]
  void* y;
  void* picture;  // [N, 3, H, W], is added to; null where rgb_weight is
  void* rgb;      // [N, 3, H, W] where rgb_clamp is set
};

struct TailBackward : TailLayer {
  const void* next_styles;  // [N, C], or null for ones
  int64_t next_stride;
  const void* dimage;  // [N, 3, H, W], or null
  const void* y;       // null: the values themselves go to du
  int64_t y_stride;    // elements from sample to sample; 0 for one y of all samples
  const void* rgb;     // where rgb_clamp is set
  void* du;            // or null
  void* sums;          // [N, bands, 5, C], or null
  void* dnoise;        // [N, H, W], or null
};

// Exactly one of the two is set.
struct Tail {
  const TailForward* forward;
  const TailBackward* backward;
  FASTINV_INLINE const TailLayer& layer() const {
    return forward ? static_cast<const TailLayer&>(*forward) : static_cast<const TailLayer&>(*backward);
  }
};

// A thread calls tail_begin before the first block of a band, tail_block for each block of it (each pixel once), and
// tail_end after the last one, all with the same scratch of tail_scratch bytes (64-byte aligned).
//
// Passes without a convolution call tail_places instead of tail_block, with V, O = T, T; compute type, T; or, backward,
// T, compute type. tail_write is tail_end with the sums [5, C] written to a given place, where they are wanted: whether
// they are tells p.sums.
// clang-format off
FASTINV_FOR_EACH_ISA(
template <class T> int64_t tail_scratch(const Tail& tail);
template <class T> void tail_begin(const Tail& tail, int64_t sample, void* scratch);
template <class T> void tail_block(const Tail& tail, const TailBlock<T>& block, void* scratch);
template <class T> void tail_end(const Tail& tail, int64_t sample, int64_t band, void* scratch);
template <class T, class V, class O> void tail_places(const Tail& tail, const TailPlaces<V, O>& places, void* scratch);
template <class T> void tail_write(const Tail& tail, void* sums, void* scratch);
)
// clang-format on

}  // namespace fastinv
