// Every operator's schema, one line each. Kernels register themselves at the foot of csrc/cpu/<op>.cpp and
// csrc/cuda/<op>_cuda.cpp; fake kernels and autograd live in fastinv/ops/<op>.py.
#include "common/stable.h"

namespace fastinv {

static std::string cpu_isa_op() { return isa_name(cpu_isa()); }

static std::string cpu_matrix_op() { return unit_name(bfloat16_unit()); }

// All that FASTINV_CPU_ISA may choose on this machine, best last, separated by spaces.
static std::string cpu_isas_op() {
  std::string names;
  for (int i = 0; cpu_level_name(i) != nullptr; ++i) {
    if (cpu_level_available(i)) names += (names.empty() ? "" : " ") + std::string(cpu_level_name(i));
  }
  return names;
}

}  // namespace fastinv

STABLE_TORCH_LIBRARY(fastinv, m) {
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
  m.def("cpu_matrix() -> str");  // bfloat16 arithmetic in use: "amx", "avx512_bf16" or ""
  // For tests of csrc/cpu/matrix.h: c (+)= sum over t and k of a[start + m * a_stride + offsets[t] + k] * b[t, k, n].
  m.def("matrix_product(Tensor a, int start, int a_stride, int[] offsets, Tensor b, bool add, Tensor(a!) c) -> ()");
  m.def(
      "upfirdn2d(Tensor x, Tensor f, int up_x, int up_y, int down_x, int down_y, int pad_x0, int pad_x1, int pad_y0, "
      "int pad_y1, bool flip_filter, float gain) -> Tensor");
  m.def(
      "upfirdn2d_out(Tensor x, Tensor f, int up_x, int up_y, int down_x, int down_y, int pad_x0, int pad_x1, int "
      "pad_y0, int pad_y1, bool flip_filter, float gain, Tensor(a!) out) -> ()");
  m.def("bias_act(Tensor x, Tensor? b, int dim, int act, float alpha, float gain, float clamp) -> Tensor");
  m.def(
      "bias_act_backward(Tensor dy, Tensor saved, Tensor? b, int dim, int act, float alpha, float gain, float clamp, "
      "bool need_db) -> (Tensor dx, Tensor db)");
  m.def(
      "bias_act_backward2(Tensor grad_dx, Tensor dy, Tensor x, Tensor? b, int dim, int act, float alpha, float gain, "
      "float clamp, bool need_db) -> (Tensor dx, Tensor db)");
  m.def(
      "conv2d_resample(Tensor x, Tensor w, Tensor? f, int up, int down, int[] padding, int groups, bool flip_weight, "
      "bool flip_filter) -> Tensor");
  m.def("modulated_conv2d_scale(Tensor x, Tensor scale) -> Tensor");
  m.def("modulated_conv2d_dot(Tensor a, Tensor b) -> Tensor");
  m.def(
      "modulated_conv2d(Tensor x, Tensor weight, Tensor styles, Tensor? noise, Tensor? resample_filter, Tensor? "
      "weight_sumsq, int up, int down, int[] padding, bool demodulate, bool flip_weight) -> Tensor");
  m.def(
      "styled_conv(Tensor x, Tensor weight, Tensor styles, Tensor? bias, Tensor? noise, Tensor? noise_strength, "
      "Tensor? "
      "resample_filter, Tensor? weight_sumsq, int up, bool demodulate, int act, float alpha, float gain, float clamp, "
      "bool "
      "flip_weight) -> (Tensor y, Tensor d, Tensor u)");
  m.def(
      "styled_conv_backward(Tensor dy, Tensor saved, Tensor x, Tensor weight, Tensor styles, Tensor d, Tensor? bias, "
      "Tensor? noise, Tensor? noise_strength, Tensor? resample_filter, Tensor? weight_sumsq, int up, bool demodulate, "
      "int "
      "act, float alpha, float gain, float clamp, bool flip_weight, bool need_x, bool need_weight, bool need_styles, "
      "bool "
      "need_bias, bool need_noise, bool need_strength) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // The passes around the convolutions of a frozen synthesis network: fastinv/ops/synthesis.py has the formulas.
  m.def(
      "synthesis_epilogue(Tensor u, Tensor? d, Tensor? noise, float strength, Tensor? bias, Tensor? next_styles, "
      "Tensor? rgb_weight, Tensor? rgb_styles, Tensor? rgb_bias, Tensor? image, float[] taps, int form, float alpha, "
      "float gain, float clamp, float rgb_clamp) -> (Tensor y, Tensor next, Tensor image, Tensor rgb)");
  m.def(
      "synthesis_epilogue_backward(Tensor? dnext, Tensor? dimage, Tensor y, Tensor? rgb, Tensor? d, Tensor? noise, "
      "float strength, Tensor? next_styles, Tensor? rgb_weight, Tensor? rgb_styles, float[] taps, int form, "
      "float alpha, float gain, float clamp, float rgb_clamp, bool need_noise) -> (Tensor du, Tensor sums, Tensor "
      "dnoise)");
  m.def("synthesis_styles(Tensor w_plus, Tensor weight, Tensor bias, int[] rows) -> Tensor");
  m.def("synthesis_styles_backward(Tensor dstyles, Tensor weight, int[] rows) -> Tensor");
  m.def(
      "synthesis_demodulation(Tensor styles, Tensor weight_sumsq, int[] rows, int[] inputs, int[] outputs, float[] "
      "epsilons, bool scale) -> (Tensor styles, Tensor d, Tensor scales)");
  m.def(
      "synthesis_demodulation_backward(Tensor dstyles, Tensor q, Tensor styles, Tensor scales, Tensor weight_sumsq, "
      "int[] rows, int[] inputs, int[] outputs) -> Tensor");
  m.def(
      "synthesis_style_gradients(Tensor[] sums, Tensor d, Tensor bias, Tensor? unscale, int[] next_rows, int[] "
      "rgb_rows, int[] first_outputs, int count) -> (Tensor dstyles, Tensor q)");
  m.def("synthesis_gradient_scale(Tensor dimage) -> (Tensor scaled, Tensor inverse)");
  // Frozen convolutions with all that stands between them, on the CPU: fastinv/ops/frozen_conv.py.
  m.def("frozen_conv_pack(Tensor weight, int kind, ScalarType dtype) -> Tensor");
  m.def("frozen_conv_work(int kind, ScalarType dtype, int n, int inputs, int outputs, int height, int width) -> int");
  m.def(
      "frozen_conv(Tensor x, Tensor? packed, int kind, float[] taps, Tensor(a!) y, Tensor? styles, Tensor? d, Tensor? "
      "noise, float strength, Tensor? bias, Tensor? rgb_weight, Tensor? rgb_styles, Tensor? rgb_bias, Tensor(b!)? "
      "picture, Tensor(c!)? rgb, float alpha, float gain, float clamp, float rgb_clamp, Tensor(d!)? work) -> ()");
  m.def(
      "frozen_conv_backward(Tensor? du, Tensor? packed, int kind, float[] taps, Tensor? y, Tensor(a!)? du_before, "
      "Tensor(b!)? sums, Tensor? dimage, Tensor? rgb, Tensor? d, Tensor? noise, float strength, Tensor? next_styles, "
      "Tensor? rgb_weight, Tensor? rgb_styles, Tensor(c!)? dnoise, float alpha, float gain, float clamp, float "
      "rgb_clamp, Tensor(d!)? work) -> ()");
  // LPIPS around its convolutions: fastinv/ops/perceptual.py has the formulas.
  m.def(
      "perceptual_input(Tensor images, float[] scale, float[] offset, int height, int width, int channels, ScalarType "
      "dtype) -> Tensor");
  m.def(
      "perceptual_input_backward(Tensor grad, Tensor grad_value, float[] scale, int height, int width, ScalarType "
      "dtype) -> Tensor");
  m.def(
      "perceptual_stage(Tensor u, Tensor? bias, Tensor? head, Tensor? target, Tensor? target_inverse, Tensor? "
      "pixel_weight, bool pool) -> (Tensor h, Tensor pooled, Tensor inverse, Tensor slope, Tensor partial)");
  m.def(
      "perceptual_stage_backward(Tensor h, Tensor inverse, Tensor slope, Tensor head, Tensor target, Tensor "
      "target_inverse, Tensor? pixel_weight, Tensor grad_value, Tensor? grad_pooled) -> Tensor");
  m.def("perceptual_sum(Tensor[] partials) -> Tensor");
  // The end of an optimisation step, in place: fastinv/ops/adam.py. CUDA only; the CPU takes the reference.
  m.def(
      "adam_record(Tensor total, Tensor values, Tensor(a!) clock, Tensor(b!) curves, Tensor(c!) lowest, Tensor(d!) "
      "best_step, Tensor(e!) bad_step, Tensor(f!) better, bool last) -> ()");
  m.def(
      "adam_step(Tensor(a!) variable, Tensor gradient, Tensor(b!) mean, Tensor(c!) square, Tensor(d!) best, Tensor "
      "better, Tensor coefficients, Tensor clock, int column, float beta1, float beta2, float eps) -> ()");
  // Noise maps as variables: fastinv/ops/noise.py.
  m.def("noise_regularization(Tensor[] maps) -> (Tensor value, Tensor means, Tensor pyramid)");
  m.def("noise_regularization_backward(Tensor dvalue, Tensor[] maps, Tensor means, Tensor pyramid) -> Tensor[]");
  m.def("normalize_noise_(Tensor(a!)[] maps) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastinv, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fastinv::cpu_isa_op));
  m.impl("cpu_isas", TORCH_BOX(&fastinv::cpu_isas_op));
  m.impl("cpu_matrix", TORCH_BOX(&fastinv::cpu_matrix_op));
}
