// The simulator's own kernels, also with mistakes in them: tests/kernels/test_simulator.py, test_mutations.py.
#include "bindings.h"
#include "selftest.cuh"

namespace cuda = fastinv::cuda;
namespace host = fastinv::host;
using cuda::Mutation;

template <Mutation mutation>
static void sum(py::array x, py::array y) {
  host::Arrays arrays;
  const float* from = arrays.input<float>(x, "x");
  float* to = arrays.output<float>(y, "y");
  const int count = static_cast<int>(x.size());
  host::check(cuda::launch(cuda::sum_kernel<mutation>, (count + 63) / 64, 64, 0, nullptr, from, to, count));
}

template <Mutation mutation, class T, int V>
static void double_typed(py::array x, py::array y) {
  host::Arrays arrays;
  const T* from = static_cast<const T*>(arrays.input(x, host::dtype_of(x, "x"), "x"));
  T* to = static_cast<T*>(arrays.output(y, host::dtype_of(x, "x"), "y"));
  const int count = static_cast<int>(x.size()), blocks = (count / V + 63) / 64;
  host::check(cuda::launch(cuda::double_kernel<mutation, T, V>, blocks, 64, 0, nullptr, from, to, count));
}

// Takes 16 bytes at once.
static void double_any(py::array x, py::array y) {
  switch (host::dtype_of(x, "x")) {
    case cuda::Dtype::float32:
      return double_typed<Mutation::none, float, 4>(x, y);
    case cuda::Dtype::float64:
      return double_typed<Mutation::none, double, 2>(x, y);
    case cuda::Dtype::float16:
      return double_typed<Mutation::none, cuda::half, 8>(x, y);
    case cuda::Dtype::bfloat16:
      return double_typed<Mutation::none, cuda::bfloat16, 8>(x, y);
  }
}

template <Mutation mutation>
static void neighbours(py::array x, py::array y) {
  host::Arrays arrays;
  const float* from = arrays.input<float>(x, "x");
  float* to = arrays.output<float>(y, "y");
  const int rows = static_cast<int>(x.shape(0));
  host::check(cuda::launch(cuda::neighbours_kernel<mutation>, 1, 64, 3 * 72 * sizeof(float), nullptr, from, to, rows));
}

template <Mutation mutation, class T>
static void mma_typed(py::array a, py::array b, py::array d) {
  host::Arrays arrays;
  const T* left = static_cast<const T*>(arrays.input(a, host::dtype_of(a, "a"), "a"));
  const T* right = static_cast<const T*>(arrays.input(b, host::dtype_of(a, "a"), "b"));
  float* out = arrays.output<float>(d, "d");
  host::check(cuda::launch(cuda::mma_kernel<mutation, T>, 1, 32, 0, nullptr, left, right, out));
}

template <Mutation mutation>
static void mma(py::array a, py::array b, py::array d) {
  if (host::dtype_of(a, "a") == cuda::Dtype::float16) {
    mma_typed<mutation, cuda::half>(a, b, d);
  } else {
    mma_typed<mutation, cuda::bfloat16>(a, b, d);
  }
}

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  host::bind_simulator(m);
  m.def("sum", &sum<Mutation::none>);
  m.def("sum_removed_barrier", &sum<Mutation::removed_barrier>);
  m.def("sum_divergent_barrier", &sum<Mutation::divergent_barrier>);
  m.def("sum_divergent_shuffle", &sum<Mutation::divergent_shuffle>);
  m.def("sum_wrong_lane", &sum<Mutation::wrong_lane>);
  m.def("double", &double_any);
  m.def("double_out_of_bounds_read", &double_typed<Mutation::out_of_bounds_read, float, 4>);
  m.def("double_out_of_bounds_plain_read", &double_typed<Mutation::out_of_bounds_plain_read, float, 4>);
  m.def("double_out_of_bounds_write", &double_typed<Mutation::out_of_bounds_write, float, 4>);
  m.def("double_misaligned_access", &double_typed<Mutation::misaligned_access, float, 4>);
  m.def("double_misaligned_plain_read", &double_typed<Mutation::misaligned_plain_read, float, 4>);
  m.def("double_write_race", &double_typed<Mutation::write_race, float, 4>);
  m.def("double_plain_write_race", &double_typed<Mutation::plain_write_race, float, 1>);
  m.def("double_read_of_written", &double_typed<Mutation::read_of_written, float, 4>);
  m.def("neighbours", &neighbours<Mutation::none>);
  m.def("neighbours_removed_barrier", &neighbours<Mutation::removed_barrier>);
  m.def("neighbours_missing_wait", &neighbours<Mutation::missing_wait>);
  m.def("neighbours_late_barrier", &neighbours<Mutation::late_barrier>);
  m.def("neighbours_out_of_bounds_shared", &neighbours<Mutation::out_of_bounds_shared>);
  m.def("mma", &mma<Mutation::none>);
  m.def("mma_removed_barrier", &mma<Mutation::removed_barrier>);
  m.def("mma_wrong_lane", &mma<Mutation::wrong_lane>);
  m.def("mma_misaligned_access", &mma<Mutation::misaligned_access>);
  m.def("lanes", [](py::array y, unsigned block_x, unsigned block_y, unsigned block_z) {
    host::Arrays arrays;
    double* to = arrays.output<double>(y, "y");
    host::check(cuda::launch(cuda::lanes_kernel, 1, dim3(block_x, block_y, block_z), 0, nullptr, to));
  });
  m.def("refusal", [](std::vector<unsigned> grid, std::vector<unsigned> block, size_t dynamic_shared_bytes) {
    const char* refusal = host::Simulator::refusal(dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]),
                                                   dynamic_shared_bytes);
    return std::string(refusal == nullptr ? "" : refusal);
  });
  m.def("to_half", py::vectorize(&host::half_from_float));
  m.def("from_half", py::vectorize(&host::float_from_half));
  m.def("to_bfloat16", py::vectorize(&host::bfloat16_from_float));
  m.def("from_bfloat16", py::vectorize(&host::float_from_bfloat16));
}
