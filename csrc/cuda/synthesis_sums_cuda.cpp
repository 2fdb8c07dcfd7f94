// style_gradients and gradient_scale on CUDA: checks, outputs, scratch, launch, registration.
#include "../common/synthesis_tables.h"
#include "synthesis_sums.h"
#include "torch_cuda.h"

namespace fastinv {
namespace {

static_assert(cuda::kSumLayers == kMostTableEntries);

void check_leader(const char* op, const char* name, const Tensor& x) {
  FASTINV_CHECK(on_cuda(x), op, ": ", name, " must be on a CUDA device");
  FASTINV_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, op, ": ", name,
                " must be float32 or float64, got ", torch::headeronly::toString(x.scalar_type()));
  FASTINV_CHECK(x.dim() > 0 && x.size(0) <= 65535, op, ": at most 65535 samples, got ", to_string(sizes_of(x)));
}

std::tuple<Tensor, Tensor> style_gradients_cuda(std::vector<Tensor> sums, const Tensor& d_any, const Tensor& bias_any,
                                                const std::optional<Tensor>& unscale_any,
                                                std::vector<int64_t> next_rows, std::vector<int64_t> rgb_rows,
                                                std::vector<int64_t> first_outputs, int64_t count) {
  const char* op = "synthesis_style_gradients";
  check_leader(op, "d", d_any);
  FASTINV_CHECK(d_any.dim() == 2, op, ": d must have 2 dimensions, got ", to_string(sizes_of(d_any)));
  const DeviceGuard guard = device_guard("synthesis_style_gradients", d_any);
  const ScalarType dtype = d_any.scalar_type();
  const Tensor d = in_layout(d_any, false);
  const int64_t samples = d.size(0), outputs = d.size(1);
  check_sums(op, sums, next_rows, rgb_rows, first_outputs, samples, outputs, count);
  const Tensor bias = cuda_operand(op, "bias", bias_any, d, dtype, {outputs});
  std::optional<Tensor> unscale;
  if (unscale_any) unscale = cuda_operand(op, "unscale", *unscale_any, d, dtype, {samples});
  Tensor dstyles = cuda_empty({samples, count}, dtype, d);
  Tensor q = cuda_empty({samples, outputs}, dtype, d);

  cuda::StyleGradientsParams p{};
  int64_t partials = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i] = cuda_operand(op, "sums", sums[i], d, dtype, sizes_of(sums[i]));
    cuda::SumLayer& layer = p.layers[i];
    layer.sums = sums[i].const_data_ptr();
    layer.tiles = static_cast<int>(sums[i].size(1));
    layer.planes = static_cast<int>(sums[i].size(2));
    layer.channels = static_cast<int>(sums[i].size(3));
    layer.next_row = static_cast<int>(next_rows[i]);
    layer.rgb_row = static_cast<int>(rgb_rows[i]);
    layer.first_output = static_cast<int>(first_outputs[i]);
    partials += static_cast<int64_t>(cuda::sum_chunks(layer.tiles)) * layer.planes * layer.channels;
  }
  Tensor scratch = cuda_empty({samples, partials}, ScalarType::Double, d);
  p.d = d.const_data_ptr();
  p.bias = bias.const_data_ptr();
  p.unscale = unscale ? unscale->const_data_ptr() : nullptr;
  p.partial = mutable_data<double>(scratch);
  p.dstyles = dstyles.mutable_data_ptr();
  p.q = q.mutable_data_ptr();
  p.dtype = cuda_dtype(op, dtype);
  p.samples = samples;
  p.layer_count = static_cast<int>(sums.size());
  p.rows = static_cast<int>(count);
  p.outputs = static_cast<int>(outputs);
  check_launch(op, cuda::synthesis_style_gradients(p, cuda_stream_of(d)));
  return {dstyles, q};
}

std::tuple<Tensor, Tensor> gradient_scale_cuda(const Tensor& dimage_any) {
  const char* op = "synthesis_gradient_scale";
  check_leader(op, "dimage", dimage_any);
  FASTINV_CHECK(dimage_any.dim() == 4 && (dimage_any.numel() > 0 || dimage_any.size(0) == 0), op,
                ": dimage must be [N, 3, H, W] with pixels, got ", to_string(sizes_of(dimage_any)));
  const DeviceGuard guard = device_guard("synthesis_gradient_scale", dimage_any);
  const ScalarType dtype = dimage_any.scalar_type();
  const Tensor dimage = in_layout(dimage_any, false);
  Tensor scaled = cuda_empty(sizes_of(dimage), dtype, dimage);
  cuda::GradientScaleParams p{};
  p.samples = dimage.size(0);
  p.elements = p.samples > 0 ? dimage.numel() / p.samples : 0;
  Tensor inverse = cuda_empty({p.samples}, dtype, dimage);
  Tensor largest = cuda_empty({p.samples, cuda::scale_tiles(p.elements)}, dtype, dimage);
  p.gradient = dimage.const_data_ptr();
  p.scaled = scaled.mutable_data_ptr();
  p.inverse = inverse.mutable_data_ptr();
  p.largest = largest.mutable_data_ptr();
  p.dtype = cuda_dtype(op, dtype);
  check_launch(op, cuda::synthesis_gradient_scale(p, cuda_stream_of(dimage)));
  return {scaled, inverse};
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, FASTINV_CUDA_KEY, m) {
  m.impl("synthesis_style_gradients", TORCH_BOX(&fastinv::style_gradients_cuda));
  m.impl("synthesis_gradient_scale", TORCH_BOX(&fastinv::gradient_scale_cuda));
}
