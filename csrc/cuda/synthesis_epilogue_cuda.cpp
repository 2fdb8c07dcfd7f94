// synthesis_epilogue on CUDA: checks, outputs, launch of the form's kernels, registration.
#include "synthesis_epilogue.h"
#include "torch_cuda.h"

namespace fastinv {
namespace {

constexpr int64_t kMostElements = int64_t(1) << 31;  // of a sample: kernels count them with 32 bits

// A [N, C] operand whose rows may be slices of longer ones, which need no copy.
Tensor row_operand(const char* op, const char* name, const Tensor& x, const Tensor& leader, ScalarType dtype,
                   const std::vector<int64_t>& sizes) {
  const bool ready = on_cuda(x) && x.get_device_index() == leader.get_device_index() && x.scalar_type() == dtype &&
                     sizes_of(x) == sizes && (x.stride(1) == 1 || x.size(1) <= 1);
  return ready ? x : cuda_operand(op, name, x, leader, dtype, sizes);
}

// Fills what forward and backward share, and keeps alive what it points to.
struct LayerOperands {
  std::optional<Tensor> d, noise, next_styles, rgb_weight, rgb_styles;

  LayerOperands(const char* op, cuda::SynthesisLayer& p, const Tensor& leader, const std::optional<Tensor>& d_any,
                const std::optional<Tensor>& noise_any, double strength, const std::optional<Tensor>& next_any,
                const std::optional<Tensor>& rgb_weight_any, const std::optional<Tensor>& rgb_styles_any) {
    const ScalarType compute = cuda_compute_dtype(leader.scalar_type());
    const std::vector<int64_t> per_channel = {p.samples, p.channels};
    p.strength = strength;
    if (d_any) {
      d = row_operand(op, "d", *d_any, leader, compute, per_channel);
      p.d = d->const_data_ptr();
      p.d_stride = d->stride(0);
    }
    if (noise_any) {
      const int64_t maps = noise_any->dim() == 4 && noise_any->size(0) == 1 ? 1 : p.samples;
      noise = cuda_operand(op, "noise", *noise_any, leader, compute, {maps, 1, p.height, p.width});
      p.noise = noise->const_data_ptr();
      p.noise_stride = maps > 1 ? int64_t(p.height) * p.width : 0;
    }
    if (next_any) {
      next_styles = row_operand(op, "next_styles", *next_any, leader, compute, per_channel);
      p.next_styles = next_styles->const_data_ptr();
      p.next_stride = next_styles->stride(0);
    }
    FASTINV_CHECK(rgb_weight_any.has_value() == rgb_styles_any.has_value(), op,
                  ": rgb_weight and rgb_styles come together; give both or none");
    if (!rgb_weight_any) return;
    rgb_weight = cuda_operand(op, "rgb_weight", *rgb_weight_any, leader, compute, {3, p.channels});
    rgb_styles = row_operand(op, "rgb_styles", *rgb_styles_any, leader, compute, per_channel);
    p.rgb_weight = rgb_weight->const_data_ptr();
    p.rgb_styles = rgb_styles->const_data_ptr();
    p.rgb_stride = rgb_styles->stride(0);
  }
};

Form checked_form(const char* op, int64_t form) {
  FASTINV_CHECK(form >= 0 && form <= 3, op, ": form must be a code from 0 to 3, got ", form);
  return static_cast<Form>(form);
}

// Sizes of what the convolution left, from those of the layer's output.
std::vector<int64_t> form_sizes(Form form, int64_t n, int64_t c, int64_t h, int64_t w) {
  switch (form) {
    case Form::transposed:
      return {n, c, h + 1, w + 1};
    case Form::phases:
      return {n, 4 * c, h / 2 + 1, w / 2 + 1};
    case Form::shuffled:
      return {n, 4 * c, h / 2, w / 2};
    default:
      return {n, c, h, w};
  }
}

// sizes: of the layer's output, [N, C, H, W].
void set_layer(const char* op, cuda::SynthesisLayer& p, ScalarType dtype, Form form, const std::vector<int64_t>& sizes,
               const std::vector<double>& taps, bool need_taps, double alpha, double gain, double clamp,
               double rgb_clamp) {
  const int64_t n = sizes[0], c = sizes[1], h = sizes[2], w = sizes[3];
  FASTINV_CHECK(n <= 65535, op, ": at most 65535 samples, got ", n);
  FASTINV_CHECK(c >= 1 && c <= cuda::kSynthesisMostChannels, op, ": channels must be 1 to ",
                cuda::kSynthesisMostChannels, ", got ", c);
  FASTINV_CHECK(h >= 0 && w >= 0, op, ": a picture of ", h, " x ", w, " pixels does not exist in this form");
  int64_t elements = 4;  // an upper bound of a picture's and a feature map's
  for (int64_t size : {c, h + 2, w + 2}) {
    FASTINV_CHECK(elements <= kMostElements / size, op, ": ", to_string(sizes), " has too many elements a sample; ",
                  "at most ", kMostElements, " / 4");
    elements *= size;
  }
  FASTINV_CHECK(taps.size() == 4 || (taps.empty() && !need_taps), op, ": taps must be 4 numbers, got ", taps.size());
  p.dtype = cuda_dtype(op, dtype);
  p.form = form;
  p.samples = n;
  p.channels = static_cast<int>(c);
  p.height = static_cast<int>(h);
  p.width = static_cast<int>(w);
  for (size_t i = 0; i < 4; ++i) p.taps[i] = taps.empty() ? 0 : taps[i];
  p.alpha = alpha;
  p.gain = gain;
  p.clamp = clamp;
  p.rgb_clamp = rgb_clamp;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> synthesis_epilogue_cuda(
    const Tensor& u_any, const std::optional<Tensor>& d, const std::optional<Tensor>& noise, double strength,
    const std::optional<Tensor>& bias_any, const std::optional<Tensor>& next_styles,
    const std::optional<Tensor>& rgb_weight, const std::optional<Tensor>& rgb_styles,
    const std::optional<Tensor>& rgb_bias_any, const std::optional<Tensor>& image_any, const std::vector<double>& taps,
    int64_t form_code, double alpha, double gain, double clamp, double rgb_clamp) {
  const char* op = "synthesis_epilogue";
  FASTINV_CHECK(on_cuda(u_any), op, ": u must be on a CUDA device");
  FASTINV_CHECK(u_any.dim() == 4, op, ": u must have 4 dimensions, got ", to_string(sizes_of(u_any)));
  const DeviceGuard guard = device_guard("synthesis_epilogue", u_any);
  const Form form = checked_form(op, form_code);
  const Tensor u = aligned(in_layout(u_any, true));
  const ScalarType dtype = u.scalar_type(), compute = cuda_compute_dtype(dtype);
  const bool phases = form == Form::phases || form == Form::shuffled;
  FASTINV_CHECK(!phases || u.size(1) % 4 == 0, op, ": u must have four times the output's channels, got ", u.size(1));
  const auto output_size = [form](int64_t size) {
    return form == Form::transposed ? size - 1
           : form == Form::phases   ? 2 * size - 2
           : form == Form::shuffled ? 2 * size
                                    : size;
  };
  const int64_t n = u.size(0), c = phases ? u.size(1) / 4 : u.size(1);
  const int64_t h = output_size(u.size(2)), w = output_size(u.size(3));
  cuda::SynthesisEpilogueParams p{};
  set_layer(op, p, dtype, form, {n, c, h, w}, taps, filtered(form) || image_any.has_value(), alpha, gain, clamp,
            rgb_clamp);
  const LayerOperands operands(op, p, u, d, noise, strength, next_styles, rgb_weight, rgb_styles);

  std::optional<Tensor> bias, rgb_bias, image;  // own the copies that p points into
  if (bias_any) {
    bias = cuda_operand(op, "bias", *bias_any, u, compute, {c});
    p.bias = bias->const_data_ptr();
  }
  const bool picture = rgb_weight.has_value();
  if (picture) {
    FASTINV_CHECK(rgb_bias_any.has_value(), op, ": rgb_weight needs rgb_bias");
    rgb_bias = cuda_operand(op, "rgb_bias", *rgb_bias_any, u, compute, {3});
    p.rgb_bias = rgb_bias->const_data_ptr();
    if (image_any) {
      FASTINV_CHECK(h % 2 == 0 && w % 2 == 0, op, ": with image, the output must have an even size, got ", h, " x ", w);
      image = cuda_operand(op, "image", *image_any, u, compute, {n, 3, h / 2, w / 2});
      p.previous = image->const_data_ptr();
    }
  }
  Tensor y = cuda_empty({n, c, h, w}, dtype, u, true);
  Tensor next = next_styles ? cuda_empty({n, c, h, w}, dtype, u, true) : cuda_empty({0}, dtype, u);
  Tensor image_out = picture ? cuda_empty({n, 3, h, w}, compute, u) : cuda_empty({0}, compute, u);
  Tensor rgb = picture && rgb_clamp >= 0 ? cuda_empty({n, 3, h, w}, compute, u) : cuda_empty({0}, compute, u);
  if (y.numel() == 0) return {y, next, image_out, rgb};
  p.u = u.const_data_ptr();
  p.y = y.mutable_data_ptr();
  if (next_styles) p.next = next.mutable_data_ptr();
  if (picture) p.image = image_out.mutable_data_ptr();
  if (picture && rgb_clamp >= 0) p.rgb = rgb.mutable_data_ptr();
  void* stream = cuda_stream_of(u);
  check_launch(op, filtered(form) ? cuda::fir_epilogue(p, stream) : cuda::synthesis_epilogue(p, stream));
  return {y, next, image_out, rgb};
}

std::tuple<Tensor, Tensor, Tensor> synthesis_epilogue_backward_cuda(
    const std::optional<Tensor>& dnext_any, const std::optional<Tensor>& dimage_any, const Tensor& y_any,
    const std::optional<Tensor>& rgb_any, const std::optional<Tensor>& d, const std::optional<Tensor>& noise,
    double strength, const std::optional<Tensor>& next_styles, const std::optional<Tensor>& rgb_weight,
    const std::optional<Tensor>& rgb_styles, const std::vector<double>& taps, int64_t form_code, double alpha,
    double gain, double clamp, double rgb_clamp, bool need_noise) {
  const char* op = "synthesis_epilogue_backward";
  FASTINV_CHECK(on_cuda(y_any), op, ": y must be on a CUDA device");
  FASTINV_CHECK(y_any.dim() == 4, op, ": y must have 4 dimensions, got ", to_string(sizes_of(y_any)));
  const DeviceGuard guard = device_guard("synthesis_epilogue_backward", y_any);
  const Form form = checked_form(op, form_code);
  const Tensor y = aligned(in_layout(y_any, true));
  const ScalarType dtype = y.scalar_type(), compute = cuda_compute_dtype(dtype);
  const std::vector<int64_t> sizes = sizes_of(y);
  const int64_t n = sizes[0], c = sizes[1], h = sizes[2], w = sizes[3];
  FASTINV_CHECK((form != Form::phases && form != Form::shuffled) || (h % 2 == 0 && w % 2 == 0), op,
                ": in this form y must have an even size, got ", h, " x ", w);
  cuda::SynthesisEpilogueBackwardParams p{};
  set_layer(op, p, dtype, form, sizes, taps, filtered(form), alpha, gain, clamp, rgb_clamp);
  const LayerOperands operands(op, p, y, d, noise, strength, next_styles, rgb_weight, rgb_styles);

  std::optional<Tensor> dnext, dimage, rgb;  // own the copies that p points into
  if (dnext_any) {
    dnext = aligned(cuda_operand(op, "dnext", *dnext_any, y, dtype, sizes, true));
    p.dnext = dnext->const_data_ptr();
  }
  if (dimage_any) {
    FASTINV_CHECK(rgb_weight.has_value(), op, ": dimage needs rgb_weight and rgb_styles");
    dimage = cuda_operand(op, "dimage", *dimage_any, y, compute, {n, 3, h, w});
    p.dimage = dimage->const_data_ptr();
  }
  if (dimage_any && rgb_clamp >= 0) {
    FASTINV_CHECK(rgb_any.has_value(), op, ": rgb_clamp needs rgb, a result of synthesis_epilogue");
    rgb = cuda_operand(op, "rgb", *rgb_any, y, compute, {n, 3, h, w});
    p.rgb = rgb->const_data_ptr();
  }
  Tensor du = cuda_empty(form_sizes(form, n, c, h, w), dtype, y, true);
  Tensor sums = cuda_empty({n, sum_tiles(form, h, w), cuda::kSynthesisSums, c}, compute, y);
  Tensor dnoise = need_noise ? cuda_empty({n, 1, h, w}, compute, y) : cuda_empty({0}, compute, y);
  if (y.numel() == 0) return {torch::stable::fill_(du, 0.0), torch::stable::fill_(sums, 0.0), dnoise};
  p.y = y.const_data_ptr();
  p.du = du.mutable_data_ptr();
  p.sums = sums.mutable_data_ptr();
  if (need_noise) p.dnoise = dnoise.mutable_data_ptr();
  void* stream = cuda_stream_of(y);
  check_launch(op,
               filtered(form) ? cuda::fir_epilogue_backward(p, stream) : cuda::synthesis_epilogue_backward(p, stream));
  return {du, sums, dnoise};
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, FASTINV_CUDA_KEY, m) {
  m.impl("synthesis_epilogue", TORCH_BOX(&fastinv::synthesis_epilogue_cuda));
  m.impl("synthesis_epilogue_backward", TORCH_BOX(&fastinv::synthesis_epilogue_backward_cuda));
}
