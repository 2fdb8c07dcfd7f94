// upfirdn2d on CUDA: checks, output, scratch, launch, registration.
#include "torch_cuda.h"
#include "upfirdn2d.h"

namespace fastinv {
namespace {

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

Tensor upfirdn2d_cuda(const Tensor& x_any, const Tensor& f_any, int64_t up_x, int64_t up_y, int64_t down_x,
                      int64_t down_y, int64_t pad_x0, int64_t pad_x1, int64_t pad_y0, int64_t pad_y1, bool flip_filter,
                      double gain) {
  FASTINV_CHECK(on_cuda(x_any), "upfirdn2d: x must be on a CUDA device");
  FASTINV_CHECK(x_any.dim() == 4, "upfirdn2d: x must be [N, C, H, W], got ", x_any.dim(), " dimensions");
  FASTINV_CHECK((f_any.dim() == 1 || f_any.dim() == 2) && f_any.numel() > 0,
                "upfirdn2d: f must be a non-empty 1-D or 2-D float32 tensor, got shape ", to_string(sizes_of(f_any)));
  FASTINV_CHECK(up_x >= 1 && up_y >= 1 && down_x >= 1 && down_y >= 1,
                "upfirdn2d: up and down must be at least 1, got up (", up_x, ", ", up_y, "), down (", down_x, ", ",
                down_y, ")");
  const DeviceGuard guard = device_guard("upfirdn2d", x_any);
  const bool channels_last = prefers_channels_last(x_any);
  const Tensor x = in_layout(x_any, channels_last);
  const Tensor f = cuda_operand("upfirdn2d", "f", f_any, x, ScalarType::Float, sizes_of(f_any));

  const int64_t width = f.size(f.dim() - 1), height = f.size(0);
  const int64_t n = x.size(0), channels = x.size(1), in_h = x.size(2), in_w = x.size(3);
  const int64_t out_w = floor_divide(in_w * up_x + pad_x0 + pad_x1 - width, down_x) + 1;
  const int64_t out_h = floor_divide(in_h * up_y + pad_y0 + pad_y1 - height, down_y) + 1;
  FASTINV_CHECK(out_w >= 1 && out_h >= 1, "upfirdn2d: padding leaves no output for x of ", in_h, " x ", in_w,
                " and a filter of ", height, " x ", width);
  Tensor y = cuda_empty({n, channels, out_h, out_w}, x.scalar_type(), x, channels_last);

  cuda::Upfirdn2dParams p{};
  p.input = x.const_data_ptr();
  p.output = y.mutable_data_ptr();
  p.filter = data<float>(f);
  p.dtype = cuda_dtype("upfirdn2d", x.scalar_type());
  p.images = channels_last ? n : n * channels;
  p.channels = channels_last ? channels : 1;
  p.x = {in_w, out_w, up_x, down_x, pad_x0, width};
  p.y = {in_h, out_h, up_y, down_y, pad_y0, height};
  p.one_dimensional = f.dim() == 1;
  p.flip_filter = flip_filter;
  p.gain = gain;
  std::optional<Tensor> between;  // owns what p.between points to until the launch; the allocator keeps the order after
  if (const int64_t bytes = cuda::upfirdn2d_between_bytes(p)) {
    between = cuda_empty({bytes}, ScalarType::Byte, x);
    p.between = between->mutable_data_ptr();
  }
  check_launch("upfirdn2d", cuda::upfirdn2d(p, cuda_stream_of(x)));
  return y;
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, FASTINV_CUDA_KEY, m) { m.impl("upfirdn2d", TORCH_BOX(&fastinv::upfirdn2d_cuda)); }
