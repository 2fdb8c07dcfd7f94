// adam_record and adam_step on the simulator; tests/kernels/test_adam.py.
#include "../cuda/adam.cu"
#include "bindings.h"

namespace cuda = fastinv::cuda;
namespace host = fastinv::host;

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  host::bind_simulator(m);
  m.def("adam_record", [](py::array total, py::array values, py::array clock, py::array curves, py::array lowest,
                          py::array best_step, py::array bad_step, py::array better, bool last) {
    host::Arrays arrays;
    cuda::AdamRecordParams p{};
    p.dtype = host::dtype_of(total, "total");
    p.total = arrays.input(total, p.dtype, "total");
    p.values = arrays.input(values, p.dtype, "values");
    p.clock = arrays.output<int64_t>(clock, "clock");
    p.curves = arrays.output(curves, p.dtype, "curves");
    p.lowest = arrays.output(lowest, p.dtype, "lowest");
    p.best_step = arrays.output<int64_t>(best_step, "best_step");
    p.bad_step = arrays.output<int64_t>(bad_step, "bad_step");
    p.better = arrays.output<bool>(better, "better");
    p.page = curves.shape(0);
    p.terms = values.shape(0);
    p.pictures = total.shape(0);
    p.last = last;
    host::check(cuda::adam_record(p, nullptr));
  });
  m.def("adam_step",
        [](py::array variable, py::array gradient, py::array mean, py::array square, py::array best, py::array better,
           py::array coefficients, py::array clock, int64_t column, double beta1, double beta2, double eps) {
          host::Arrays arrays;
          cuda::AdamStepParams p{};
          p.dtype = host::dtype_of(variable, "variable");
          p.variable = arrays.output(variable, p.dtype, "variable");
          p.gradient = arrays.input(gradient, p.dtype, "gradient");
          p.mean = arrays.output(mean, p.dtype, "mean");
          p.square = arrays.output(square, p.dtype, "square");
          p.best = arrays.output(best, p.dtype, "best");
          p.better = arrays.input<bool>(better, "better");
          p.coefficients = arrays.input(coefficients, p.dtype, "coefficients");
          p.clock = arrays.input<int64_t>(clock, "clock");
          p.page = coefficients.shape(0);
          p.columns = coefficients.shape(1);
          p.column = column;
          p.pictures = variable.shape(0);
          p.size = p.pictures > 0 ? variable.size() / p.pictures : 0;
          p.beta1 = beta1;
          p.beta2 = beta2;
          p.eps = eps;
          host::check(cuda::adam_step(p, nullptr));
        });
}
