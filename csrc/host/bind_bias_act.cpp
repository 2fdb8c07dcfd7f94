// bias_act on the simulator; tests/kernels/test_bias_act.py.
#include "../cuda/bias_act.cu"
#include "bindings.h"

namespace cuda = fastinv::cuda;
namespace host = fastinv::host;

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  host::bind_simulator(m);
  // Tensors as [outer, channels, inner] in the order of memory; order 0, 1 or 2 as BiasActOrder.
  m.def("bias_act", [](int order, int act, double alpha, double gain, double clamp, const std::vector<int64_t>& sizes,
                       py::array x, std::optional<py::array> dy, std::optional<py::array> grad,
                       std::optional<py::array> b, py::array out, std::optional<py::array> db) {
    host::Arrays arrays;
    cuda::BiasActParams p{};
    p.dtype = host::dtype_of(x, "x");
    p.order = static_cast<cuda::BiasActOrder>(order);
    p.act = act;
    p.alpha = alpha;
    p.gain = gain;
    p.clamp = clamp;
    p.x = arrays.input(x, p.dtype, "x");
    p.dy = arrays.input(dy, p.dtype, "dy");
    p.grad = arrays.input(grad, p.dtype, "grad");
    p.b = arrays.input(b, p.dtype, "b");
    p.out = arrays.output(out, p.dtype, "out");
    p.db = arrays.output(db, p.dtype, "db");
    p.outer = sizes.at(0);
    p.channels = sizes.at(1);
    p.inner = sizes.at(2);
    std::vector<char> partials(cuda::bias_act_workspace(p), '\xff');  // NaN
    host::simulator().memory.add(partials.data(), partials.size(), true, "partials");
    p.partials = partials.data();
    host::check(cuda::bias_act(p, nullptr));
  });
}
