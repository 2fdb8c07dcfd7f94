// The kernels of styles and demodulation on the CPU; tests/kernels/test_synthesis_styles.py.
#include "../cuda/synthesis_styles.cu"
#include "bindings.h"

namespace cuda = fastinv::cuda;
namespace host = fastinv::host;

static cuda::StylesParams styles_params(const py::array& weight, const std::vector<int>& rows) {
  cuda::StylesParams p{};
  p.dtype = host::dtype_of(weight, "weight");
  p.rows = static_cast<int>(weight.shape(0));
  p.width = static_cast<int>(weight.shape(1));
  p.inputs = static_cast<int>(rows.size()) - 1;
  for (size_t i = 0; i < rows.size(); ++i) p.first_row[i] = rows[i];
  return p;
}

static cuda::DemodulationParams demodulation_params(const py::array& styles, const std::vector<int>& rows,
                                                    const std::vector<int>& inputs, const std::vector<int>& outputs) {
  cuda::DemodulationParams p{};
  p.dtype = host::dtype_of(styles, "styles");
  p.samples = styles.shape(0);
  p.rows = static_cast<int>(styles.shape(1));
  p.layers = static_cast<int>(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    p.row[i] = rows[i];
    p.inputs[i] = inputs[i];
    p.outputs[i] = outputs[i];
  }
  return p;
}

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  host::bind_simulator(m);
  m.def("styles", [](py::array w_plus, py::array weight, py::array bias, std::vector<int> rows, py::array styles) {
    host::Arrays arrays;
    cuda::StylesParams p = styles_params(weight, rows);
    p.samples = w_plus.shape(0);
    p.w_plus = arrays.input(w_plus, p.dtype, "w_plus");
    p.weight = arrays.input(weight, p.dtype, "weight");
    p.bias = arrays.input(bias, p.dtype, "bias");
    p.styles = arrays.output(styles, p.dtype, "styles");
    host::check(cuda::synthesis_styles(p, nullptr));
  });
  m.def("styles_backward", [](py::array dstyles, py::array weight, std::vector<int> rows, py::array dw_plus) {
    host::Arrays arrays;
    cuda::StylesParams p = styles_params(weight, rows);
    p.samples = dstyles.shape(0);
    p.dstyles = arrays.input(dstyles, p.dtype, "dstyles");
    p.weight = arrays.input(weight, p.dtype, "weight");
    p.dw_plus = arrays.output(dw_plus, p.dtype, "dw_plus");
    host::check(cuda::synthesis_styles_backward(p, nullptr));
  });
  m.def("demodulation", [](py::array styles, py::array weight_sumsq, std::vector<int> rows, std::vector<int> inputs,
                           std::vector<int> outputs, std::vector<double> epsilons, bool scale, py::array scaled,
                           py::array d, py::array scales) {
    host::Arrays arrays;
    cuda::DemodulationParams p = demodulation_params(styles, rows, inputs, outputs);
    for (size_t i = 0; i < epsilons.size(); ++i) p.epsilon[i] = epsilons[i];
    p.scale = scale;
    p.styles = arrays.input(styles, p.dtype, "styles");
    p.weight_sumsq = arrays.input(weight_sumsq, p.dtype, "weight_sumsq");
    p.scaled = arrays.output(scaled, p.dtype, "scaled");
    p.d = arrays.output(d, p.dtype, "d");
    p.scales = arrays.output(scales, p.dtype, "scales");
    host::check(cuda::synthesis_demodulation(p, nullptr));
  });
  m.def("demodulation_backward",
        [](py::array dstyles, py::array q, py::array styles, py::array factors, py::array weight_sumsq,
           std::vector<int> rows, std::vector<int> inputs, std::vector<int> outputs, py::array result) {
          host::Arrays arrays;
          cuda::DemodulationParams p = demodulation_params(styles, rows, inputs, outputs);
          p.dstyles = arrays.input(dstyles, p.dtype, "dstyles");
          p.q = arrays.input(q, p.dtype, "q");
          p.styles = arrays.input(styles, p.dtype, "styles");
          p.factors = arrays.input(factors, p.dtype, "factors");
          p.weight_sumsq = arrays.input(weight_sumsq, p.dtype, "weight_sumsq");
          p.result = arrays.output(result, p.dtype, "result");
          host::check(cuda::synthesis_demodulation_backward(p, nullptr));
        });
}
