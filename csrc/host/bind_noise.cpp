// The kernels of the noise regulariser and the normalisation on the CPU; tests/kernels/test_noise.py.
#include "../cuda/noise.cu"
#include "bindings.h"

namespace cuda = fastinv::cuda;
namespace host = fastinv::host;

// maps: [samples, R, R] each.
static cuda::NoiseParams noise_params(host::Arrays& arrays, const std::vector<py::array>& maps) {
  cuda::NoiseParams p{};
  p.dtype = host::dtype_of(maps.at(0), "maps");
  p.count = static_cast<int>(maps.size());
  p.samples = 1;
  for (size_t i = 0; i < maps.size(); ++i) {
    p.maps[i].map = arrays.input(maps[i], p.dtype, "map");
    p.maps[i].samples = static_cast<int>(maps[i].shape(0));
    p.maps[i].size = static_cast<int>(maps[i].shape(1));
    if (p.maps[i].samples != 1) p.samples = p.maps[i].samples;
  }
  return p;
}

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  host::bind_simulator(m);
  m.attr("normalize_tile") = cuda::kNormalizeTile;
  m.def("layout", [](const std::vector<py::array>& maps) {
    host::Arrays arrays;
    cuda::NoiseParams p = noise_params(arrays, maps);
    const cuda::NoiseSizes sizes = cuda::noise_layout(p);
    return std::make_tuple(sizes.pyramid, sizes.means, sizes.partials);
  });
  m.def("regularization",
        [](std::vector<py::array> maps, py::array value, py::array means, py::array pyramid, py::array partials) {
          host::Arrays arrays;
          cuda::NoiseParams p = noise_params(arrays, maps);
          cuda::noise_layout(p);
          p.value = arrays.output(value, p.dtype, "value");
          p.means = arrays.output<double>(means, "means");
          p.pyramid = arrays.output(pyramid, p.dtype, "pyramid");
          p.partials = arrays.output<double>(partials, "partials");
          host::check(cuda::noise_regularization(p, nullptr));
        });
  m.def("regularization_backward", [](py::array dvalue, std::vector<py::array> maps, py::array means, py::array pyramid,
                                      std::vector<py::array> gradients) {
    host::Arrays arrays;
    cuda::NoiseParams p = noise_params(arrays, maps);
    cuda::noise_layout(p);
    p.dvalue = arrays.input(dvalue, p.dtype, "dvalue");
    p.means = const_cast<double*>(arrays.input<double>(means, "means"));
    p.pyramid = const_cast<void*>(arrays.input(pyramid, p.dtype, "pyramid"));
    for (size_t i = 0; i < maps.size(); ++i) {
      p.maps[i].gradient = arrays.output(gradients[i], p.dtype, "gradient");
    }
    host::check(cuda::noise_regularization_backward(p, nullptr));
  });
  m.def("normalize", [](std::vector<py::array> maps) {
    host::Arrays arrays;
    cuda::NormalizeNoiseParams p{};
    p.dtype = host::dtype_of(maps.at(0), "maps");
    p.count = static_cast<int>(maps.size());
    for (size_t i = 0; i < maps.size(); ++i) {
      p.maps[i] = arrays.output(maps[i], p.dtype, "map");
      p.samples[i] = maps[i].shape(0);
      p.elements[i] = maps[i].shape(1) * maps[i].shape(2);
    }
    py::array_t<double> partials(std::vector<int64_t>{cuda::normalize_noise_partials(p), 2});
    p.partials = arrays.output<double>(partials, "partials");
    host::check(cuda::normalize_noise(p, nullptr));
  });
}
