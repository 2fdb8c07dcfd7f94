// The ends of LPIPS's stages on the CPU: checks, outputs, threads. The twin of csrc/cuda/perceptual_cuda.cpp.
#include "perceptual.h"

#include <algorithm>

#include "../common/stable.h"

namespace fastinv {
namespace {

constexpr int64_t kGrain = 32768;  // elements a thread is worth waking up for

ScalarType compute_dtype(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

std::vector<int64_t> sizes_of(const Tensor& x) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < x.dim(); ++i) sizes.push_back(x.size(i));
  return sizes;
}

// `x` made dense; an error unless it is on the CPU and has this dtype and these sizes.
Tensor operand(const char* name, const Tensor& x, ScalarType dtype, const std::vector<int64_t>& sizes) {
  FASTINV_CHECK(x.is_cpu() && x.scalar_type() == dtype && sizes_of(x) == sizes, "perceptual_stage: ", name, " must be ",
                torch::headeronly::toString(dtype), " on the CPU and fit the features");
  return in_layout(x, sizes.size() == 4);
}
std::optional<Tensor> operand(const char* name, const std::optional<Tensor>& x, ScalarType dtype,
                              const std::vector<int64_t>& sizes) {
  return x ? std::optional<Tensor>(operand(name, *x, dtype, sizes)) : x;
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& x) {
  return x ? data<T>(*x) : nullptr;
}

template <class T, class Run>
void over_rows(const PerceptualStageParams<T>& p, int64_t samples, const Run& run) {
  const int64_t pair = 2 * p.width * p.channels;
  parallel_for(0, samples * ((p.height + 1) / 2), kGrain / std::max<int64_t>(pair, 1), run);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> perceptual_stage(
    const Tensor& u_any, const std::optional<Tensor>& bias_any, const std::optional<Tensor>& head_any,
    const std::optional<Tensor>& target_any, const std::optional<Tensor>& target_inverse_any,
    const std::optional<Tensor>& pixel_weight_any, bool pool) {
  FASTINV_CHECK(u_any.dim() == 4, "perceptual_stage: u must be [N, C, H, W]");
  const Tensor u = in_layout(u_any, true);
  const ScalarType dtype = u.scalar_type(), compute = compute_dtype(dtype);
  const int64_t n = u.size(0), channels = u.size(1), height = u.size(2), width = u.size(3);
  const std::vector<int64_t> pixels = {n, height, width};
  const bool has_target = target_any.has_value();
  FASTINV_CHECK(!pool || (height >= 2 && width >= 2), "perceptual_stage: pooling needs at least 2x2 pixels, got ",
                height, "x", width);
  FASTINV_CHECK(head_any.has_value() == has_target && target_inverse_any.has_value() == has_target,
                "perceptual_stage: head, target and target_inverse come together");
  const std::optional<Tensor> bias = operand("bias", bias_any, dtype, {channels});
  const std::optional<Tensor> head = operand("head", head_any, compute, {channels});
  const std::optional<Tensor> target = operand("target", target_any, dtype, sizes_of(u));
  const std::optional<Tensor> target_inverse = operand("target_inverse", target_inverse_any, compute, pixels);
  const std::optional<Tensor> pixel_weight = operand("pixel_weight", pixel_weight_any, compute, pixels);
  const std::vector<int64_t> none = {0};
  const Tensor h = bias ? empty(sizes_of(u), dtype, true) : empty(none, dtype);  // without a bias u is h
  const Tensor pooled = pool ? empty({n, channels, height / 2, width / 2}, dtype, true) : empty(none, dtype);
  const Tensor inverse = empty(pixels, compute);
  const Tensor slope = empty(has_target ? pixels : none, compute);
  const Tensor partial = empty(has_target ? std::vector<int64_t>{n, (height + 1) / 2} : none, compute);
  FASTINV_DISPATCH(dtype, "perceptual_stage", [&] {
    using C = compute_t<scalar_t>;
    std::vector<C> bias_values(bias ? channels : 0);
    for (size_t c = 0; c < bias_values.size(); ++c) bias_values[c] = load(data<scalar_t>(*bias)[c]);
    PerceptualStageParams<scalar_t> p{};
    p.channels = channels;
    p.height = height;
    p.width = width;
    p.u = data<scalar_t>(u);
    p.bias = bias ? bias_values.data() : nullptr;
    p.head = data_or_null<C>(head);
    p.target = data_or_null<scalar_t>(target);
    p.target_inverse = data_or_null<C>(target_inverse);
    p.pixel_weight = data_or_null<C>(pixel_weight);
    p.h = bias ? mutable_data<scalar_t>(h) : const_cast<scalar_t*>(data<scalar_t>(u));  // u is only read
    p.pooled = pool ? mutable_data<scalar_t>(pooled) : nullptr;
    p.inverse = mutable_data<C>(inverse);
    p.slope = mutable_data<C>(slope);
    p.partial = mutable_data<C>(partial);
    over_rows(p, n, [&](int64_t begin, int64_t end) { FASTINV_ISA_CALL(perceptual_stage, p, begin, end); });
  });
  return {h, pooled, inverse, slope, partial};
}

Tensor perceptual_stage_backward(const Tensor& h_any, const Tensor& inverse_any, const Tensor& slope_any,
                                 const Tensor& head_any, const Tensor& target_any, const Tensor& target_inverse_any,
                                 const std::optional<Tensor>& pixel_weight_any, const Tensor& grad_value_any,
                                 const std::optional<Tensor>& grad_pooled_any) {
  FASTINV_CHECK(h_any.dim() == 4, "perceptual_stage_backward: h must be [N, C, H, W]");
  const Tensor h = in_layout(h_any, true);
  const ScalarType dtype = h.scalar_type(), compute = compute_dtype(dtype);
  const int64_t n = h.size(0), channels = h.size(1), height = h.size(2), width = h.size(3);
  const std::vector<int64_t> pixels = {n, height, width};
  const Tensor inverse = operand("inverse", inverse_any, compute, pixels);
  const Tensor slope = operand("slope", slope_any, compute, pixels);
  const Tensor head = operand("head", head_any, compute, {channels});
  const Tensor target = operand("target", target_any, dtype, sizes_of(h));
  const Tensor target_inverse = operand("target_inverse", target_inverse_any, compute, pixels);
  const std::optional<Tensor> pixel_weight = operand("pixel_weight", pixel_weight_any, compute, pixels);
  const Tensor grad_value = operand("grad_value", grad_value_any, compute, {n});
  const std::optional<Tensor> grad_pooled =
      operand("grad_pooled", grad_pooled_any, dtype, {n, channels, height / 2, width / 2});
  const Tensor grad = empty(sizes_of(h), dtype, true);
  FASTINV_DISPATCH(dtype, "perceptual_stage_backward", [&] {
    using C = compute_t<scalar_t>;
    PerceptualStageParams<scalar_t> p{};
    p.channels = channels;
    p.height = height;
    p.width = width;
    p.h = const_cast<scalar_t*>(data<scalar_t>(h));  // h, inverse and slope are only read here
    p.inverse = const_cast<C*>(data<C>(inverse));
    p.slope = const_cast<C*>(data<C>(slope));
    p.head = data<C>(head);
    p.target = data<scalar_t>(target);
    p.target_inverse = data<C>(target_inverse);
    p.pixel_weight = data_or_null<C>(pixel_weight);
    p.grad_value = data<C>(grad_value);
    p.grad_pooled = data_or_null<scalar_t>(grad_pooled);
    p.grad = mutable_data<scalar_t>(grad);
    over_rows(p, n, [&](int64_t begin, int64_t end) { FASTINV_ISA_CALL(perceptual_stage_backward, p, begin, end); });
  });
  return grad;
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) {
  m.impl("perceptual_stage", TORCH_BOX(&fastinv::perceptual_stage));
  m.impl("perceptual_stage_backward", TORCH_BOX(&fastinv::perceptual_stage_backward));
}
