// Parameters of the CPU kernels of LPIPS's input: fastinv/ops/perceptual.py has the definition. Features are NHWC.
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/isa.h"

namespace fastinv {

// Of output pixel i of an axis, or, backward, of input pixel i: the pixels [first[i], last[i]) of the other side.
struct PerceptualWindows {
  const int64_t *first, *last;
};

// I: of the images; T: of the features.
template <class I, class T>
struct PerceptualInputParams {
  using C = compute_t<T>;
  int64_t image_height, image_width, channels, height, width;
  const I* images;     // forward
  int64_t strides[4];  // of images
  I* grad_images;      // backward: dense [n, 3, image_height, image_width]
  T* features;         // forward: [n, height, width, channels]
  const T* grad;       // backward: likewise
  C scale[3], offset[3];
  PerceptualWindows rows, columns;
  const C *row_weights, *column_weights;  // one over the size of the window, of each pixel of the features
};

// Rows [begin, end) of all samples: of the features, or backward of the images.
#define FASTINV_PERCEPTUAL_INPUT(I, T)                                                     \
  void perceptual_input(const PerceptualInputParams<I, T>& p, int64_t begin, int64_t end); \
  void perceptual_input_backward(const PerceptualInputParams<I, T>& p, int64_t begin, int64_t end);
FASTINV_FOR_EACH_ISA(FASTINV_PERCEPTUAL_INPUT(float, float) FASTINV_PERCEPTUAL_INPUT(double, double)
                         FASTINV_PERCEPTUAL_INPUT(bfloat16, bfloat16) FASTINV_PERCEPTUAL_INPUT(float, bfloat16))
#undef FASTINV_PERCEPTUAL_INPUT

}  // namespace fastinv
