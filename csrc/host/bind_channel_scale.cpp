// channel_scale on the simulator, and the index arithmetic of the walk; tests/kernels/test_channel_scale.py.
#include <cmath>

#include "../cuda/channel_scale.cu"
#include "bindings.h"

namespace cuda = fastinv::cuda;
namespace host = fastinv::host;

// Both along a walk that the test chooses: out = x * scale, sums = dot of x with itself. float32 only.
static void along(const cuda::ChannelWalk& walk, py::array x, py::array scale, py::array out, py::array sums) {
  host::Arrays arrays;
  cuda::ChannelScaleParams p{};
  p.x = arrays.input<float>(x, "x");
  p.scale = arrays.input<float>(scale, "scale");
  p.out = arrays.output<float>(out, "out");
  p.channels = walk.channels;
  host::check(cuda::scale<float>(p, walk, nullptr));
  cuda::ChannelDotParams q{};
  q.a = q.b = p.x;
  q.out = arrays.output<float>(sums, "sums");
  q.samples = walk.samples;
  std::vector<float> partials(cuda::partial_count(walk), NAN);
  host::simulator().memory.add(partials.data(), partials.size() * sizeof(float), true, "partials");
  q.partials = partials.data();
  host::check(cuda::dot<float>(q, walk, nullptr));
}

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  host::bind_simulator(m);
  // Tensors as [samples, channels, pixels], or [samples, pixels, channels] with channels_last.
  m.def("channel_scale",
        [](py::array x, py::array scale, py::array out, const std::vector<int64_t>& sizes, bool channels_last) {
          host::Arrays arrays;
          const cuda::Dtype dtype = host::dtype_of(x, "x");
          const cuda::Dtype compute = dtype == cuda::Dtype::float64 ? dtype : cuda::Dtype::float32;
          const cuda::ChannelScaleParams p{dtype,
                                           arrays.input(x, dtype, "x"),
                                           arrays.input(scale, compute, "scale"),
                                           arrays.output(out, dtype, "out"),
                                           sizes.at(0),
                                           sizes.at(1),
                                           sizes.at(2),
                                           channels_last};
          host::check(cuda::channel_scale(p, nullptr));
        });
  m.def("channel_dot",
        [](py::array a, py::array b, py::array out, const std::vector<int64_t>& sizes, bool channels_last) {
          host::Arrays arrays;
          const cuda::Dtype dtype = host::dtype_of(a, "a");
          const cuda::Dtype compute = dtype == cuda::Dtype::float64 ? dtype : cuda::Dtype::float32;
          cuda::ChannelDotParams p{dtype,
                                   arrays.input(a, dtype, "a"),
                                   arrays.input(b, dtype, "b"),
                                   arrays.output(out, compute, "out"),
                                   nullptr,
                                   sizes.at(0),
                                   sizes.at(1),
                                   sizes.at(2),
                                   channels_last};
          std::vector<char> partials(cuda::channel_dot_workspace(p), '\xff');  // NaN
          host::simulator().memory.add(partials.data(), partials.size(), true, "partials");
          p.partials = partials.data();
          host::check(cuda::channel_dot(p, nullptr));
        });

  py::class_<cuda::ChannelWalk>(m, "Walk")
      .def_readonly("blocks", &cuda::ChannelWalk::blocks)
      .def_readonly("period", &cuda::ChannelWalk::period)
      .def_property_readonly("partial_count", [](const cuda::ChannelWalk& walk) { return cuda::partial_count(walk); });
  py::class_<cuda::ThreadRange>(m, "Range")
      .def_readonly("base", &cuda::ThreadRange::base)
      .def_readonly("begin", &cuda::ThreadRange::begin)
      .def_readonly("end", &cuda::ThreadRange::end)
      .def_readonly("first", &cuda::ThreadRange::first)
      .def_readonly("step", &cuda::ThreadRange::step)
      .def_readonly("sample", &cuda::ThreadRange::sample)
      .def_readonly("channel", &cuda::ThreadRange::channel)
      .def_readonly("partial", &cuda::ThreadRange::partial)
      .def_readonly("slot", &cuda::ThreadRange::slot);
  m.def("walk_planes", &cuda::walk_planes, py::arg("samples"), py::arg("channels"), py::arg("length"),
        py::arg("vector"), py::arg("sums"), py::arg("iterations") = 0);
  m.def("walk_columns", &cuda::walk_columns, py::arg("samples"), py::arg("pixels"), py::arg("channels"),
        py::arg("vector"), py::arg("sums"), py::arg("iterations") = 0);
  m.def("along", &along);
  m.def("thread_range", &cuda::thread_range);
}
