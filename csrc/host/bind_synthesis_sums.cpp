// The kernels of style_gradients and gradient_scale on the CPU; tests/kernels/test_synthesis_sums.py.
#include "../cuda/synthesis_sums.cu"
#include "bindings.h"

namespace cuda = fastinv::cuda;
namespace host = fastinv::host;

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  host::bind_simulator(m);
  m.attr("tiles_per_chunk") = cuda::kTilesPerChunk;
  m.attr("scale_tile") = cuda::kScaleTile;
  m.def("style_gradients", [](std::vector<py::array> sums, py::array d, py::array bias,
                              std::optional<py::array> unscale, std::vector<int> next_rows, std::vector<int> rgb_rows,
                              std::vector<int> first_outputs, py::array partial, py::array dstyles, py::array q) {
    host::Arrays arrays;
    cuda::StyleGradientsParams p{};
    p.dtype = host::dtype_of(d, "d");
    for (size_t i = 0; i < sums.size(); ++i) {
      cuda::SumLayer& layer = p.layers[i];
      layer.sums = arrays.input(sums[i], p.dtype, "sums");
      layer.tiles = static_cast<int>(sums[i].shape(1));
      layer.planes = static_cast<int>(sums[i].shape(2));
      layer.channels = static_cast<int>(sums[i].shape(3));
      layer.next_row = next_rows[i];
      layer.rgb_row = rgb_rows[i];
      layer.first_output = first_outputs[i];
    }
    p.d = arrays.input(d, p.dtype, "d");
    p.bias = arrays.input(bias, p.dtype, "bias");
    p.unscale = arrays.input(unscale, p.dtype, "unscale");
    p.partial = arrays.output<double>(partial, "partial");
    p.dstyles = arrays.output(dstyles, p.dtype, "dstyles");
    p.q = arrays.output(q, p.dtype, "q");
    p.samples = d.shape(0);
    p.layer_count = static_cast<int>(sums.size());
    p.rows = static_cast<int>(dstyles.shape(1));
    p.outputs = static_cast<int>(d.shape(1));
    host::check(cuda::synthesis_style_gradients(p, nullptr));
  });
  m.def("gradient_scale", [](py::array gradient, py::array scaled, py::array inverse, py::array largest) {
    host::Arrays arrays;
    cuda::GradientScaleParams p{};
    p.dtype = host::dtype_of(gradient, "gradient");
    p.samples = gradient.shape(0);
    p.elements = gradient.shape(1);
    p.gradient = arrays.input(gradient, p.dtype, "gradient");
    p.scaled = arrays.output(scaled, p.dtype, "scaled");
    p.inverse = arrays.output(inverse, p.dtype, "inverse");
    p.largest = arrays.output(largest, p.dtype, "largest");
    host::check(cuda::synthesis_gradient_scale(p, nullptr));
  });
}
