// The trunk's input and its gradient, row by row: along the columns of the window first, where channels are planes and
// the loops run over whole rows, then along its row.
#include <cstring>
#include <vector>

#include "perceptual_input.h"

namespace fastinv::FASTINV_ISA {
namespace {

template <class I, class T>
void forward(const PerceptualInputParams<I, T>& p, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  std::vector<C> sums(p.image_width);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t sample = at / p.height, row = at % p.height;
    T* features = p.features + at * p.width * p.channels;
    for (int64_t c = 0; c < 3; ++c) {
      const C factor = p.scale[c] * p.row_weights[row], offset = p.offset[c];
      for (int64_t y = p.rows.first[row]; y < p.rows.last[row]; ++y) {
        const I* from = p.images + sample * p.strides[0] + c * p.strides[1] + y * p.strides[2];
        const int64_t stride = p.strides[3];
        const bool more = y > p.rows.first[row];
        if (stride == 1) {
#pragma omp simd
          for (int64_t x = 0; x < p.image_width; ++x) sums[x] = (more ? sums[x] : C(0)) + C(load(from[x]));
        } else {
          for (int64_t x = 0; x < p.image_width; ++x) sums[x] = (more ? sums[x] : C(0)) + C(load(from[x * stride]));
        }
      }
      for (int64_t j = 0; j < p.width; ++j) {
        C sum = 0;
        for (int64_t x = p.columns.first[j]; x < p.columns.last[j]; ++x) sum += sums[x];
        store(features[j * p.channels + c], sum * p.column_weights[j] * factor + offset);
      }
    }
    for (int64_t j = 0; j < p.width; ++j) {
      for (int64_t c = 3; c < p.channels; ++c) store(features[j * p.channels + c], C(0));
    }
  }
}

template <class I, class T>
void backward(const PerceptualInputParams<I, T>& p, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  std::vector<C> sums(p.width);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t sample = at / p.image_height, y = at % p.image_height;
    const bool repeated = at > begin && y > 0 && p.rows.first[y] == p.rows.first[y - 1] &&
                          p.rows.last[y] == p.rows.last[y - 1];  // in the same windows as the row before
    for (int64_t c = 0; c < 3; ++c) {
      I* to = p.grad_images + ((sample * 3 + c) * p.image_height + y) * p.image_width;
      if (repeated) {
        std::memcpy(to, to - p.image_width, p.image_width * sizeof(I));
        continue;
      }
      for (int64_t j = 0; j < p.width; ++j) sums[j] = 0;
      for (int64_t row = p.rows.first[y]; row < p.rows.last[y]; ++row) {
        const T* grad = p.grad + (sample * p.height + row) * p.width * p.channels + c;
        const C factor = p.scale[c] * p.row_weights[row];
        for (int64_t j = 0; j < p.width; ++j) sums[j] += factor * C(load(grad[j * p.channels]));
      }
      for (int64_t j = 0; j < p.width; ++j) sums[j] *= p.column_weights[j];
      for (int64_t x = 0; x < p.image_width; ++x) {
        const int64_t first = p.columns.first[x];
        C sum = sums[first];
        for (int64_t j = first + 1; j < p.columns.last[x]; ++j) sum += sums[j];
        store(to[x], sum);
      }
    }
  }
}

}  // namespace

#define FASTINV_PERCEPTUAL_INPUT(I, T)                                                                                \
  void perceptual_input(const PerceptualInputParams<I, T>& p, int64_t begin, int64_t end) { forward(p, begin, end); } \
  void perceptual_input_backward(const PerceptualInputParams<I, T>& p, int64_t begin, int64_t end) {                  \
    backward(p, begin, end);                                                                                          \
  }
FASTINV_PERCEPTUAL_INPUT(float, float)
FASTINV_PERCEPTUAL_INPUT(double, double)
FASTINV_PERCEPTUAL_INPUT(bfloat16, bfloat16)
FASTINV_PERCEPTUAL_INPUT(float, bfloat16)

}  // namespace fastinv::FASTINV_ISA
