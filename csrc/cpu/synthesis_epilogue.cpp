// The pass after a convolution of the frozen synthesis network, on the CPU. See fastinv/ops/synthesis.py.
#include "synthesis_epilogue.h"

#include <memory>

#include "modulated_conv2d.h"

namespace fastinv {
namespace {

const char* kOp = "synthesis_epilogue";

void check(const std::optional<Tensor>& x, const char* name, std::vector<int64_t> sizes, ScalarType dtype) {
  if (!x) return;
  bool fits = x->dim() == static_cast<int64_t>(sizes.size()) && x->scalar_type() == dtype;
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = x->size(i) == sizes[i];
  if (fits) return;
  std::string wanted;
  for (int64_t size : sizes) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  FASTINV_CHECK(false, kOp, ": ", name, " must be ", torch::headeronly::toString(dtype), " [", wanted, "]");
}

// Small operands that the caller may have left out, or that are slices of a larger tensor: kept alive here.
struct Operands {
  Tensor d, bias;
  std::optional<Tensor> noise, next_styles, rgb_weight, rgb_styles;

  Operands(SynthesisLayer& p, int64_t n, ScalarType dtype, const std::optional<Tensor>& d_any,
           const std::optional<Tensor>& bias_any, const std::optional<Tensor>& noise_any, double strength,
           const std::optional<Tensor>& next_any, const std::optional<Tensor>& rgb_weight_any,
           const std::optional<Tensor>& rgb_styles_any)
      : d(d_any ? rows(*d_any) : torch::stable::full({1, p.channels}, 1.0, compute_dtype(dtype))),
        bias(bias_any ? in_layout(*bias_any, false) : torch::stable::full({p.channels}, 0.0, compute_dtype(dtype))) {
    const ScalarType compute = compute_dtype(dtype);
    if (d_any) check(d, "d", {n, p.channels}, compute);
    check(bias, "bias", {p.channels}, compute);
    p.d = d.const_data_ptr();
    p.d_stride = d_any ? d.stride(0) : 0;
    if (noise_any) {
      const int64_t maps = noise_any->dim() == 4 && noise_any->size(0) == 1 ? 1 : n;
      noise = in_layout(*noise_any, false);
      check(noise, "noise", {maps, 1, p.height, p.width}, compute);
      p.noise = noise->const_data_ptr();
      p.noise_stride = maps > 1 ? p.height * p.width : 0;
    }
    p.strength = strength;
    if (next_any) {
      next_styles = rows(*next_any);
      check(next_styles, "next_styles", {n, p.channels}, compute);
      p.next_styles = next_styles->const_data_ptr();
      p.next_stride = next_styles->stride(0);
    }
    FASTINV_CHECK(rgb_weight_any.has_value() == rgb_styles_any.has_value(), kOp,
                  ": rgb_weight and rgb_styles come together");
    if (!rgb_weight_any) return;
    rgb_weight = in_layout(*rgb_weight_any, false);
    rgb_styles = rows(*rgb_styles_any);
    check(rgb_weight, "rgb_weight", {3, p.channels}, compute);
    check(rgb_styles, "rgb_styles", {n, p.channels}, compute);
    p.rgb_weight = rgb_weight->const_data_ptr();
    p.rgb_styles = rgb_styles->const_data_ptr();
    p.rgb_stride = rgb_styles->stride(0);
  }

  static Tensor rows(const Tensor& x) {
    return x.dim() == 2 && x.stride(1) != 1 && x.size(1) > 1 ? torch::stable::contiguous(x) : x;
  }
};

void set_layer(SynthesisLayer& p, const std::vector<double>& taps, int64_t form, double alpha, double gain,
               double clamp, double rgb_clamp, bool need_taps) {
  FASTINV_CHECK(form >= 0 && form <= 3, kOp, ": form must be 0 to 3, got ", form);
  FASTINV_CHECK(taps.size() == 4 || !need_taps, kOp, ": taps must be 4 numbers, got ", taps.size());
  FASTINV_CHECK(p.width <= 64 * kSumTileColumns, kOp, ": a width of ", p.width, " is more than ", 64 * kSumTileColumns);
  for (size_t i = 0; i < 4; ++i) p.taps[i] = i < taps.size() ? taps[i] : 0;
  p.form = static_cast<Form>(form);
  p.alpha = alpha, p.gain = gain, p.clamp = clamp, p.rgb_clamp = rgb_clamp;
}

// Height or width of the layer's output from that of what its convolution left.
int64_t output_size(Form form, int64_t size) {
  return form == Form::transposed ? size - 1
         : form == Form::phases   ? 2 * size - 2
         : form == Form::shuffled ? 2 * size
                                  : size;
}

// The sizes of what the convolution left, from those of the output.
std::vector<int64_t> form_sizes(Form form, int64_t n, int64_t c, int64_t h, int64_t w) {
  if (form == Form::transposed) return {n, c, h + 1, w + 1};
  if (form == Form::phases) return {n, 4 * c, h / 2 + 1, w / 2 + 1};
  if (form == Form::shuffled) return {n, 4 * c, h / 2, w / 2};
  return {n, c, h, w};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> synthesis_epilogue(
    const Tensor& u_any, const std::optional<Tensor>& d, const std::optional<Tensor>& noise, double strength,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& next_styles,
    const std::optional<Tensor>& rgb_weight, const std::optional<Tensor>& rgb_styles,
    const std::optional<Tensor>& rgb_bias, const std::optional<Tensor>& image_any, const std::vector<double>& taps,
    int64_t form, double alpha, double gain, double clamp, double rgb_clamp) {
  FASTINV_CHECK(u_any.dim() == 4, kOp, ": u must have 4 dimensions, got ", u_any.dim());
  const Tensor u = in_layout(u_any, true);
  const ScalarType dtype = u.scalar_type(), compute = compute_dtype(dtype);
  SynthesisForward p{};
  const Form layout = static_cast<Form>(form);
  const int64_t n = u.size(0);
  p.channels = layout == Form::phases || layout == Form::shuffled ? u.size(1) / 4 : u.size(1);
  p.height = output_size(layout, u.size(2)), p.width = output_size(layout, u.size(3));
  set_layer(p, taps, form, alpha, gain, clamp, rgb_clamp, filtered(layout) || image_any.has_value());
  const Operands operands(p, n, dtype, d, bias, noise, strength, next_styles, rgb_weight, rgb_styles);
  const int64_t c = p.channels, h = p.height, w = p.width;

  const Tensor y = empty({n, c, h, w}, dtype, true);
  const Tensor next = next_styles ? empty({n, c, h, w}, dtype, true) : empty({0}, dtype);
  const Tensor picture = rgb_weight ? empty({n, 3, h, w}, compute) : empty({0}, compute);
  const Tensor rgb = rgb_weight && rgb_clamp >= 0 ? empty({n, 3, h, w}, compute) : empty({0}, compute);
  std::optional<Tensor> image, rgb_bias_dense;
  if (rgb_weight) {
    FASTINV_CHECK(rgb_bias.has_value(), kOp, ": rgb_weight needs rgb_bias");
    rgb_bias_dense = in_layout(*rgb_bias, false);
    check(rgb_bias_dense, "rgb_bias", {3}, compute);
    if (image_any) {
      image = in_layout(*image_any, false);
      check(image, "image", {n, 3, h / 2, w / 2}, compute);
      p.image = image->const_data_ptr();
    }
    p.rgb_bias = rgb_bias_dense->const_data_ptr();
    p.picture = picture.mutable_data_ptr();
    if (rgb_clamp >= 0) p.rgb = rgb.mutable_data_ptr();
  }
  p.u = u.const_data_ptr();
  p.bias = operands.bias.const_data_ptr();
  p.y = y.mutable_data_ptr();
  if (next_styles) p.next = next.mutable_data_ptr();
  if (n * c * h * w == 0) return {y, next, picture, rgb};
  FASTINV_DISPATCH(dtype, kOp, [&] {
    parallel_for(0, n * h, 16384 / (w * c) + 1, [&](int64_t begin, int64_t end) {
      using C = compute_t<scalar_t>;
      std::unique_ptr<C[]> scratch(new C[FASTINV_ISA_CALL(synthesis_forward_scratch<scalar_t>, p)]);
      while (begin < end) {  // rows of one sample at a time
        const int64_t sample = begin / h, stop = end < (sample + 1) * h ? end : (sample + 1) * h;
        FASTINV_ISA_CALL(synthesis_forward<scalar_t>, p, sample, begin - sample * h, stop - sample * h, scratch.get());
        begin = stop;
      }
    });
  });
  return {y, next, picture, rgb};
}

std::tuple<Tensor, Tensor, Tensor> synthesis_epilogue_backward(
    const std::optional<Tensor>& dnext_any, const std::optional<Tensor>& dimage_any, const Tensor& y_any,
    const std::optional<Tensor>& rgb_any, const std::optional<Tensor>& d, const std::optional<Tensor>& noise,
    double strength, const std::optional<Tensor>& next_styles, const std::optional<Tensor>& rgb_weight,
    const std::optional<Tensor>& rgb_styles, const std::vector<double>& taps, int64_t form, double alpha, double gain,
    double clamp, double rgb_clamp, bool need_noise) {
  FASTINV_CHECK(y_any.dim() == 4, kOp, ": y must have 4 dimensions, got ", y_any.dim());
  const Tensor y = in_layout(y_any, true);
  const ScalarType dtype = y.scalar_type(), compute = compute_dtype(dtype);
  SynthesisBackward p{};
  const int64_t n = y.size(0), c = y.size(1), h = y.size(2), w = y.size(3);
  p.channels = c, p.height = h, p.width = w;
  set_layer(p, taps, form, alpha, gain, clamp, rgb_clamp, filtered(static_cast<Form>(form)));
  const Operands operands(p, n, dtype, d, std::nullopt, noise, strength, next_styles, rgb_weight, rgb_styles);
  std::optional<Tensor> dnext, dimage, rgb;
  if (dnext_any) {
    dnext = in_layout(*dnext_any, true);
    check(dnext, "dnext", {n, c, h, w}, dtype);
    p.dnext = dnext->const_data_ptr();
  }
  if (dimage_any) {
    FASTINV_CHECK(rgb_weight.has_value(), kOp, ": dimage needs rgb_weight and rgb_styles");
    dimage = in_layout(*dimage_any, false);
    check(dimage, "dimage", {n, 3, h, w}, compute);
    p.dimage = dimage->const_data_ptr();
    if (rgb_clamp >= 0) {
      FASTINV_CHECK(rgb_any.has_value(), kOp, ": rgb_clamp needs rgb");
      rgb = in_layout(*rgb_any, false);
      check(rgb, "rgb", {n, 3, h, w}, compute);
      p.rgb = rgb->const_data_ptr();
    }
  }
  p.y = y.const_data_ptr();
  const int64_t tiles = sum_tiles(p.form, h, w);
  const Tensor du = empty(form_sizes(p.form, n, c, h, w), dtype, true);
  const Tensor sums = empty({n, tiles, 5, c}, compute);
  const Tensor dnoise = need_noise ? empty({n, 1, h, w}, compute) : empty({0}, compute);
  p.du = du.mutable_data_ptr();
  p.sums = sums.mutable_data_ptr();
  if (need_noise) p.dnoise = dnoise.mutable_data_ptr();
  if (n * c * h * w == 0) return {du, torch::stable::fill_(sums, 0.0), dnoise};
  const bool by_rows = filtered(p.form);
  const int64_t step = by_rows ? p.band_rows() : 1, total = by_rows ? h : tiles, units = (total + step - 1) / step;
  const int64_t grain = by_rows ? 1 : 16384 / (sum_tile_pixels(h * w) * c) + 1;
  FASTINV_DISPATCH(dtype, kOp, [&] {
    parallel_for(0, n * units, grain, [&](int64_t begin, int64_t end) {
      using C = compute_t<scalar_t>;
      std::unique_ptr<C[]> scratch(new C[FASTINV_ISA_CALL(synthesis_backward_scratch<scalar_t>, p)]);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t sample = unit / units, first = unit % units * step;
        FASTINV_ISA_CALL(synthesis_backward<scalar_t>, p, sample, first, first + step < total ? first + step : total,
                         scratch.get());
      }
    });
  });
  return {du, sums, dnoise};
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) {
  m.impl("synthesis_epilogue", TORCH_BOX(&fastinv::synthesis_epilogue));
  m.impl("synthesis_epilogue_backward", TORCH_BOX(&fastinv::synthesis_epilogue_backward));
}
