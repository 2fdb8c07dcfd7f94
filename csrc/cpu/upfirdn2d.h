// Parameters of the upfirdn2d kernels. See fastinv/ops/upfirdn2d.py for the definition of the op.
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/isa.h"

namespace fastinv {

// One axis, as a polyphase filter: output o = phase + m * phases reads inputs first[phase] + m * step + t with tap t of
// that phase, for t < count[phase]. Zero insertion thereby disappears: every product is one with a real sample.
struct UpfirdnAxis {
  int64_t size;           // samples
  int64_t out;            // outputs
  int64_t phases;         // the up-sampling factor
  int64_t step;           // the down-sampling factor
  int64_t taps;           // largest count
  const int64_t* first;   // [phases], may lie outside of the samples, which then count as zeros
  const int64_t* count;   // [phases]
  const int64_t* tap_at;  // [phases, taps] index of the tap in the filter
};

// Images [images, y.size, x.size, channels]; a contiguous NCHW tensor is N*C images of one channel.
template <class T>
struct UpfirdnParams {
  const T* input;
  T* output;
  int64_t channels;
  UpfirdnAxis x, y;
  bool separable;
  const compute_t<T>* row;     // separable: [x.phases, x.taps]; else [y.phases, y.taps, x.phases, x.taps]
  const compute_t<T>* column;  // separable: [y.phases, y.taps]
  int64_t column_begin;        // a line in scratch holds the samples [column_begin, column_end) of a row,
  int64_t column_end;          // zeros where the row has none
  int64_t lines;               // so many lines in scratch
  bool streamed;               // outputs go past the caches; all rows (NHWC: all pixels) are whole cache lines then
};

// Values of compute_t<T> that `upfirdn2d_rows` needs as scratch: two lines of outputs and `lines` of samples.
template <class T>
int64_t upfirdn2d_scratch(const UpfirdnParams<T>& p) {
  return (2 * p.x.out + p.lines * (p.column_end - p.column_begin)) * p.channels;
}

// Computes the rows [begin, end) of all images * y.out output rows.
#define FASTINV_UPFIRDN2D_ROWS(T) \
  void upfirdn2d_rows(const UpfirdnParams<T>& p, int64_t begin, int64_t end, compute_t<T>* scratch);
FASTINV_FOR_EACH_ISA(FASTINV_UPFIRDN2D_ROWS(float) FASTINV_UPFIRDN2D_ROWS(double) FASTINV_UPFIRDN2D_ROWS(bfloat16))
#undef FASTINV_UPFIRDN2D_ROWS

}  // namespace fastinv
