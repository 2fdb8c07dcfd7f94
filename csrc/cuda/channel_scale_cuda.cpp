// modulated_conv2d_scale and modulated_conv2d_dot on CUDA: checks, outputs, launch, registration. The convolution
// between them is composed in fastinv/ops/modulated_conv2d.py.
#include "channel_scale.h"
#include "torch_cuda.h"

namespace fastinv {
namespace {

void check_picture(const char* op, const Tensor& x, bool channels_last) {
  constexpr int64_t most_channels = int64_t(1) << 22;  // walk_most_channels
  FASTINV_CHECK(x.dim() == 4, op, ": tensors must be [N, C, H, W], got ", x.dim(), " dimensions");
  FASTINV_CHECK(!channels_last || x.size(1) <= most_channels, op, ": at most ", most_channels,
                " channels in channels_last, got ", x.size(1));
}

// fastinv::modulated_conv2d_scale(Tensor x, Tensor scale) -> Tensor
Tensor channel_scale(const Tensor& x_any, const Tensor& scale_any) {
  const char* op = "modulated_conv2d_scale";
  const bool channels_last = prefers_channels_last(x_any);
  check_picture(op, x_any, channels_last);
  const DeviceGuard guard = device_guard(op, x_any);
  const Tensor x = in_layout(x_any, channels_last);
  const ScalarType dtype = x.scalar_type();
  const Tensor scale = cuda_operand(op, "scale", scale_any, x, cuda_compute_dtype(dtype), {x.size(0), x.size(1)});
  Tensor out = cuda_empty(sizes_of(x), dtype, x, channels_last);
  const cuda::ChannelScaleParams p{cuda_dtype(op, dtype),  x.const_data_ptr(), scale.const_data_ptr(),
                                   out.mutable_data_ptr(), x.size(0),          x.size(1),
                                   x.size(2) * x.size(3),  channels_last};
  check_launch(op, cuda::channel_scale(p, cuda_stream_of(x)));
  return out;
}

// fastinv::modulated_conv2d_dot(Tensor a, Tensor b) -> Tensor
Tensor channel_dot(const Tensor& a_any, const Tensor& b_any) {
  const char* op = "modulated_conv2d_dot";
  const bool channels_last = prefers_channels_last(a_any);
  check_picture(op, a_any, channels_last);
  const DeviceGuard guard = device_guard(op, a_any);
  const Tensor a = in_layout(a_any, channels_last);
  const ScalarType dtype = a.scalar_type(), compute = cuda_compute_dtype(dtype);
  const Tensor b = cuda_operand(op, "b", b_any, a, dtype, sizes_of(a), channels_last);
  Tensor out = cuda_empty({a.size(0), a.size(1)}, compute, a);
  cuda::ChannelDotParams p{cuda_dtype(op, dtype),
                           a.const_data_ptr(),
                           b.const_data_ptr(),
                           out.mutable_data_ptr(),
                           nullptr,
                           a.size(0),
                           a.size(1),
                           a.size(2) * a.size(3),
                           channels_last};
  const int64_t size_of_one = dtype == ScalarType::Double ? 8 : 4;
  Tensor partials = cuda_empty({cuda::channel_dot_workspace(p) / size_of_one}, compute, a);
  p.partials = partials.mutable_data_ptr();
  check_launch(op, cuda::channel_dot(p, cuda_stream_of(a)));
  return out;
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, FASTINV_CUDA_KEY, m) {
  m.impl("modulated_conv2d_scale", TORCH_BOX(&fastinv::channel_scale));
  m.impl("modulated_conv2d_dot", TORCH_BOX(&fastinv::channel_dot));
}
