// The kernels of upfirdn2d as a test module for the CPU.
#include <array>

#include "../cuda/upfirdn2d.cu"
#include "bindings.h"

namespace fastinv::cuda {
namespace {

// axis: (size, out, up, down, padding_before, taps)
using Axis = std::array<int64_t, 6>;

Upfirdn2dAxis axis_of(const Axis& a) { return {a[0], a[1], a[2], a[3], a[4], a[5]}; }

const char* name_of(Upfirdn2dKernel kernel) {
  switch (kernel) {
    case Upfirdn2dKernel::channels:
      return "channels";
    case Upfirdn2dKernel::pixels:
      return "pixels";
    case Upfirdn2dKernel::planes:
      return "planes";
    case Upfirdn2dKernel::direct:
      return "direct";
    case Upfirdn2dKernel::two_passes:
      return "two_passes";
  }
  return "";
}

}  // namespace
}  // namespace fastinv::cuda

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  using namespace fastinv;
  using namespace fastinv::cuda;
  host::bind_simulator(m);

  // input [images, y.size, x.size, channels], output [images, y.out, x.out, channels]; returns the kernel's name.
  m.def("upfirdn2d",
        [](py::array input, py::array filter, py::array output, const Axis& x, const Axis& y, bool flip, double gain) {
          host::Arrays arrays;
          Upfirdn2dParams p{};
          p.dtype = host::dtype_of(input, "input");
          p.input = arrays.input(input, p.dtype, "input");
          p.output = arrays.output(output, p.dtype, "output");
          p.filter = arrays.input<float>(filter, "filter");
          p.images = input.shape(0);
          p.channels = input.shape(3);
          p.x = axis_of(x);
          p.y = axis_of(y);
          p.one_dimensional = filter.ndim() == 1;
          p.flip_filter = flip;
          p.gain = gain;
          py::array between;
          const int64_t bytes = upfirdn2d_between_bytes(p);
          if (bytes > 0) {
            const bool doubles = p.dtype == Dtype::float64;
            between = doubles ? py::array(py::array_t<double>(bytes / 8)) : py::array(py::array_t<float>(bytes / 4));
            std::memset(between.mutable_data(), 0xff, static_cast<size_t>(bytes));
            p.between = arrays.output(between, doubles ? Dtype::float64 : Dtype::float32, "between");
          }
          host::check(upfirdn2d(p, nullptr));
          return name_of(upfirdn2d_kernel(p));
        });

  // The kernel that such a call would take, with pointers aligned to 16 bytes; no memory.
  m.def("kernel_of", [](int64_t images, int64_t channels, const Axis& x, const Axis& y, bool one_dimensional) {
    Upfirdn2dParams p{};
    p.dtype = Dtype::float16;
    p.images = images;
    p.channels = channels;
    p.x = axis_of(x);
    p.y = axis_of(y);
    p.one_dimensional = one_dimensional;
    return name_of(upfirdn2d_kernel(p));
  });
  // The grid of the direct kernel.
  m.def("direct_grid", [](int64_t images, int64_t channels, const Axis& x, const Axis& y) {
    Upfirdn2dParams p{};
    p.images = images;
    p.channels = channels;
    const dim3 grid = direct_grid(p, axis_of(x), axis_of(y));
    return std::array<int64_t, 3>{grid.x, grid.y, grid.z};
  });
  m.def("row_offset", &row_offset);
  m.def("images_at_once", &images_at_once);
  m.def("sample_span", [](const Axis& axis, int64_t out) {
    const SampleSpan span = sample_span(axis_of(axis), out);
    return std::array<int64_t, 3>{span.first, span.tap, span.count};
  });
}
