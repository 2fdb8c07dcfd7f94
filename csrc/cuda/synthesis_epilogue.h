// Interface of the launchers of synthesis_epilogue and its backward: plain pointers and numbers, no torch and no CUDA
// headers. Formulas, forms and shapes: fastinv/ops/synthesis.py.
#pragma once

#include <cstdint>

#include "../common/synthesis_tiles.h"
#include "dtype.h"

namespace fastinv::cuda {

// What forward and backward share. Feature maps (u, y, next and their gradients) are dense NHWC in `dtype`. All else is
// in its compute dtype: [N, C] operands with the given stride between rows and 1 between columns, pictures dense NCHW.
struct SynthesisLayer {
  Dtype dtype;
  Form form;
  int64_t samples;              // at most 65535
  int channels, height, width;  // of the layer's output; a sample of u has fewer than 2^31 elements
  const void* d;                // [N, C], or null for 1
  int64_t d_stride;
  const void* noise;        // [1 or N, H, W], or null
  int64_t noise_stride;     // elements from one sample's map to the next; 0: one map for all
  double strength;          // factor of the noise
  const void* next_styles;  // [N, C], or null where next is y
  int64_t next_stride;
  const void* rgb_weight;  // [3, C], dense, or null for a layer without a picture
  const void* rgb_styles;  // [N, C], or null like rgb_weight
  int64_t rgb_stride;
  double taps[4];  // the separable FIR filter, as a correlation
  double alpha, gain;
  double clamp, rgb_clamp;  // negative: none
};

struct SynthesisEpilogueParams : SynthesisLayer {
  const void* u;         // in the form's layout
  const void* bias;      // [C], or null
  const void* rgb_bias;  // [3], or null like rgb_weight
  const void* previous;  // picture [N, 3, H / 2, W / 2] to be added upsampled, or null
  void* y;
  void* next;   // null without next_styles
  void* image;  // [N, 3, H, W], null without rgb_weight
  void* rgb;    // [N, 3, H, W], null unless rgb_clamp >= 0
};

struct SynthesisEpilogueBackwardParams : SynthesisLayer {
  const void* dnext;   // null for zero
  const void* dimage;  // [N, 3, H, W], or null for zero; rgb_weight and rgb_styles come with it
  const void* y;
  const void* rgb;  // result of the forward pass, null unless dimage is given and rgb_clamp >= 0
  void* du;         // in the form's layout
  void* sums;       // [N, sum_tiles, 5, C], dense
  void* dnoise;     // [N, H, W], or null where it is not wanted
};

// The launchers: the first pair takes the forms same and shuffled, the second the forms with a FIR filter, transposed
// and phases. They enqueue on the stream (a cudaStream_t) and return null, or what CUDA said went wrong. At most 1024
// channels.
constexpr int kSynthesisMostChannels = 1024;
constexpr int kSynthesisSums = 5;  // dnext * y, q * y, dy * y, dv * strength * noise, dv

const char* synthesis_epilogue(const SynthesisEpilogueParams& p, void* stream);
const char* synthesis_epilogue_backward(const SynthesisEpilogueBackwardParams& p, void* stream);

const char* fir_epilogue(const SynthesisEpilogueParams& p, void* stream);
const char* fir_epilogue_backward(const SynthesisEpilogueBackwardParams& p, void* stream);

}  // namespace fastinv::cuda
