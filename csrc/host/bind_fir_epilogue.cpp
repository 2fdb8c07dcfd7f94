// fir_epilogue and fir_epilogue_backward on the CPU: tests/kernels/test_fir_epilogue.py. Feature maps are NHWC.
#include "../cuda/fir_epilogue.cu"
#include "bindings.h"

namespace cuda = fastinv::cuda;
namespace host = fastinv::host;
using Operand = std::optional<py::array>;

// What both directions share, by name: "d", "noise", "next_styles", "rgb_weight", "rgb_styles" (arrays or None),
// "form", "strength", "taps", "alpha", "gain", "clamp", "rgb_clamp".
static void set_layer(cuda::SynthesisLayer& p, host::Arrays& arrays, const py::dict& options, const py::array& y) {
  p.dtype = host::dtype_of(y, "y");
  const cuda::Dtype compute = p.dtype == cuda::Dtype::float64 ? cuda::Dtype::float64 : cuda::Dtype::float32;
  p.form = static_cast<fastinv::Form>(options["form"].cast<int64_t>());
  p.samples = y.shape(0);
  p.height = static_cast<int>(y.shape(1));
  p.width = static_cast<int>(y.shape(2));
  p.channels = static_cast<int>(y.shape(3));
  const auto operand = [&](const char* name, const void*& pointer, int64_t* stride) {
    const Operand array = options[name].cast<Operand>();
    pointer = arrays.input(array, compute, name);
    if (stride != nullptr)
      *stride = array.has_value() && array->shape(0) > 1 ? array->strides(0) / array->itemsize() : 0;
  };
  operand("d", p.d, &p.d_stride);
  operand("noise", p.noise, &p.noise_stride);
  operand("next_styles", p.next_styles, &p.next_stride);
  operand("rgb_weight", p.rgb_weight, nullptr);
  operand("rgb_styles", p.rgb_styles, &p.rgb_stride);
  p.strength = options["strength"].cast<double>();
  const std::vector<double> taps = options["taps"].cast<std::vector<double>>();
  for (int i = 0; i < 4; ++i) p.taps[i] = taps.at(i);
  p.alpha = options["alpha"].cast<double>();
  p.gain = options["gain"].cast<double>();
  p.clamp = options["clamp"].cast<double>();
  p.rgb_clamp = options["rgb_clamp"].cast<double>();
}

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  host::bind_simulator(m);
  m.def("fir_epilogue", [](py::dict options, py::array u, Operand bias, Operand rgb_bias, Operand previous, py::array y,
                           Operand next, Operand image, Operand rgb) {
    host::Arrays arrays;
    cuda::SynthesisEpilogueParams p{};
    set_layer(p, arrays, options, y);
    const cuda::Dtype compute = p.dtype == cuda::Dtype::float64 ? cuda::Dtype::float64 : cuda::Dtype::float32;
    p.u = arrays.input(u, p.dtype, "u");
    p.bias = arrays.input(bias, compute, "bias");
    p.rgb_bias = arrays.input(rgb_bias, compute, "rgb_bias");
    p.previous = arrays.input(previous, compute, "previous");
    p.y = arrays.output(y, p.dtype, "y");
    p.next = arrays.output(next, p.dtype, "next");
    p.image = arrays.output(image, compute, "image");
    p.rgb = arrays.output(rgb, compute, "rgb");
    host::check(cuda::fir_epilogue(p, nullptr));
  });
  m.def("fir_epilogue_backward", [](py::dict options, Operand dnext, Operand dimage, py::array y, Operand rgb,
                                    py::array du, py::array sums, Operand dnoise) {
    host::Arrays arrays;
    cuda::SynthesisEpilogueBackwardParams p{};
    set_layer(p, arrays, options, y);
    const cuda::Dtype compute = p.dtype == cuda::Dtype::float64 ? cuda::Dtype::float64 : cuda::Dtype::float32;
    p.dnext = arrays.input(dnext, p.dtype, "dnext");
    p.dimage = arrays.input(dimage, compute, "dimage");
    p.y = arrays.input(y, p.dtype, "y");
    p.rgb = arrays.input(rgb, compute, "rgb");
    p.du = arrays.output(du, p.dtype, "du");
    p.sums = arrays.output(sums, compute, "sums");
    p.dnoise = arrays.output(dnoise, compute, "dnoise");
    host::check(cuda::fir_epilogue_backward(p, nullptr));
  });
}
