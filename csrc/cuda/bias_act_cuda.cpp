// bias_act on CUDA: checks, output, launch, registration.
#include "../common/cuda_stream.h"
#include "bias_act.h"

namespace fastinv {
namespace {

cuda::Dtype cuda_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return cuda::Dtype::float32;
    case ScalarType::Double:
      return cuda::Dtype::float64;
    case ScalarType::Half:
      return cuda::Dtype::float16;
    case ScalarType::BFloat16:
      return cuda::Dtype::bfloat16;
    default:
      throw std::runtime_error(concatenate("bias_act: dtype ", torch::headeronly::toString(dtype),
                                           " has no CUDA kernel; use float32, float64, float16 or bfloat16"));
  }
}

Tensor bias_act_cuda(const Tensor& x_any, const std::optional<Tensor>& b_any, int64_t dim, int64_t act, double alpha,
                     double gain, double clamp) {
  FASTINV_CHECK(x_any.is_cuda(), "bias_act: x must be on a CUDA device");
  FASTINV_CHECK(act >= 0 && act <= 8, "bias_act: act must be a code from 0 to 8, got ", act);
  torch::stable::accelerator::DeviceGuard guard(x_any.get_device_index());
  const Tensor x = in_layout(x_any, prefers_channels_last(x_any));
  Tensor y = torch::stable::empty_like(x);

  cuda::BiasActParams p{};
  p.x = x.const_data_ptr();
  p.y = y.mutable_data_ptr();
  p.dtype = cuda_dtype(x.scalar_type());
  p.n = x.numel();
  p.channels = p.inner = 1;
  p.act = static_cast<int>(act);
  p.alpha = alpha;
  p.gain = gain;
  p.clamp = clamp;
  std::optional<Tensor> b;  // owns the copy that p.b points into
  if (b_any.has_value()) {
    FASTINV_CHECK(dim >= 0 && dim < x.dim(), "bias_act: dim must be in 0..", x.dim() - 1, ", got ", dim);
    FASTINV_CHECK(b_any->dim() == 1 && b_any->numel() == x.size(dim), "bias_act: b must have shape [", x.size(dim),
                  "]");
    FASTINV_CHECK(b_any->is_cuda() && b_any->get_device_index() == x.get_device_index(),
                  "bias_act: b must be on the device of x");
    FASTINV_CHECK(b_any->scalar_type() == x.scalar_type(), "bias_act: b must have the dtype of x");
    b = in_layout(*b_any, false);
    p.b = b->const_data_ptr();
    p.channels = x.size(dim);
    p.inner = p.channels > 1 ? x.stride(dim) : 1;
  }
  const char* error = cuda::bias_act(p, current_cuda_stream(x.get_device_index()));
  FASTINV_CHECK(error == nullptr, "bias_act: CUDA error: ", error);
  return y;
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CUDA, m) { m.impl("bias_act", TORCH_BOX(&fastinv::bias_act_cuda)); }
