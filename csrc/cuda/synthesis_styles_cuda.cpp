// Styles and demodulation on CUDA: checks, outputs, launch, registration.
#include "../common/synthesis_tables.h"
#include "synthesis_styles.h"
#include "torch_cuda.h"

namespace fastinv {
namespace {

static_assert(cuda::kSynthesisLayers == kMostTableEntries);

// Checks a leading tensor and returns its number of samples.
int64_t check_leader(const char* op, const char* name, const Tensor& x, int64_t dims) {
  FASTINV_CHECK(on_cuda(x), op, ": ", name, " must be on a CUDA device");
  FASTINV_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, op, ": ", name,
                " must be float32 or float64, got ", torch::headeronly::toString(x.scalar_type()));
  FASTINV_CHECK(x.dim() == dims, op, ": ", name, " must have ", dims, " dimensions, got ", to_string(sizes_of(x)));
  FASTINV_CHECK(x.size(0) <= 65535, op, ": at most 65535 samples, got ", x.size(0));
  return x.size(0);
}

cuda::StylesParams styles_params(const char* op, const Tensor& weight, const std::vector<int64_t>& rows,
                                 int64_t samples) {
  check_style_rows(op, rows, weight.size(0));
  FASTINV_CHECK(weight.size(1) < kMostIndex, op, ": at most ", kMostIndex - 1, " columns, got ", weight.size(1));
  cuda::StylesParams p{};
  p.weight = weight.const_data_ptr();
  p.dtype = cuda_dtype(op, weight.scalar_type());
  p.samples = samples;
  p.rows = static_cast<int>(weight.size(0));
  p.width = static_cast<int>(weight.size(1));
  p.inputs = static_cast<int>(rows.size()) - 1;
  for (size_t i = 0; i < rows.size(); ++i) p.first_row[i] = static_cast<int>(rows[i]);
  return p;
}

Tensor styles_cuda(const Tensor& w_plus_any, const Tensor& weight_any, const Tensor& bias_any,
                   std::vector<int64_t> rows) {
  const char* op = "synthesis_styles";
  const int64_t samples = check_leader(op, "w_plus", w_plus_any, 3);
  const DeviceGuard guard = device_guard("synthesis_styles", w_plus_any);
  const ScalarType dtype = w_plus_any.scalar_type();
  const Tensor w_plus = in_layout(w_plus_any, false);
  FASTINV_CHECK(weight_any.dim() == 2, op, ": weight must have 2 dimensions, got ", to_string(sizes_of(weight_any)));
  const int64_t row_count = weight_any.size(0);
  const Tensor weight = cuda_operand(op, "weight", weight_any, w_plus, dtype, {row_count, w_plus.size(2)});
  const Tensor bias = cuda_operand(op, "bias", bias_any, w_plus, dtype, {row_count});
  Tensor styles = cuda_empty({samples, row_count}, dtype, w_plus);
  cuda::StylesParams p = styles_params(op, weight, rows, samples);
  FASTINV_CHECK(p.inputs == w_plus.size(1), op, ": rows must have ", w_plus.size(1) + 1, " numbers for w_plus ",
                to_string(sizes_of(w_plus)), ", got ", rows.size());
  p.w_plus = w_plus.const_data_ptr();
  p.bias = bias.const_data_ptr();
  p.styles = styles.mutable_data_ptr();
  check_launch(op, cuda::synthesis_styles(p, cuda_stream_of(w_plus)));
  return styles;
}

Tensor styles_backward_cuda(const Tensor& dstyles_any, const Tensor& weight_any, std::vector<int64_t> rows) {
  const char* op = "synthesis_styles_backward";
  const int64_t samples = check_leader(op, "dstyles", dstyles_any, 2);
  const DeviceGuard guard = device_guard("synthesis_styles_backward", dstyles_any);
  const ScalarType dtype = dstyles_any.scalar_type();
  const Tensor dstyles = in_layout(dstyles_any, false);
  FASTINV_CHECK(weight_any.dim() == 2, op, ": weight must have 2 dimensions, got ", to_string(sizes_of(weight_any)));
  const Tensor weight = cuda_operand(op, "weight", weight_any, dstyles, dtype, {dstyles.size(1), weight_any.size(1)});
  cuda::StylesParams p = styles_params(op, weight, rows, samples);
  Tensor dw_plus = cuda_empty({samples, p.inputs, p.width}, dtype, dstyles);
  p.dstyles = dstyles.const_data_ptr();
  p.dw_plus = dw_plus.mutable_data_ptr();
  check_launch(op, cuda::synthesis_styles_backward(p, cuda_stream_of(dstyles)));
  return dw_plus;
}

cuda::DemodulationParams demodulation_params(const char* op, const Tensor& styles, const Tensor& weight_sumsq,
                                             const std::vector<int64_t>& rows, const std::vector<int64_t>& inputs,
                                             const std::vector<int64_t>& outputs) {
  cuda::DemodulationParams p{};
  p.styles = styles.const_data_ptr();
  p.weight_sumsq = weight_sumsq.const_data_ptr();
  p.dtype = cuda_dtype(op, styles.scalar_type());
  p.samples = styles.size(0);
  p.rows = static_cast<int>(styles.size(1));
  p.layers = static_cast<int>(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    p.row[i] = static_cast<int>(rows[i]);
    p.inputs[i] = static_cast<int>(inputs[i]);
    p.outputs[i] = static_cast<int>(outputs[i]);
  }
  return p;
}

std::tuple<Tensor, Tensor, Tensor> demodulation_cuda(const Tensor& styles_any, const Tensor& weight_sumsq_any,
                                                     std::vector<int64_t> rows, std::vector<int64_t> inputs,
                                                     std::vector<int64_t> outputs, std::vector<double> epsilons,
                                                     bool scale) {
  const char* op = "synthesis_demodulation";
  const int64_t samples = check_leader(op, "styles", styles_any, 2);
  const DeviceGuard guard = device_guard("synthesis_demodulation", styles_any);
  const ScalarType dtype = styles_any.scalar_type();
  const Tensor styles = in_layout(styles_any, false);
  const int64_t all_outputs = check_layers(op, rows, inputs, outputs, styles.size(1), weight_sumsq_any);
  FASTINV_CHECK(epsilons.size() == rows.size(), op, ": ", rows.size(), " rows need as many epsilons, got ",
                epsilons.size());
  const Tensor weight_sumsq =
      cuda_operand(op, "weight_sumsq", weight_sumsq_any, styles, dtype, {weight_sumsq_any.numel()});
  Tensor scaled = cuda_empty(sizes_of(styles), dtype, styles);
  Tensor d = cuda_empty({samples, all_outputs}, dtype, styles);
  Tensor scales = cuda_empty({samples, static_cast<int64_t>(rows.size())}, dtype, styles);
  cuda::DemodulationParams p = demodulation_params(op, styles, weight_sumsq, rows, inputs, outputs);
  for (size_t i = 0; i < epsilons.size(); ++i) p.epsilon[i] = epsilons[i];
  p.scale = scale;
  p.scaled = scaled.mutable_data_ptr();
  p.d = d.mutable_data_ptr();
  p.scales = scales.mutable_data_ptr();
  check_launch(op, cuda::synthesis_demodulation(p, cuda_stream_of(styles)));
  return {scaled, d, scales};
}

Tensor demodulation_backward_cuda(const Tensor& dstyles_any, const Tensor& q_any, const Tensor& styles_any,
                                  const Tensor& scales_any, const Tensor& weight_sumsq_any, std::vector<int64_t> rows,
                                  std::vector<int64_t> inputs, std::vector<int64_t> outputs) {
  const char* op = "synthesis_demodulation_backward";
  const int64_t samples = check_leader(op, "dstyles", dstyles_any, 2);
  const DeviceGuard guard = device_guard("synthesis_demodulation_backward", dstyles_any);
  const ScalarType dtype = dstyles_any.scalar_type();
  const Tensor dstyles = in_layout(dstyles_any, false);
  const int64_t all_outputs = check_layers(op, rows, inputs, outputs, dstyles.size(1), weight_sumsq_any);
  const int64_t layers = static_cast<int64_t>(rows.size());
  const Tensor q = cuda_operand(op, "q", q_any, dstyles, dtype, {samples, all_outputs});
  const Tensor styles = cuda_operand(op, "styles", styles_any, dstyles, dtype, sizes_of(dstyles));
  const Tensor scales = cuda_operand(op, "scales", scales_any, dstyles, dtype, {samples, layers});
  const Tensor weight_sumsq =
      cuda_operand(op, "weight_sumsq", weight_sumsq_any, dstyles, dtype, {weight_sumsq_any.numel()});
  Tensor result = cuda_empty(sizes_of(dstyles), dtype, dstyles);
  cuda::DemodulationParams p = demodulation_params(op, styles, weight_sumsq, rows, inputs, outputs);
  p.dstyles = dstyles.const_data_ptr();
  p.q = q.const_data_ptr();
  p.factors = scales.const_data_ptr();
  p.result = result.mutable_data_ptr();
  check_launch(op, cuda::synthesis_demodulation_backward(p, cuda_stream_of(dstyles)));
  return result;
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, FASTINV_CUDA_KEY, m) {
  m.impl("synthesis_styles", TORCH_BOX(&fastinv::styles_cuda));
  m.impl("synthesis_styles_backward", TORCH_BOX(&fastinv::styles_backward_cuda));
  m.impl("synthesis_demodulation", TORCH_BOX(&fastinv::demodulation_cuda));
  m.impl("synthesis_demodulation_backward", TORCH_BOX(&fastinv::demodulation_backward_cuda));
}
