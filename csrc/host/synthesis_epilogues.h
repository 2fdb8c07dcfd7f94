// Binds a pair of launchers of synthesis_epilogue and its backward. Feature maps are NHWC arrays, pictures NCHW.
#pragma once

#include "../cuda/synthesis_epilogue.h"
#include "bindings.h"

namespace fastinv::host {

using Operand = std::optional<py::array>;

// What both directions share, by name: "d", "noise", "next_styles", "rgb_weight", "rgb_styles" (arrays or None),
// "form", "strength", "taps", "alpha", "gain", "clamp", "rgb_clamp". Returns the compute dtype.
inline cuda::Dtype set_layer(cuda::SynthesisLayer& p, Arrays& arrays, const py::dict& layer, const py::array& y) {
  p.dtype = dtype_of(y, "y");
  const cuda::Dtype compute = p.dtype == cuda::Dtype::float64 ? cuda::Dtype::float64 : cuda::Dtype::float32;
  p.form = static_cast<Form>(layer["form"].cast<int64_t>());
  p.samples = y.shape(0);
  p.height = static_cast<int>(y.shape(1));
  p.width = static_cast<int>(y.shape(2));
  p.channels = static_cast<int>(y.shape(3));
  const auto operand = [&](const char* name, const void*& pointer, int64_t* stride) {
    const Operand array = layer[name].cast<Operand>();
    pointer = arrays.input(array, compute, name);
    if (stride == nullptr || !array.has_value()) return;
    *stride = array->shape(0) > 1 ? array->strides(0) / array->itemsize() : 0;
  };
  operand("d", p.d, &p.d_stride);
  operand("noise", p.noise, &p.noise_stride);
  operand("next_styles", p.next_styles, &p.next_stride);
  operand("rgb_weight", p.rgb_weight, nullptr);
  operand("rgb_styles", p.rgb_styles, &p.rgb_stride);
  p.strength = layer["strength"].cast<double>();
  const std::vector<double> taps = layer["taps"].cast<std::vector<double>>();
  for (int i = 0; i < 4; ++i) p.taps[i] = taps.at(i);
  p.alpha = layer["alpha"].cast<double>();
  p.gain = layer["gain"].cast<double>();
  p.clamp = layer["clamp"].cast<double>();
  p.rgb_clamp = layer["rgb_clamp"].cast<double>();
  return compute;
}

using Launcher = const char* (*)(const cuda::SynthesisEpilogueParams&, void*);
using BackwardLauncher = const char* (*)(const cuda::SynthesisEpilogueBackwardParams&, void*);

inline void bind_synthesis_epilogues(py::module_& m, Launcher launcher, BackwardLauncher backward_launcher) {
  m.def("epilogue", [launcher](py::dict layer, py::array u, Operand bias, Operand rgb_bias, Operand previous,
                               py::array y, Operand next, Operand image, Operand rgb) {
    Arrays arrays;
    cuda::SynthesisEpilogueParams p{};
    const cuda::Dtype compute = set_layer(p, arrays, layer, y);
    p.u = arrays.input(u, p.dtype, "u");
    p.bias = arrays.input(bias, compute, "bias");
    p.rgb_bias = arrays.input(rgb_bias, compute, "rgb_bias");
    p.previous = arrays.input(previous, compute, "previous");
    p.y = arrays.output(y, p.dtype, "y");
    p.next = arrays.output(next, p.dtype, "next");
    p.image = arrays.output(image, compute, "image");
    p.rgb = arrays.output(rgb, compute, "rgb");
    check(launcher(p, nullptr));
  });
  m.def("epilogue_backward", [backward_launcher](py::dict layer, Operand dnext, Operand dimage, py::array y,
                                                 Operand rgb, py::array du, py::array sums, Operand dnoise) {
    Arrays arrays;
    cuda::SynthesisEpilogueBackwardParams p{};
    const cuda::Dtype compute = set_layer(p, arrays, layer, y);
    p.dnext = arrays.input(dnext, p.dtype, "dnext");
    p.dimage = arrays.input(dimage, compute, "dimage");
    p.y = arrays.input(y, p.dtype, "y");
    p.rgb = arrays.input(rgb, compute, "rgb");
    p.du = arrays.output(du, p.dtype, "du");
    p.sums = arrays.output(sums, compute, "sums");
    p.dnoise = arrays.output(dnoise, compute, "dnoise");
    check(backward_launcher(p, nullptr));
  });
}

}  // namespace fastinv::host
