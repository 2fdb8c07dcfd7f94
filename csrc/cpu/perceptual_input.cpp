// The trunk's input on the CPU: checks, outputs, windows, threads. The twin is in csrc/cuda/perceptual_cuda.cpp.
#include "perceptual_input.h"

#include <algorithm>

#include "../common/stable.h"

namespace fastinv {
namespace {

constexpr int64_t kGrain = 32768;  // elements a thread is worth waking up for

// For each of `count` pixels of an axis those of the other side's `others` that it shares ground with. From features to
// images this is the window of the average, from images to features the windows that a pixel is in.
struct Windows {
  std::vector<int64_t> first, last;
  Windows(int64_t count, int64_t others) : first(count), last(count) {
    for (int64_t i = 0; i < count; ++i) {
      first[i] = i * others / count;
      last[i] = ((i + 1) * others + count - 1) / count;
    }
  }
  PerceptualWindows pointers() const { return {first.data(), last.data()}; }
};

template <class C>
std::vector<C> weights(int64_t count, int64_t others) {
  const Windows windows(count, others);
  std::vector<C> result(count);
  for (int64_t i = 0; i < count; ++i) result[i] = C(1) / C(windows.last[i] - windows.first[i]);
  return result;
}

void check(const char* op, int64_t image_height, int64_t image_width, int64_t height, int64_t width, int64_t channels,
           const std::vector<double>& scale) {
  FASTINV_CHECK(channels >= 3, op, ": at least 3 channels, got ", channels);
  FASTINV_CHECK(height >= 1 && width >= 1 && height <= image_height && width <= image_width, op,
                ": the features' size must be between 1 and the images', got ", height, "x", width, " of images ",
                image_height, "x", image_width);
  FASTINV_CHECK(scale.size() == 3, op, ": scale and offset must be 3 numbers");
}

// Calls run with typed null pointers for the dtypes of images and features.
template <class Run>
void dispatch(const char* op, ScalarType images, ScalarType features, const Run& run) {
  if (images == ScalarType::Float && features == ScalarType::BFloat16) {
    return run(static_cast<float*>(nullptr), static_cast<bfloat16*>(nullptr));
  }
  FASTINV_CHECK(images == features, op, ": there are no kernels between images of ",
                torch::headeronly::toString(images), " and features of ", torch::headeronly::toString(features));
  FASTINV_DISPATCH(images, op, [&] { run(static_cast<scalar_t*>(nullptr), static_cast<scalar_t*>(nullptr)); });
}

// Fills in what forward and backward share, and runs; `backward` says which pixels the windows are asked of.
template <class I, class T, class Run>
void with_windows(PerceptualInputParams<I, T>& p, const std::vector<double>& scale, bool backward, const Run& run) {
  using C = compute_t<T>;
  for (int i = 0; i < 3; ++i) p.scale[i] = static_cast<C>(scale[i]);
  const Windows rows = backward ? Windows(p.image_height, p.height) : Windows(p.height, p.image_height);
  const Windows columns = backward ? Windows(p.image_width, p.width) : Windows(p.width, p.image_width);
  const std::vector<C> row_weights = weights<C>(p.height, p.image_height);
  const std::vector<C> column_weights = weights<C>(p.width, p.image_width);
  p.rows = rows.pointers();
  p.columns = columns.pointers();
  p.row_weights = row_weights.data();
  p.column_weights = column_weights.data();
  run();
}

Tensor perceptual_input(const Tensor& images, const std::vector<double>& scale, const std::vector<double>& offset,
                        int64_t height, int64_t width, int64_t channels, ScalarType dtype) {
  const char* op = "perceptual_input";
  FASTINV_CHECK(images.is_cpu() && images.dim() == 4 && images.size(1) == 3, op,
                ": images must be [N, 3, H, W] on the CPU");
  check(op, images.size(2), images.size(3), height, width, channels, scale);
  FASTINV_CHECK(offset.size() == 3, op, ": scale and offset must be 3 numbers");
  const int64_t n = images.size(0);
  const Tensor features = empty({n, channels, height, width}, dtype, true);
  dispatch(op, images.scalar_type(), dtype, [&](auto* image, auto* feature) {
    using I = std::remove_pointer_t<decltype(image)>;
    using T = std::remove_pointer_t<decltype(feature)>;
    PerceptualInputParams<I, T> p{};
    p.image_height = images.size(2);
    p.image_width = images.size(3);
    p.channels = channels;
    p.height = height;
    p.width = width;
    p.images = data<I>(images);
    for (int i = 0; i < 4; ++i) p.strides[i] = images.stride(i);
    for (int i = 0; i < 3; ++i) p.offset[i] = static_cast<compute_t<T>>(offset[i]);
    p.features = mutable_data<T>(features);
    with_windows(p, scale, false, [&] {
      const int64_t row = 3 * p.image_width * std::max<int64_t>(p.image_height / height, 1);
      parallel_for(0, n * height, kGrain / std::max<int64_t>(row, 1),
                   [&](int64_t begin, int64_t end) { FASTINV_ISA_CALL(perceptual_input, p, begin, end); });
    });
  });
  return features;
}

// The kernels have no float16, whose gradients alone are scaled by the size of grad_value.
Tensor perceptual_input_backward(const Tensor& grad_any, const Tensor& grad_value, const std::vector<double>& scale,
                                 int64_t height, int64_t width, ScalarType dtype) {
  const char* op = "perceptual_input_backward";
  FASTINV_CHECK(grad_any.is_cpu() && grad_any.dim() == 4, op, ": grad must be [N, C, h, w] on the CPU");
  check(op, height, width, grad_any.size(2), grad_any.size(3), grad_any.size(1), scale);
  FASTINV_CHECK(grad_value.dim() == 1 && grad_value.size(0) == grad_any.size(0), op, ": grad_value must be [N]");
  const Tensor grad = in_layout(grad_any, true);
  const int64_t n = grad.size(0);
  const Tensor images = empty({n, 3, height, width}, dtype);
  dispatch(op, dtype, grad.scalar_type(), [&](auto* image, auto* feature) {
    using I = std::remove_pointer_t<decltype(image)>;
    using T = std::remove_pointer_t<decltype(feature)>;
    PerceptualInputParams<I, T> p{};
    p.image_height = height;
    p.image_width = width;
    p.channels = grad.size(1);
    p.height = grad.size(2);
    p.width = grad.size(3);
    p.grad = data<T>(grad);
    p.grad_images = mutable_data<I>(images);
    with_windows(p, scale, true, [&] {
      parallel_for(0, n * height, kGrain / std::max<int64_t>(3 * width, 1),
                   [&](int64_t begin, int64_t end) { FASTINV_ISA_CALL(perceptual_input_backward, p, begin, end); });
    });
  });
  return images;
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) {
  m.impl("perceptual_input", TORCH_BOX(&fastinv::perceptual_input));
  m.impl("perceptual_input_backward", TORCH_BOX(&fastinv::perceptual_input_backward));
}
