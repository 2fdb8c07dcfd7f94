// The simulator's own kernels; tests/kernels/test_simulator.py.
#ifdef FASTINV_SELFTEST_SOURCE  // a mutation
#include FASTINV_SELFTEST_SOURCE
#else
#include "selftest.cuh"
#endif
#include "bindings.h"

namespace cuda = fastinv::cuda;
namespace host = fastinv::host;

template <class T>
static const char* double_all(const void* x, void* y, int count, int width) {
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(y);
  const auto go = [&](auto kernel, int v) {
    return cuda::launch(kernel, (count / v + 63) / 64, 64, 0, nullptr, from, to, count);
  };
  if constexpr (sizeof(T) <= 2) {
    if (width == 8) return go(cuda::double_kernel<T, 8>, 8);
  }
  if constexpr (sizeof(T) <= 4) {
    if (width == 4) return go(cuda::double_kernel<T, 4>, 4);
  }
  if (width == 2) return go(cuda::double_kernel<T, 2>, 2);
  return go(cuda::double_kernel<T, 1>, 1);
}

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  host::bind_simulator(m);
  m.def("sum", [](py::array x, py::array y) {
    host::Arrays arrays;
    const int count = static_cast<int>(x.size());
    host::check(cuda::launch(cuda::sum_kernel, (count + 63) / 64, 64, 0, nullptr, arrays.input<float>(x, "x"),
                             arrays.output<float>(y, "y"), count));
  });
  m.def("double", [](py::array x, py::array y, int width) {
    host::Arrays arrays;
    const cuda::Dtype dtype = host::dtype_of(x, "x");
    const void* from = arrays.input(x, dtype, "x");
    void* to = arrays.output(y, dtype, "y");
    const int count = static_cast<int>(x.size());
    switch (dtype) {
      case cuda::Dtype::float32:
        return host::check(double_all<float>(from, to, count, width));
      case cuda::Dtype::float64:
        return host::check(double_all<double>(from, to, count, width));
      case cuda::Dtype::float16:
        return host::check(double_all<cuda::half>(from, to, count, width));
      case cuda::Dtype::bfloat16:
        return host::check(double_all<cuda::bfloat16>(from, to, count, width));
    }
  });
  m.def("neighbours", [](py::array x, py::array y) {
    host::Arrays arrays;
    host::check(cuda::launch(cuda::neighbours_kernel, 1, 64, 3 * 72 * sizeof(float), nullptr,
                             arrays.input<float>(x, "x"), arrays.output<float>(y, "y"), static_cast<int>(x.shape(0))));
  });
  m.def("mma", [](py::array a, py::array b, py::array d) {
    host::Arrays arrays;
    const cuda::Dtype dtype = host::dtype_of(a, "a");
    const void* left = arrays.input(a, dtype, "a");
    const void* right = arrays.input(b, dtype, "b");
    float* out = arrays.output<float>(d, "d");
    const auto go = [&](auto kernel, auto* example) {
      return cuda::launch(kernel, 1, 32, 0, nullptr, static_cast<decltype(example)>(left),
                          static_cast<decltype(example)>(right), out);
    };
    if (dtype == cuda::Dtype::float16) {
      host::check(go(cuda::mma_kernel<cuda::half>, static_cast<const cuda::half*>(nullptr)));
    } else {
      host::check(go(cuda::mma_kernel<cuda::bfloat16>, static_cast<const cuda::bfloat16*>(nullptr)));
    }
  });
  m.def("lanes", [](py::array y, unsigned block_x, unsigned block_y, unsigned block_z) {
    host::Arrays arrays;
    host::check(cuda::launch(cuda::lanes_kernel, 1, dim3(block_x, block_y, block_z), 0, nullptr,
                             arrays.output<double>(y, "y")));
  });
  m.def("refusal", [](std::vector<unsigned> grid, std::vector<unsigned> block, size_t dynamic_shared_bytes) {
    const char* refusal = host::Simulator::refusal(dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]),
                                                   dynamic_shared_bytes);
    return std::string(refusal == nullptr ? "" : refusal);
  });
  m.def("convert", [](py::array_t<float> x, py::array_t<uint16_t> half, py::array_t<uint16_t> bfloat16,
                      py::array_t<float> from_half, py::array_t<float> from_bfloat16) {
    for (py::ssize_t i = 0; i < x.size(); ++i) {
      half.mutable_at(i) = host::half_from_float(x.at(i));
      bfloat16.mutable_at(i) = host::bfloat16_from_float(x.at(i));
      from_half.mutable_at(i) = host::float_from_half(half.at(i));
      from_bfloat16.mutable_at(i) = host::float_from_bfloat16(bfloat16.at(i));
    }
  });
}
