// The pass after a convolution of the frozen synthesis network, and its backward. Formulas, forms and shapes are in
// fastinv/ops/synthesis.py. Feature maps are dense NHWC of type T, all else is in the compute type (float for
// bfloat16). Work is cut into bands of whole sum tiles, whose bounds depend on the shape alone, so results do not
// depend on the number of threads.
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/isa.h"
#include "../common/synthesis_tiles.h"

namespace fastinv {

struct SynthesisLayer {
  Form form;
  int64_t channels, height, width;  // of the layer's output
  const void* d;                    // [N, C], one row every d_stride; ones for none
  int64_t d_stride;
  const void* noise;  // [1 or N, H, W], or null
  int64_t noise_stride;
  double strength;
  const void* next_styles;  // [N, C], or null
  int64_t next_stride;
  const void* rgb_weight;  // [3, C], or null for a layer without a picture
  const void* rgb_styles;
  int64_t rgb_stride;
  double taps[4];
  double alpha, gain, clamp, rgb_clamp;  // clamps below 0: none

  int64_t band_rows() const {  // rows of the output in one unit of work
    if (!filtered(form)) return height;
    const int64_t tile = sum_tile_rows(height);
    return tile < 32 ? 32 / tile * tile : tile;
  }
};

struct SynthesisForward : SynthesisLayer {
  const void* u;
  const void* bias;      // [C], zeros for none
  const void* rgb_bias;  // [3]
  const void* image;     // [N, 3, H / 2, W / 2], or null
  void* y;
  void* next;     // null where next_styles is
  void* picture;  // [N, 3, H, W], null where rgb_weight is
  void* rgb;      // [N, 3, H, W] where rgb_clamp is set, else null
};

struct SynthesisBackward : SynthesisLayer {
  const void* dnext;   // or null
  const void* dimage;  // [N, 3, H, W], or null
  const void* y;
  const void* rgb;  // where rgb_clamp is set
  void* du;
  void* sums;    // [N, tiles, 5, C]
  void* dnoise;  // [N, H, W], or null
};

// clang-format off
FASTINV_FOR_EACH_ISA(
template <class T> int64_t synthesis_forward_scratch(const SynthesisForward& p);  // elements of the compute type
template <class T> void synthesis_forward(const SynthesisForward& p, int64_t sample, int64_t first_row, int64_t last_row, compute_t<T>* scratch);
template <class T> int64_t synthesis_backward_scratch(const SynthesisBackward& p);
template <class T> void synthesis_backward(const SynthesisBackward& p, int64_t sample, int64_t first, int64_t last, compute_t<T>* scratch);
)
// clang-format on

}  // namespace fastinv
