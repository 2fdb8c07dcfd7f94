// The LPIPS passes on CUDA: checks, outputs, launches, registration.
#include "perceptual.h"
#include "torch_cuda.h"

namespace fastinv {
namespace {

const void* pointer(const std::optional<Tensor>& x) { return x ? x->const_data_ptr() : nullptr; }

void set_sizes(cuda::PerceptualInputParams& p, const char* op, const Tensor& images, const Tensor& features,
               const std::vector<double>& scale, const std::vector<double>& offset) {
  FASTINV_CHECK(images.dim() == 4 && images.size(1) == 3, op, ": images must be [N, 3, H, W], got ",
                to_string(sizes_of(images)));
  FASTINV_CHECK(features.dim() == 4 && features.size(1) >= 3, op, ": features must be [N, C, h, w] with C >= 3, got ",
                to_string(sizes_of(features)));
  FASTINV_CHECK(features.size(2) >= 1 && features.size(3) >= 1 && features.size(2) <= images.size(2) &&
                    features.size(3) <= images.size(3),
                op, ": the features' size must be between 1 and the images', got ", to_string(sizes_of(features)),
                " of images ", to_string(sizes_of(images)));
  FASTINV_CHECK(images.size(2) <= cuda::kPerceptualMostSide && images.size(3) <= cuda::kPerceptualMostSide, op,
                ": pictures of at most ", cuda::kPerceptualMostSide, " pixels a side, got ",
                to_string(sizes_of(images)));
  FASTINV_CHECK(features.size(1) * features.size(2) * features.size(3) < int64_t(1) << 31, op,
                ": a sample must have less than 2^31 elements");
  FASTINV_CHECK(scale.size() == 3 && offset.size() == 3, op, ": scale and offset must be 3 numbers");
  p.image_dtype = cuda_dtype(op, images.scalar_type());
  p.dtype = cuda_dtype(op, features.scalar_type());
  p.n = images.size(0);
  p.image_height = static_cast<int>(images.size(2));
  p.image_width = static_cast<int>(images.size(3));
  p.channels = static_cast<int>(features.size(1));
  p.height = static_cast<int>(features.size(2));
  p.width = static_cast<int>(features.size(3));
  for (int i = 0; i < 4; ++i) p.strides[i] = images.stride(i);
  for (int i = 0; i < 3; ++i) {
    p.scale[i] = scale[i];
    p.offset[i] = offset[i];
  }
}

Tensor perceptual_input(const Tensor& images, const std::vector<double>& scale, const std::vector<double>& offset,
                        int64_t height, int64_t width, int64_t channels, ScalarType dtype) {
  const char* op = "perceptual_input";
  FASTINV_CHECK(on_cuda(images) && images.dim() == 4, op, ": images must be [N, 3, H, W] on a CUDA device");
  const DeviceGuard guard = device_guard("perceptual_input", images);
  const Tensor features = cuda_empty({images.size(0), channels, height, width}, dtype, images, true);
  cuda::PerceptualInputParams p{};
  set_sizes(p, op, images, features, scale, offset);
  p.images = const_cast<void*>(images.const_data_ptr());  // only read
  p.features = features.mutable_data_ptr();
  check_launch(op, cuda::perceptual_input(p, cuda_stream_of(images)));
  return features;
}

Tensor perceptual_input_backward(const Tensor& grad_any, const Tensor& grad_value_any, const std::vector<double>& scale,
                                 int64_t height, int64_t width, ScalarType dtype) {
  const char* op = "perceptual_input_backward";
  FASTINV_CHECK(on_cuda(grad_any) && grad_any.dim() == 4, op, ": grad must be [N, C, h, w] on a CUDA device");
  const DeviceGuard guard = device_guard("perceptual_input_backward", grad_any);
  const Tensor grad = in_layout(grad_any, true);
  const Tensor grad_value =
      cuda_operand(op, "grad_value", grad_value_any, grad, cuda_compute_dtype(grad.scalar_type()), {grad.size(0)});
  const Tensor images = cuda_empty({grad.size(0), 3, height, width}, dtype, grad);
  cuda::PerceptualInputParams p{};
  set_sizes(p, op, images, grad, scale, {0, 0, 0});
  p.images = images.mutable_data_ptr();
  p.features = const_cast<void*>(grad.const_data_ptr());  // only read
  p.grad_value = grad_value.const_data_ptr();
  check_launch(op, cuda::perceptual_input_backward(p, cuda_stream_of(grad)));
  return images;
}

cuda::PerceptualStageParams stage_params(const char* op, const Tensor& features) {
  cuda::PerceptualStageParams p{};
  p.dtype = cuda_dtype(op, features.scalar_type());
  FASTINV_CHECK(cuda::perceptual_channels_fit(p.dtype, features.size(1)), op, ": channels must be a power of two from ",
                cuda::perceptual_vector(p.dtype), " to ", cuda::kPerceptualMostChannels, ", got ", features.size(1));
  FASTINV_CHECK(features.size(1) * features.size(2) * features.size(3) < int64_t(1) << 31, op,
                ": a sample must have less than 2^31 elements, got shape ", to_string(sizes_of(features)));
  p.n = features.size(0);
  p.channels = static_cast<int>(features.size(1));
  p.height = static_cast<int>(features.size(2));
  p.width = static_cast<int>(features.size(3));
  return p;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> perceptual_stage(
    const Tensor& u_any, const std::optional<Tensor>& bias_any, const std::optional<Tensor>& head_any,
    const std::optional<Tensor>& target_any, const std::optional<Tensor>& target_inverse_any,
    const std::optional<Tensor>& pixel_weight_any, bool pool) {
  const char* op = "perceptual_stage";
  FASTINV_CHECK(on_cuda(u_any) && u_any.dim() == 4, op, ": u must be [N, C, H, W] on a CUDA device");
  const DeviceGuard guard = device_guard("perceptual_stage", u_any);
  const Tensor u = aligned(in_layout(u_any, true));
  const ScalarType dtype = u.scalar_type(), compute = cuda_compute_dtype(dtype);
  cuda::PerceptualStageParams p = stage_params(op, u);
  const int64_t n = u.size(0), channels = u.size(1), height = u.size(2), width = u.size(3);
  const bool has_target = target_any.has_value();
  FASTINV_CHECK(!pool || (height >= 2 && width >= 2), op, ": pooling needs at least 2x2 pixels, got ", height, "x",
                width);
  FASTINV_CHECK(head_any.has_value() == has_target && target_inverse_any.has_value() == has_target, op,
                ": head, target and target_inverse come together");
  FASTINV_CHECK(bias_any.has_value(), op, ": the CUDA kernel adds a bias");
  const Tensor bias = aligned(cuda_operand(op, "bias", *bias_any, u, dtype, {channels}));
  std::optional<Tensor> head, target, target_inverse, pixel_weight;
  if (has_target) {
    head = aligned(cuda_operand(op, "head", *head_any, u, compute, {channels}));
    target = aligned(cuda_operand(op, "target", *target_any, u, dtype, sizes_of(u), true));
    target_inverse = cuda_operand(op, "target_inverse", *target_inverse_any, u, compute, {n, height, width});
    if (pixel_weight_any) {
      pixel_weight = cuda_operand(op, "pixel_weight", *pixel_weight_any, u, compute, {n, height, width});
    }
  }
  const Tensor h = cuda_empty(sizes_of(u), dtype, u, true);
  const Tensor pooled =
      pool ? cuda_empty({n, channels, height / 2, width / 2}, dtype, u, true) : cuda_empty({0}, dtype, u);
  const Tensor inverse = cuda_empty({n, height, width}, compute, u);
  const Tensor slope = has_target ? cuda_empty({n, height, width}, compute, u) : cuda_empty({0}, compute, u);
  const int64_t blocks = cuda::perceptual_blocks(p.dtype, p.channels, p.height, p.width);
  const Tensor partial = has_target ? cuda_empty({n, blocks}, compute, u) : cuda_empty({0}, compute, u);
  p.u = u.const_data_ptr();
  p.bias = bias.const_data_ptr();
  p.head = pointer(head);
  p.target = pointer(target);
  p.target_inverse = pointer(target_inverse);
  p.pixel_weight = pointer(pixel_weight);
  p.h = h.mutable_data_ptr();
  p.pooled = pool ? pooled.mutable_data_ptr() : nullptr;
  p.inverse = inverse.mutable_data_ptr();
  p.slope = slope.mutable_data_ptr();
  p.partial = partial.mutable_data_ptr();
  check_launch(op, cuda::perceptual_stage(p, cuda_stream_of(u)));
  return {h, pooled, inverse, slope, partial};
}

Tensor perceptual_stage_backward(const Tensor& h_any, const Tensor& inverse_any, const Tensor& slope_any,
                                 const Tensor& head_any, const Tensor& target_any, const Tensor& target_inverse_any,
                                 const std::optional<Tensor>& pixel_weight_any, const Tensor& grad_value_any,
                                 const std::optional<Tensor>& grad_pooled_any) {
  const char* op = "perceptual_stage_backward";
  FASTINV_CHECK(on_cuda(h_any) && h_any.dim() == 4, op, ": h must be [N, C, H, W] on a CUDA device");
  const DeviceGuard guard = device_guard("perceptual_stage_backward", h_any);
  const Tensor h = aligned(in_layout(h_any, true));
  const ScalarType dtype = h.scalar_type(), compute = cuda_compute_dtype(dtype);
  cuda::PerceptualStageParams p = stage_params(op, h);
  const int64_t n = h.size(0), channels = h.size(1), height = h.size(2), width = h.size(3);
  const std::vector<int64_t> pixels = {n, height, width};
  const Tensor inverse = cuda_operand(op, "inverse", inverse_any, h, compute, pixels);
  const Tensor slope = cuda_operand(op, "slope", slope_any, h, compute, pixels);
  const Tensor head = aligned(cuda_operand(op, "head", head_any, h, compute, {channels}));
  const Tensor target = aligned(cuda_operand(op, "target", target_any, h, dtype, sizes_of(h), true));
  const Tensor target_inverse = cuda_operand(op, "target_inverse", target_inverse_any, h, compute, pixels);
  const Tensor grad_value = cuda_operand(op, "grad_value", grad_value_any, h, compute, {n});
  std::optional<Tensor> pixel_weight, grad_pooled;
  if (pixel_weight_any) pixel_weight = cuda_operand(op, "pixel_weight", *pixel_weight_any, h, compute, pixels);
  if (grad_pooled_any) {
    grad_pooled = aligned(
        cuda_operand(op, "grad_pooled", *grad_pooled_any, h, dtype, {n, channels, height / 2, width / 2}, true));
  }
  const Tensor grad = cuda_empty(sizes_of(h), dtype, h, true);
  p.h = const_cast<void*>(h.const_data_ptr());  // h, inverse and slope are only read here
  p.inverse = const_cast<void*>(inverse.const_data_ptr());
  p.slope = const_cast<void*>(slope.const_data_ptr());
  p.head = head.const_data_ptr();
  p.target = target.const_data_ptr();
  p.target_inverse = target_inverse.const_data_ptr();
  p.pixel_weight = pointer(pixel_weight);
  p.grad_value = grad_value.const_data_ptr();
  p.grad_pooled = pointer(grad_pooled);
  p.grad = grad.mutable_data_ptr();
  check_launch(op, cuda::perceptual_stage_backward(p, cuda_stream_of(h)));
  return grad;
}

Tensor perceptual_sum(const std::vector<Tensor>& partials) {
  const char* op = "perceptual_sum";
  FASTINV_CHECK(!partials.empty() && partials.size() <= cuda::kPerceptualMostPartials, op, ": 1 to ",
                cuda::kPerceptualMostPartials, " tensors, got ", partials.size());
  const Tensor& first = partials[0];
  FASTINV_CHECK(on_cuda(first) && first.dim() == 2, op, ": partials must be [N, K] on a CUDA device");
  const ScalarType dtype = first.scalar_type();
  FASTINV_CHECK(dtype == cuda_compute_dtype(dtype), op, ": partials must be float32 or float64, got ",
                torch::headeronly::toString(dtype));
  const DeviceGuard guard = device_guard("perceptual_sum", first);
  cuda::PerceptualSumParams p{};
  p.dtype = cuda_dtype(op, dtype);
  p.n = first.size(0);
  p.count = static_cast<int>(partials.size());
  std::vector<Tensor> kept;  // owns the copies that p points into
  for (int i = 0; i < p.count; ++i) {
    FASTINV_CHECK(partials[i].dim() == 2, op, ": partials must be [N, K], got ", to_string(sizes_of(partials[i])));
    p.columns[i] = partials[i].size(1);
    kept.push_back(cuda_operand(op, "partials", partials[i], first, dtype, {p.n, p.columns[i]}));
    p.partials[i] = kept.back().const_data_ptr();
  }
  const Tensor values = cuda_empty({p.n}, dtype, first);
  p.values = values.mutable_data_ptr();
  check_launch(op, cuda::perceptual_sum(p, cuda_stream_of(first)));
  return values;
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, FASTINV_CUDA_KEY, m) {
  m.impl("perceptual_input", TORCH_BOX(&fastinv::perceptual_input));
  m.impl("perceptual_input_backward", TORCH_BOX(&fastinv::perceptual_input_backward));
  m.impl("perceptual_stage", TORCH_BOX(&fastinv::perceptual_stage));
  m.impl("perceptual_stage_backward", TORCH_BOX(&fastinv::perceptual_stage_backward));
  m.impl("perceptual_sum", TORCH_BOX(&fastinv::perceptual_sum));
}
