// modulated_conv2d on the CPU: one pass before and one after the convolution. See fastinv/ops/modulated_conv2d.py.
#include "modulated_conv2d.h"

#include <memory>

#include "conv2d_resample.h"

namespace fastinv {

Shape shape_of(const Tensor& x, bool channels_last) {
  return {x.size(0), x.size(1), x.size(2) * x.size(3), channels_last};
}

// Units of kBlock pixels to a thread, so that each has at least some ten thousand elements to work on.
static int64_t grain(const Shape& s) { return 16384 / (kBlock * s.c) + 1; }

Tensor small_operand(const char* op, const char* name, const Tensor& x, const std::vector<int64_t>& sizes,
                     ScalarType compute) {
  bool fits = x.dim() == static_cast<int64_t>(sizes.size()) && x.scalar_type() == compute;
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = x.size(i) == sizes[i];
  if (!fits) {
    std::string wanted;
    for (int64_t size : sizes) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
    FASTINV_CHECK(false, op, ": ", name, " must be ", torch::headeronly::toString(compute), " [", wanted, "]");
  }
  return in_layout(x, false);
}

void run_epilogue(const Epilogue& p, const Tensor& u, const Tensor& y) {
  FASTINV_DISPATCH(u.scalar_type(), "styled_conv", [&] {
    parallel_for(0, p.shape.n * p.shape.blocks(), grain(p.shape), [&](int64_t begin, int64_t end) {
      FASTINV_ISA_CALL(epilogue<scalar_t>, p, data<scalar_t>(u), mutable_data<scalar_t>(y), begin, end);
    });
  });
}

void scale_channels(const Tensor& x, const Tensor& scale, const Tensor& out, bool channels_last) {
  const ScaleDot p{shape_of(x, channels_last), scale.const_data_ptr(), nullptr, nullptr, nullptr};
  FASTINV_DISPATCH(x.scalar_type(), "modulated_conv2d_scale", [&] {
    parallel_for(0, p.shape.n * p.shape.blocks(), grain(p.shape), [&](int64_t begin, int64_t end) {
      FASTINV_ISA_CALL(scale_dot<scalar_t>, p, data<scalar_t>(x), mutable_data<scalar_t>(out), begin, end);
    });
  });
}

std::vector<double> dot_channels(const Tensor& x, const Tensor& other, const Tensor* scale, const Tensor* out,
                                 bool channels_last) {
  const Shape s = shape_of(x, channels_last);
  const int64_t blocks = s.blocks();
  std::unique_ptr<double[]> sums(new double[s.n * blocks * s.c]);
  FASTINV_DISPATCH(x.scalar_type(), "modulated_conv2d_dot", [&] {
    parallel_for(0, s.n * blocks, grain(s), [&](int64_t begin, int64_t end) {
      std::unique_ptr<compute_t<scalar_t>[]> scratch(new compute_t<scalar_t>[s.c]);
      const ScaleDot p{s, scale ? scale->const_data_ptr() : nullptr, other.const_data_ptr(), sums.get(), scratch.get()};
      FASTINV_ISA_CALL(scale_dot<scalar_t>, p, data<scalar_t>(x), out ? mutable_data<scalar_t>(*out) : nullptr, begin,
                       end);
    });
  });
  std::vector<double> total(s.n * s.c, 0.0);
  for (int64_t unit = 0; unit < s.n * blocks; ++unit) {
    for (int64_t c = 0; c < s.c; ++c) total[unit / blocks * s.c + c] += sums[unit * s.c + c];
  }
  return total;
}

Tensor weight_sum_squares(const Tensor& weight_any, ScalarType compute) {
  const bool channels_last = prefers_channels_last(weight_any);
  Tensor weight = in_layout(weight_any, channels_last);
  if (compute == ScalarType::Double && weight.scalar_type() != compute) weight = torch::stable::to(weight, compute);
  FASTINV_CHECK(compute == ScalarType::Double || weight.scalar_type() != ScalarType::Double,
                "modulated_conv2d: a float64 weight needs a float64 x");
  const int64_t rows = weight.size(0), columns = weight.size(1), taps = weight.size(2) * weight.size(3);
  Tensor sumsq = empty({rows, columns}, compute);
  FASTINV_DISPATCH(weight.scalar_type(), "modulated_conv2d", [&] {
    const scalar_t* w = data<scalar_t>(weight);
    compute_t<scalar_t>* out = mutable_data<compute_t<scalar_t>>(sumsq);
    parallel_for(0, rows, 32768 / (columns * taps + 1) + 1, [&](int64_t begin, int64_t end) {
      FASTINV_ISA_CALL(sum_squares<scalar_t>, w + begin * columns * taps, out + begin * columns, end - begin, columns,
                       taps, channels_last ? 1 : taps, channels_last ? columns : 1);
    });
  });
  return sumsq;
}

Tensor demodulation(const Tensor& styles, const Tensor& sumsq) {
  const int64_t n = styles.size(0), in = styles.size(1), out = sumsq.size(0);
  Tensor d = empty({n, out}, styles.scalar_type());
  const int64_t rows = 32768 / (n * in + 1) + 1;
  if (styles.scalar_type() == ScalarType::Double) {
    parallel_for(0, out, rows, [&](int64_t begin, int64_t end) {
      FASTINV_ISA_CALL(demodulate<double>, data<double>(styles), data<double>(sumsq), mutable_data<double>(d), n, in,
                       out, begin, end);
    });
  } else {
    parallel_for(0, out, rows, [&](int64_t begin, int64_t end) {
      FASTINV_ISA_CALL(demodulate<float>, data<float>(styles), data<float>(sumsq), mutable_data<float>(d), n, in, out,
                       begin, end);
    });
  }
  return d;
}

namespace {

// fastinv::modulated_conv2d_scale(Tensor x, Tensor scale) -> Tensor
Tensor channel_scale(const Tensor& x_any, const Tensor& scale_any) {
  FASTINV_CHECK(x_any.dim() == 4, "modulated_conv2d_scale: x must be [N, C, H, W]");
  const bool channels_last = prefers_channels_last(x_any);
  const Tensor x = in_layout(x_any, channels_last);
  const Tensor scale = small_operand("modulated_conv2d_scale", "scale", scale_any, {x.size(0), x.size(1)},
                                     compute_dtype(x.scalar_type()));
  Tensor out = empty({x.size(0), x.size(1), x.size(2), x.size(3)}, x.scalar_type(), channels_last);
  if (x.numel() > 0) scale_channels(x, scale, out, channels_last);
  return out;
}

// fastinv::modulated_conv2d_dot(Tensor a, Tensor b) -> Tensor: sums over the pixels of a * b
Tensor channel_dot(const Tensor& a_any, const Tensor& b_any) {
  FASTINV_CHECK(a_any.dim() == 4 && b_any.dim() == 4 && a_any.scalar_type() == b_any.scalar_type(),
                "modulated_conv2d_dot: both must be [N, C, H, W] of one dtype");
  for (int i = 0; i < 4; ++i)
    FASTINV_CHECK(a_any.size(i) == b_any.size(i), "modulated_conv2d_dot: both must have one shape");
  const bool channels_last = prefers_channels_last(a_any);
  const Tensor a = in_layout(a_any, channels_last), b = in_layout(b_any, channels_last);
  Tensor out = empty({a.size(0), a.size(1)}, compute_dtype(a.scalar_type()));
  if (a.numel() == 0) return torch::stable::fill_(out, 0.0);
  const std::vector<double> sums = dot_channels(a, b, nullptr, nullptr, channels_last);
  for (size_t i = 0; i < sums.size(); ++i) {
    if (out.scalar_type() == ScalarType::Double) {
      mutable_data<double>(out)[i] = sums[i];
    } else {
      mutable_data<float>(out)[i] = static_cast<float>(sums[i]);
    }
  }
  return out;
}

Tensor modulated_conv2d(const Tensor& x_any, const Tensor& weight, const Tensor& styles_any,
                        const std::optional<Tensor>& noise_any, const std::optional<Tensor>& filter,
                        const std::optional<Tensor>& sumsq_any, int64_t up, int64_t down,
                        const std::vector<int64_t>& padding, bool demodulate, bool flip_weight) {
  const char* op = "modulated_conv2d";
  FASTINV_CHECK(x_any.dim() == 4 && weight.dim() == 4, "modulated_conv2d: x and weight must have 4 dimensions, got ",
                x_any.dim(), " and ", weight.dim());
  const bool channels_last = prefers_channels_last(x_any);
  const Tensor x = in_layout(x_any, channels_last);
  const int64_t n = x.size(0), in = x.size(1), out = weight.size(0);
  const ScalarType compute = compute_dtype(x.scalar_type());
  const Tensor styles = small_operand(op, "styles", styles_any, {n, in}, compute);

  Tensor modulated = empty({n, in, x.size(2), x.size(3)}, x.scalar_type(), channels_last);
  if (x.numel() > 0) scale_channels(x, styles, modulated, channels_last);
  Tensor y = resample(plan_resampling(filter, weight.size(2), weight.size(3), up, down, padding, 1, flip_weight, false),
                      modulated, weight, channels_last);
  if (y.numel() == 0 || (!demodulate && !noise_any)) return y;

  Tensor d = demodulate
                 ? demodulation(styles, sumsq_any ? small_operand(op, "weight_sumsq", *sumsq_any, {out, in}, compute)
                                                  : weight_sum_squares(weight, compute))
                 : torch::stable::full({n, out}, 1.0, compute);
  const Tensor bias = torch::stable::full({out}, 0.0, compute);
  std::optional<Tensor> noise;
  if (noise_any) {
    const int64_t maps = noise_any->size(0) == 1 ? 1 : n;
    noise = small_operand(op, "noise", *noise_any, {maps, 1, y.size(2), y.size(3)}, compute);
  }
  const Shape shape = shape_of(y, channels_last);
  run_epilogue({shape, d.const_data_ptr(), bias.const_data_ptr(), noise ? noise->const_data_ptr() : nullptr,
                noise && noise->size(0) > 1 ? shape.pixels : 0, Act::linear, 0.0, 1.0, -1.0},
               y, y);
  return y;
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) {
  m.impl("modulated_conv2d_scale", TORCH_BOX(&fastinv::channel_scale));
  m.impl("modulated_conv2d_dot", TORCH_BOX(&fastinv::channel_dot));
  m.impl("modulated_conv2d", TORCH_BOX(&fastinv::modulated_conv2d));
}
