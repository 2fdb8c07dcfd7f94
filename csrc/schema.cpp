// Every operator's schema, one line each. Kernels register themselves at the foot of csrc/cpu/<op>.cpp and
// csrc/cuda/<op>_cuda.cpp; fake kernels and autograd live in fastinv/ops/<op>.py.
#include "common/stable.h"

namespace fastinv {

static std::string cpu_isa_op() { return isa_name(cpu_isa()); }

// All instruction sets that are built in and that this machine runs, best last, separated by spaces.
static std::string cpu_isas_op() {
  std::string names;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (cpu_isa_available(isa)) names += (names.empty() ? "" : " ") + std::string(isa_name(isa));
  }
  return names;
}

}  // namespace fastinv

STABLE_TORCH_LIBRARY(fastinv, m) {
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
  m.def(
      "upfirdn2d(Tensor x, Tensor f, int up_x, int up_y, int down_x, int down_y, int pad_x0, int pad_x1, int pad_y0, "
      "int pad_y1, bool flip_filter, float gain) -> Tensor");
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
}

STABLE_TORCH_LIBRARY_IMPL(fastinv, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fastinv::cpu_isa_op));
  m.impl("cpu_isas", TORCH_BOX(&fastinv::cpu_isas_op));
}
