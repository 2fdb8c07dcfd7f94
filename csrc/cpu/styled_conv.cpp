// styled_conv on the CPU: a whole synthesis layer, and its first derivatives. See fastinv/ops/styled_conv.py.
#include "styled_conv.h"

#include <memory>

#include "conv2d_resample.h"
#include "modulated_conv2d.h"

namespace fastinv {
namespace {

const char* kOp = "styled_conv";

// y tells v when the activation is one of these and nothing was lost to a gain of the wrong sign; else u is kept.
bool recoverable(int64_t act, double gain) { return act <= static_cast<int64_t>(Act::lrelu) && gain > 0; }

// The operands of the pass after the convolution, and the memory that they live in.
struct Operands {
  Tensor scale, bias;
  std::optional<Tensor> noise;         // as given
  std::optional<Tensor> scaled_noise;  // times its strength
  double strength = 1;

  Operands(const Tensor& d, const std::optional<Tensor>& bias_any, const std::optional<Tensor>& noise_any,
           const std::optional<Tensor>& strength_any, const Shape& shape, int64_t height, int64_t width,
           ScalarType compute)
      : scale(d),
        bias(bias_any ? small_operand(kOp, "bias", *bias_any, {shape.c}, compute)
                      : torch::stable::full({shape.c}, 0.0, compute)) {
    if (strength_any) {
      const Tensor s = small_operand(kOp, "noise_strength", *strength_any, {}, compute);
      strength = compute == ScalarType::Double ? *data<double>(s) : *data<float>(s);
    }
    if (!noise_any) return;
    const int64_t maps = noise_any->dim() == 4 && noise_any->size(0) == 1 ? 1 : shape.n;
    noise = small_operand(kOp, "noise", *noise_any, {maps, 1, height, width}, compute);
    scaled_noise = noise;
    if (!strength_any) return;
    scaled_noise = torch::stable::empty_like(*noise);
    if (compute == ScalarType::Double) {
      scale_noise<double>();
    } else {
      scale_noise<float>();
    }
  }

  template <class C>
  void scale_noise() {
    const C* from = data<C>(*noise);
    C* to = mutable_data<C>(*scaled_noise);
    for (int64_t i = 0; i < noise->numel(); ++i) to[i] = from[i] * static_cast<C>(strength);
  }

  Epilogue epilogue(const Shape& shape, int64_t act, double alpha, double gain, double clamp) const {
    return {shape,
            scale.const_data_ptr(),
            bias.const_data_ptr(),
            scaled_noise ? scaled_noise->const_data_ptr() : nullptr,
            scaled_noise && scaled_noise->size(0) > 1 ? shape.pixels : 0,
            static_cast<Act>(act),
            alpha,
            gain,
            clamp};
  }
};

Resampling plan_layer(const std::optional<Tensor>& filter, const Tensor& weight, int64_t up, bool flip_weight) {
  const int64_t pad_y = weight.size(2) / 2, pad_x = weight.size(3) / 2;
  return plan_resampling(filter, weight.size(2), weight.size(3), up, 1, {pad_x, pad_x, pad_y, pad_y}, 1, flip_weight,
                         false);
}

Tensor sum_squares_of(const Tensor& weight, const std::optional<Tensor>& sumsq, ScalarType compute) {
  return sumsq ? small_operand(kOp, "weight_sumsq", *sumsq, {weight.size(0), weight.size(1)}, compute)
               : weight_sum_squares(weight, compute);
}

// Returns y, the demodulation coefficients (empty without) and u (empty if y tells v).
std::tuple<Tensor, Tensor, Tensor> styled_conv(const Tensor& x_any, const Tensor& weight, const Tensor& styles_any,
                                               const std::optional<Tensor>& bias, const std::optional<Tensor>& noise,
                                               const std::optional<Tensor>& strength,
                                               const std::optional<Tensor>& filter, const std::optional<Tensor>& sumsq,
                                               int64_t up, bool demodulate, int64_t act, double alpha, double gain,
                                               double clamp, bool flip_weight) {
  FASTINV_CHECK(x_any.dim() == 4 && weight.dim() == 4, "styled_conv: x and weight must have 4 dimensions, got ",
                x_any.dim(), " and ", weight.dim());
  const bool channels_last = prefers_channels_last(x_any);
  const Tensor x = in_layout(x_any, channels_last);
  const int64_t n = x.size(0), in = x.size(1), out = weight.size(0);
  const ScalarType dtype = x.scalar_type(), compute = compute_dtype(dtype);
  const Tensor styles = small_operand(kOp, "styles", styles_any, {n, in}, compute);

  Tensor modulated = empty({n, in, x.size(2), x.size(3)}, dtype, channels_last);
  if (x.numel() > 0) scale_channels(x, styles, modulated, channels_last);
  const Tensor u = resample(plan_layer(filter, weight, up, flip_weight), modulated, weight, channels_last);
  Tensor d = demodulate ? demodulation(styles, sum_squares_of(weight, sumsq, compute)) : empty({0}, compute);
  const bool keep = !recoverable(act, gain);
  const Tensor y = keep ? torch::stable::empty_like(u) : u;
  if (u.numel() > 0) {
    const Shape shape = shape_of(u, channels_last);
    const Operands operands(demodulate ? d : torch::stable::full({n, out}, 1.0, compute), bias, noise, strength, shape,
                            u.size(2), u.size(3), compute);
    run_epilogue(operands.epilogue(shape, act, alpha, gain, clamp), u, y);
  }
  return {y, d, keep ? u : empty({0}, dtype)};
}

template <class C>
void to_compute(const std::vector<double>& values, const Tensor& out) {
  C* to = mutable_data<C>(out);
  for (size_t i = 0; i < values.size(); ++i) to[i] = static_cast<C>(values[i]);
}

Tensor tensor_of(const std::vector<double>& values, const std::vector<int64_t>& sizes, ScalarType compute) {
  Tensor out = empty(sizes, compute);
  if (compute == ScalarType::Double) {
    to_compute<double>(values, out);
  } else {
    to_compute<float>(values, out);
  }
  return out;
}

template <class C>
std::vector<double> doubles(const Tensor& x) {
  const C* from = data<C>(x);
  return std::vector<double>(from, from + x.numel());
}

std::vector<double> doubles_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? doubles<double>(x) : doubles<float>(x);
}

// Gradients of noise (per map) and of its strength from the sums over channels of dv, [N, pixels].
template <class C>
void noise_gradients(const Operands& operands, const double* pixel_sums, const Shape& s, C* dnoise, double* dstrength) {
  const int64_t maps = operands.noise->size(0);
  const C* noise = data<C>(*operands.noise);
  double total = 0;
  for (int64_t map = 0; map < maps; ++map) {
    for (int64_t i = 0; i < s.pixels; ++i) {
      double sum = 0;
      if (maps == s.n) {
        sum = pixel_sums[map * s.pixels + i];
      } else {
        for (int64_t n = 0; n < s.n; ++n) sum += pixel_sums[n * s.pixels + i];
      }
      if (dnoise) dnoise[map * s.pixels + i] = static_cast<C>(sum * operands.strength);
      total += sum * noise[map * s.pixels + i];
    }
  }
  *dstrength = total;
}

// dw -= w * a[out, in], what the demodulation adds to the gradient of the weight. Both contiguous.
template <class T>
void subtract_demodulation(const Tensor& dw, const Tensor& w, const std::vector<double>& a) {
  T* to = mutable_data<T>(dw);
  const T* from = data<T>(w);
  const int64_t taps = w.size(2) * w.size(3);
  for (size_t pair = 0; pair < a.size(); ++pair) {
    for (int64_t i = pair * taps; i < static_cast<int64_t>(pair + 1) * taps; ++i) {
      store(to[i], static_cast<compute_t<T>>(load(to[i]) - load(from[i]) * a[pair]));
    }
  }
}

// Gradients of x, weight, styles, bias, noise and its strength; those not needed are empty. `saved` is y or u.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> styled_conv_backward(
    const Tensor& dy_any, const Tensor& saved, const Tensor& x_any, const Tensor& weight, const Tensor& styles_any,
    const Tensor& d, const std::optional<Tensor>& bias, const std::optional<Tensor>& noise,
    const std::optional<Tensor>& strength, const std::optional<Tensor>& filter, const std::optional<Tensor>& sumsq_any,
    int64_t up, bool demodulate, int64_t act, double alpha, double gain, double clamp, bool flip_weight, bool need_x,
    bool need_weight, bool need_styles, bool need_bias, bool need_noise, bool need_strength) {
  const bool channels_last = prefers_channels_last(x_any);
  const Tensor x = in_layout(x_any, channels_last);
  const Tensor dy = in_layout(dy_any, channels_last), kept = in_layout(saved, channels_last);
  const int64_t n = x.size(0), in = x.size(1), out = weight.size(0);
  const ScalarType dtype = x.scalar_type(), compute = compute_dtype(dtype);
  const Tensor styles = small_operand(kOp, "styles", styles_any, {n, in}, compute);
  const Shape shape = shape_of(dy, channels_last);
  FASTINV_CHECK(dy.scalar_type() == dtype && kept.scalar_type() == dtype,
                "styled_conv: gradient of another dtype than x");

  // One pass: the gradient of u, and all sums.
  const Operands operands(demodulate ? d : torch::stable::full({n, out}, 1.0, compute), bias, noise, strength, shape,
                          dy.size(2), dy.size(3), compute);
  const bool from_output = recoverable(act, gain);
  const bool need_pixel_sums = noise.has_value() && (need_noise || need_strength);
  const Tensor du = torch::stable::empty_like(dy);
  std::unique_ptr<double[]> pixel_sums(need_pixel_sums ? new double[n * shape.pixels] : nullptr);
  const int64_t blocks = shape.blocks(), units = n * blocks;
  std::unique_ptr<double[]> sums(new double[units * 2 * out]);
  FASTINV_DISPATCH(dtype, kOp, [&] {
    parallel_for(0, units, 16384 / (kBlock * out) + 1, [&](int64_t begin, int64_t end) {
      std::unique_ptr<compute_t<scalar_t>[]> scratch(new compute_t<scalar_t>[2 * out]);
      const EpilogueBackward p{operands.epilogue(shape, act, alpha, gain, clamp), from_output, sums.get(),
                               pixel_sums.get(), scratch.get()};
      FASTINV_ISA_CALL(epilogue_backward<scalar_t>, p, data<scalar_t>(dy), data<scalar_t>(kept),
                       mutable_data<scalar_t>(du), begin, end);
    });
  });
  std::vector<double> dd(n * out, 0.0), dbias(out, 0.0);
  for (int64_t unit = 0; unit < units; ++unit) {
    for (int64_t o = 0; o < out; ++o) {
      dd[unit / blocks * out + o] += sums[unit * 2 * out + o];
      dbias[o] += sums[unit * 2 * out + out + o];
    }
  }

  // The convolution, once for each gradient that is needed.
  const auto nothing = [&] { return empty({0}, dtype); };  // each its own: outputs of an op must not share memory
  Tensor dx = nothing(), dweight = nothing(), dstyles = nothing(), dnoise = nothing(), modulated = x;
  if (need_weight) {
    modulated = torch::stable::empty_like(x);
    scale_channels(x, styles, modulated, channels_last);
  }
  auto [dmodulated, dw] = resample_backward(plan_layer(filter, weight, up, flip_weight), du, modulated, weight,
                                            need_x || need_styles, need_weight, channels_last);
  std::vector<double> ds(n * in, 0.0);
  if (need_styles) {
    ds = dot_channels(*dmodulated, x, need_x ? &styles : nullptr, need_x ? &*dmodulated : nullptr, channels_last);
  } else if (need_x) {
    scale_channels(*dmodulated, styles, *dmodulated, channels_last);
  }
  if (need_x) dx = *dmodulated;

  // What the demodulation adds: dL/d(d) d^3 = q; styles get -s (q sumsq), weights -w (q^T s^2).
  std::vector<double> weight_term;
  if (demodulate && (need_styles || need_weight)) {
    const std::vector<double> s = doubles_of(styles), coefficient = doubles_of(d);
    std::vector<double> q(n * out);
    for (int64_t i = 0; i < n * out; ++i) {
      const double gradient = from_output ? dd[i] / coefficient[i] : dd[i];
      q[i] = gradient * coefficient[i] * coefficient[i] * coefficient[i];
    }
    if (need_styles) {
      const std::vector<double> sumsq = doubles_of(sum_squares_of(weight, sumsq_any, compute));
      std::vector<double> row(in);
      for (int64_t sample = 0; sample < n; ++sample) {
        for (double& r : row) r = 0;
        for (int64_t o = 0; o < out; ++o) {
          const double* w = sumsq.data() + o * in;
          const double factor = q[sample * out + o];
          for (int64_t i = 0; i < in; ++i) row[i] += factor * w[i];
        }
        for (int64_t i = 0; i < in; ++i) ds[sample * in + i] -= s[sample * in + i] * row[i];
      }
    }
    if (need_weight) {
      weight_term.assign(out * in, 0.0);
      for (int64_t sample = 0; sample < n; ++sample) {
        for (int64_t o = 0; o < out; ++o) {
          for (int64_t i = 0; i < in; ++i) {
            const double style = s[sample * in + i];
            weight_term[o * in + i] += q[sample * out + o] * style * style;
          }
        }
      }
    }
  }
  if (need_styles) dstyles = tensor_of(ds, {n, in}, compute);
  if (need_weight) {
    dweight = in_layout(dw->scalar_type() == weight.scalar_type() ? *dw : torch::stable::to(*dw, weight.scalar_type()),
                        false);
    if (demodulate) {
      FASTINV_DISPATCH(weight.scalar_type(), kOp,
                       [&] { subtract_demodulation<scalar_t>(dweight, in_layout(weight, false), weight_term); });
    }
  }
  double dstrength = 0;
  if (need_pixel_sums) {
    if (need_noise) dnoise = empty({operands.noise->size(0), 1, dy.size(2), dy.size(3)}, compute);
    if (compute == ScalarType::Double) {
      noise_gradients(operands, pixel_sums.get(), shape, need_noise ? mutable_data<double>(dnoise) : nullptr,
                      &dstrength);
    } else {
      noise_gradients(operands, pixel_sums.get(), shape, need_noise ? mutable_data<float>(dnoise) : nullptr,
                      &dstrength);
    }
  }
  return {dx,      dweight,
          dstyles, need_bias ? tensor_of(dbias, {out}, compute) : nothing(),
          dnoise,  need_strength ? tensor_of({dstrength}, {}, compute) : nothing()};
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) {
  m.impl("styled_conv", TORCH_BOX(&fastinv::styled_conv));
  m.impl("styled_conv_backward", TORCH_BOX(&fastinv::styled_conv_backward));
}
