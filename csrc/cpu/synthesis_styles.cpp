// Styles, demodulation and their sums on the CPU: checks, outputs, threads. See fastinv/ops/synthesis.py.
#include "synthesis_styles.h"

#include <algorithm>
#include <cmath>

#include "../common/synthesis_tables.h"
#include "modulated_conv2d.h"  // small_operand

namespace fastinv {
namespace {

constexpr int64_t kGrain = 32768;  // multiplications a thread is worth waking up for
constexpr int64_t kColumnBlock = 64;

ScalarType check_leader(const char* op, const char* name, const Tensor& x, int64_t dims) {
  const ScalarType dtype = x.scalar_type();
  FASTINV_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": ", name,
                " must be float32 or float64, got ", torch::headeronly::toString(dtype));
  FASTINV_CHECK(x.dim() == dims, op, ": ", name, " must have ", dims, " dimensions, got ", x.dim());
  return dtype;
}

// run(T()) with the element type.
template <class Run>
void with_type(ScalarType dtype, const Run& run) {
  if (dtype == ScalarType::Double) return run(double());
  run(float());
}

// The exponent e with `largest` in [2^(e - 1), 2^e), within +-120; 0 for zero, infinity and NaN.
template <class T>
int scale_exponent(T largest) {
  if (!(largest > 0) || !std::isfinite(largest)) return 0;
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::clamp(exponent, -120, 120);
}

template <class T>
void multiply_columns(const MatrixProduct<T>& p) {
  parallel_for(0, p.rows, kGrain / (p.width * p.samples + 1),
               [&](int64_t begin, int64_t end) { FASTINV_ISA_CALL(times_columns, p, begin, end); });
}

template <class T>
void multiply_rows(const MatrixProduct<T>& p) {
  const int64_t blocks = (p.width + kColumnBlock - 1) / kColumnBlock;
  parallel_for(0, blocks, kGrain / (kColumnBlock * p.rows * p.samples + 1), [&](int64_t begin, int64_t end) {
    FASTINV_ISA_CALL(times_rows, p, begin * kColumnBlock, std::min(end * kColumnBlock, p.width));
  });
}

Tensor styles_cpu(const Tensor& w_plus_any, const Tensor& weight_any, const Tensor& bias_any,
                  std::vector<int64_t> rows) {
  const char* op = "synthesis_styles";
  const ScalarType dtype = check_leader(op, "w_plus", w_plus_any, 3);
  const Tensor w_plus = in_layout(w_plus_any, false);
  FASTINV_CHECK(weight_any.dim() == 2, op, ": weight must have 2 dimensions, got ", weight_any.dim());
  const int64_t samples = w_plus.size(0), inputs = w_plus.size(1), width = w_plus.size(2), count = weight_any.size(0);
  const Tensor weight = small_operand(op, "weight", weight_any, {count, width}, dtype);
  const Tensor bias = small_operand(op, "bias", bias_any, {count}, dtype);
  check_style_rows(op, rows, count);
  FASTINV_CHECK(static_cast<int64_t>(rows.size()) == inputs + 1, op, ": rows must have ", inputs + 1,
                " numbers for w_plus with ", inputs, " inputs, got ", rows.size());
  Tensor styles = empty({samples, count}, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    T* out = mutable_data<T>(styles);
    for (int64_t i = 0; i < inputs; ++i) {
      multiply_columns<T>({data<T>(weight) + rows[i] * width, rows[i + 1] - rows[i], width, data<T>(w_plus) + i * width,
                           out + rows[i], samples, inputs * width, count});
    }
    for (int64_t n = 0; n < samples; ++n) {
      for (int64_t r = 0; r < count; ++r) out[n * count + r] += data<T>(bias)[r];
    }
  });
  return styles;
}

Tensor styles_backward_cpu(const Tensor& dstyles_any, const Tensor& weight_any, std::vector<int64_t> rows) {
  const char* op = "synthesis_styles_backward";
  const ScalarType dtype = check_leader(op, "dstyles", dstyles_any, 2);
  const Tensor dstyles = in_layout(dstyles_any, false);
  FASTINV_CHECK(weight_any.dim() == 2, op, ": weight must have 2 dimensions, got ", weight_any.dim());
  const int64_t samples = dstyles.size(0), count = dstyles.size(1), width = weight_any.size(1);
  const Tensor weight = small_operand(op, "weight", weight_any, {count, width}, dtype);
  check_style_rows(op, rows, count);
  const int64_t inputs = static_cast<int64_t>(rows.size()) - 1;
  Tensor dw_plus = empty({samples, inputs, width}, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < inputs; ++i) {
      multiply_rows<T>({data<T>(weight) + rows[i] * width, rows[i + 1] - rows[i], width, data<T>(dstyles) + rows[i],
                        mutable_data<T>(dw_plus) + i * width, samples, count, inputs * width});
    }
  });
  return dw_plus;
}

std::tuple<Tensor, Tensor, Tensor> demodulation_cpu(const Tensor& styles_any, const Tensor& weight_sumsq_any,
                                                    std::vector<int64_t> rows, std::vector<int64_t> inputs,
                                                    std::vector<int64_t> outputs, std::vector<double> epsilons,
                                                    bool scale) {
  const char* op = "synthesis_demodulation";
  const ScalarType dtype = check_leader(op, "styles", styles_any, 2);
  const Tensor styles = in_layout(styles_any, false);
  const int64_t samples = styles.size(0), count = styles.size(1), layers = static_cast<int64_t>(rows.size());
  const int64_t all_outputs = check_layers(op, rows, inputs, outputs, count, weight_sumsq_any);
  FASTINV_CHECK(epsilons.size() == rows.size(), op, ": ", layers, " rows need as many epsilons, got ", epsilons.size());
  const Tensor weight_sumsq = small_operand(op, "weight_sumsq", weight_sumsq_any, {weight_sumsq_any.numel()}, dtype);
  Tensor scaled = empty({samples, count}, dtype), d = empty({samples, all_outputs}, dtype);
  Tensor scales = empty({samples, layers}, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    T *to = mutable_data<T>(scaled), *coefficients = mutable_data<T>(d), *factors = mutable_data<T>(scales);
    const T* weights = data<T>(weight_sumsq);
    std::copy(data<T>(styles), data<T>(styles) + samples * count, to);
    std::vector<T> squares(samples * count);
    for (int64_t i = 0, first = 0; i < layers; ++i) {
      for (int64_t n = 0; n < samples; ++n) {
        T* own = to + n * count + rows[i];
        const int exponent = scale ? scale_exponent(FASTINV_ISA_CALL(largest_magnitude, own, inputs[i])) : 0;
        factors[n * layers + i] = std::ldexp(T(1), -exponent);
        for (int64_t k = 0; k < inputs[i]; ++k) {
          own[k] *= factors[n * layers + i];
          squares[n * count + k] = own[k] * own[k];
        }
      }
      multiply_columns<T>(
          {weights, outputs[i], inputs[i], squares.data(), coefficients + first, samples, count, all_outputs});
      const T epsilon = static_cast<T>(epsilons[i]);
      for (int64_t n = 0; n < samples; ++n) {
        const T factor = factors[n * layers + i];
        T* own = coefficients + n * all_outputs + first;
        for (int64_t o = 0; o < outputs[i]; ++o) own[o] = T(1) / std::sqrt(own[o] + epsilon * (factor * factor));
      }
      weights += inputs[i] * outputs[i];
      first += outputs[i];
    }
  });
  return {scaled, d, scales};
}

Tensor demodulation_backward_cpu(const Tensor& dstyles_any, const Tensor& q_any, const Tensor& styles_any,
                                 const Tensor& scales_any, const Tensor& weight_sumsq_any, std::vector<int64_t> rows,
                                 std::vector<int64_t> inputs, std::vector<int64_t> outputs) {
  const char* op = "synthesis_demodulation_backward";
  const ScalarType dtype = check_leader(op, "dstyles", dstyles_any, 2);
  const Tensor dstyles = in_layout(dstyles_any, false);
  const int64_t samples = dstyles.size(0), count = dstyles.size(1), layers = static_cast<int64_t>(rows.size());
  const int64_t all_outputs = check_layers(op, rows, inputs, outputs, count, weight_sumsq_any);
  const Tensor q = small_operand(op, "q", q_any, {samples, all_outputs}, dtype);
  const Tensor styles = small_operand(op, "styles", styles_any, {samples, count}, dtype);
  const Tensor scales = small_operand(op, "scales", scales_any, {samples, layers}, dtype);
  const Tensor weight_sumsq = small_operand(op, "weight_sumsq", weight_sumsq_any, {weight_sumsq_any.numel()}, dtype);
  Tensor result = empty({samples, count}, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    T* to = mutable_data<T>(result);
    const T* weights = data<T>(weight_sumsq);
    std::copy(data<T>(dstyles), data<T>(dstyles) + samples * count, to);
    std::vector<T> through_d(samples * count);
    for (int64_t i = 0, first = 0; i < layers; ++i) {
      multiply_rows<T>(
          {weights, outputs[i], inputs[i], data<T>(q) + first, through_d.data(), samples, all_outputs, count});
      for (int64_t n = 0; n < samples; ++n) {
        T* own = to + n * count + rows[i];
        const T* style = data<T>(styles) + n * count + rows[i];
        const T factor = data<T>(scales)[n * layers + i];
        for (int64_t k = 0; k < inputs[i]; ++k) own[k] = (own[k] - style[k] * through_d[n * count + k]) * factor;
      }
      weights += inputs[i] * outputs[i];
      first += outputs[i];
    }
  });
  return result;
}

std::tuple<Tensor, Tensor> style_gradients_cpu(std::vector<Tensor> sums, const Tensor& d_any, const Tensor& bias_any,
                                               const std::optional<Tensor>& unscale_any, std::vector<int64_t> next_rows,
                                               std::vector<int64_t> rgb_rows, std::vector<int64_t> first_outputs,
                                               int64_t count) {
  const char* op = "synthesis_style_gradients";
  const ScalarType dtype = check_leader(op, "d", d_any, 2);
  const Tensor d = in_layout(d_any, false);
  const int64_t samples = d.size(0), outputs = d.size(1), layers = static_cast<int64_t>(sums.size());
  check_sums(op, sums, next_rows, rgb_rows, first_outputs, samples, outputs, count);
  const Tensor bias = small_operand(op, "bias", bias_any, {outputs}, dtype);
  std::optional<Tensor> unscale;
  if (unscale_any) unscale = small_operand(op, "unscale", *unscale_any, {samples}, dtype);
  for (Tensor& part : sums) {
    part = small_operand(op, "sums", part, {samples, part.size(1), part.size(2), part.size(3)}, dtype);
  }
  Tensor dstyles = empty({samples, count}, dtype), q = empty({samples, outputs}, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    std::fill_n(mutable_data<T>(dstyles), samples * count, T(0));
    std::fill_n(mutable_data<T>(q), samples * outputs, T(0));
    parallel_for(0, layers * samples, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t i = unit / samples, n = unit % samples;
        const int64_t tiles = sums[i].size(1), planes = sums[i].size(2), channels = sums[i].size(3);
        std::vector<double> total(5 * channels, 0.0);
        FASTINV_ISA_CALL(add_rows, data<T>(sums[i]) + n * tiles * planes * channels, tiles, planes * channels,
                         total.data());
        if (unscale) {
          for (double& value : total) value *= data<T>(*unscale)[n];
        }
        for (int64_t c = 0; c < channels; ++c) {
          T* row = mutable_data<T>(dstyles) + n * count + c;
          if (next_rows[i] >= 0) row[next_rows[i]] = static_cast<T>(total[c]);
          if (rgb_rows[i] >= 0) row[rgb_rows[i]] = static_cast<T>(total[channels + c]);
          if (first_outputs[i] >= 0) {
            const int64_t output = first_outputs[i] + c;
            const double own_d = data<T>(d)[n * outputs + output], own_bias = data<T>(bias)[output];
            const double dd_times_d =
                total[2 * channels + c] - total[3 * channels + c] - own_bias * total[4 * channels + c];
            mutable_data<T>(q)[n * outputs + output] = static_cast<T>(dd_times_d * (own_d * own_d));
          }
        }
      }
    });
  });
  return {dstyles, q};
}

std::tuple<Tensor, Tensor> gradient_scale_cpu(const Tensor& dimage_any) {
  const char* op = "synthesis_gradient_scale";
  const ScalarType dtype = check_leader(op, "dimage", dimage_any, 4);
  const int64_t samples = dimage_any.size(0);
  FASTINV_CHECK(dimage_any.numel() > 0 || samples == 0, op, ": dimage must be [N, 3, H, W] with pixels");
  const Tensor dimage = in_layout(dimage_any, false);
  Tensor scaled = empty({samples, dimage.size(1), dimage.size(2), dimage.size(3)}, dtype);
  Tensor inverse = empty({samples}, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t elements = samples > 0 ? dimage.numel() / samples : 0;
    const int64_t blocks = (elements + kGrain - 1) / kGrain;
    std::vector<T> largest(blocks);
    for (int64_t n = 0; n < samples; ++n) {
      const T* x = data<T>(dimage) + n * elements;
      parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          largest[b] = FASTINV_ISA_CALL(largest_magnitude, x + b * kGrain, std::min(kGrain, elements - b * kGrain));
        }
      });
      const int exponent = scale_exponent(FASTINV_ISA_CALL(largest_magnitude, largest.data(), blocks));
      mutable_data<T>(inverse)[n] = std::ldexp(T(1), exponent);
      const T factor = std::ldexp(T(1), -exponent);
      T* out = mutable_data<T>(scaled) + n * elements;
      parallel_for(0, elements, kGrain, [&](int64_t begin, int64_t end) {
        FASTINV_ISA_CALL(multiply, x + begin, factor, out + begin, end - begin);
      });
    }
  });
  return {scaled, inverse};
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) {
  m.impl("synthesis_styles", TORCH_BOX(&fastinv::styles_cpu));
  m.impl("synthesis_styles_backward", TORCH_BOX(&fastinv::styles_backward_cpu));
  m.impl("synthesis_demodulation", TORCH_BOX(&fastinv::demodulation_cpu));
  m.impl("synthesis_demodulation_backward", TORCH_BOX(&fastinv::demodulation_backward_cpu));
  m.impl("synthesis_style_gradients", TORCH_BOX(&fastinv::style_gradients_cpu));
  m.impl("synthesis_gradient_scale", TORCH_BOX(&fastinv::gradient_scale_cpu));
}
