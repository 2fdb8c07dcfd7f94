// What a test module of simulated kernels needs of pybind11. Include it after the .cu file:
//
//   #include "../cuda/<op>.cu"
//   #include "bindings.h"
//   PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
//     fastinv::host::bind_simulator(m);
//     m.def("<launcher>", [](py::array x, std::optional<py::array> b, py::array y) {
//       fastinv::host::Arrays arrays;                // kernels may touch these arrays only, until it goes out of scope
//       fastinv::cuda::XParams p{};
//       p.dtype = fastinv::host::dtype_of(x, "x");
//       p.x = arrays.input(x, p.dtype, "x");         // const void*
//       p.b = arrays.input(b, p.dtype, "b");         // null for None
//       p.y = arrays.output(y, p.dtype, "y");        // void*
//       p.f = arrays.input<float>(f, "f");           // const float*
//       fastinv::host::check(fastinv::cuda::launcher(p, nullptr));
//     });
//   }
//
// Arrays keep NumPy's strides and offsets, so a view gives a pointer of any alignment; read strides from the array.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "../cuda/dtype.h"
#include "simulator.h"

namespace py = pybind11;

namespace fastinv::host {

inline std::string dtype_name(const py::array& array) { return py::str(array.dtype()).cast<std::string>(); }

inline const char* numpy_name(cuda::Dtype dtype) {
  switch (dtype) {
    case cuda::Dtype::float32:
      return "float32";
    case cuda::Dtype::float64:
      return "float64";
    case cuda::Dtype::float16:
      return "float16";
    case cuda::Dtype::bfloat16:
      return "uint16";  // NumPy has no bfloat16; its bits
  }
  return "";
}

// float32, float64, float16, or uint16 for bfloat16.
inline cuda::Dtype dtype_of(const py::array& array, const std::string& name) {
  const std::string dtype = dtype_name(array);
  for (cuda::Dtype known : {cuda::Dtype::float32, cuda::Dtype::float64, cuda::Dtype::float16, cuda::Dtype::bfloat16}) {
    if (dtype == numpy_name(known)) return known;
  }
  throw std::invalid_argument(name + ": dtype " + dtype + "; must be float32, float64, float16 or uint16 (bfloat16)");
}

// The arrays of one call, which the simulated kernels may touch: load, store, copy_async16 check it.
class Arrays {
 public:
  Arrays() { simulator().memory.remove_all(); }
  ~Arrays() { simulator().memory.remove_all(); }
  Arrays(const Arrays&) = delete;
  Arrays& operator=(const Arrays&) = delete;

  const void* input(const py::array& array, cuda::Dtype dtype, const std::string& name) {
    return registered(array, numpy_name(dtype), name, false);
  }
  const void* input(const std::optional<py::array>& array, cuda::Dtype dtype, const std::string& name) {
    return array.has_value() ? input(*array, dtype, name) : nullptr;
  }
  void* output(const py::array& array, cuda::Dtype dtype, const std::string& name) {
    return registered(array, numpy_name(dtype), name, true);
  }
  void* output(const std::optional<py::array>& array, cuda::Dtype dtype, const std::string& name) {
    return array.has_value() ? output(*array, dtype, name) : nullptr;
  }

  // T: float, double, int32_t, int64_t, uint8_t, ...
  template <class T>
  const T* input(const py::array& array, const std::string& name) {
    return static_cast<const T*>(registered(array, py::str(py::dtype::of<T>()), name, false));
  }
  template <class T>
  const T* input(const std::optional<py::array>& array, const std::string& name) {
    return array.has_value() ? input<T>(*array, name) : nullptr;
  }
  template <class T>
  T* output(const py::array& array, const std::string& name) {
    return static_cast<T*>(registered(array, py::str(py::dtype::of<T>()), name, true));
  }
  template <class T>
  T* output(const std::optional<py::array>& array, const std::string& name) {
    return array.has_value() ? output<T>(*array, name) : nullptr;
  }

 private:
  static void* registered(const py::array& array, const std::string& dtype, const std::string& name, bool writable) {
    if (dtype_name(array) != dtype) {
      throw std::invalid_argument(name + ": dtype " + dtype_name(array) + "; must be " + dtype);
    }
    if (writable && !array.writeable()) throw std::invalid_argument(name + ": the array is read-only");
    char* first = static_cast<char*>(const_cast<void*>(array.data()));
    char* begin = first;
    char* end = first + (array.size() > 0 ? array.itemsize() : 0);
    for (py::ssize_t i = 0; i < array.ndim() && array.size() > 0; ++i) {
      const py::ssize_t reach = (array.shape(i) - 1) * array.strides(i);
      (reach < 0 ? begin : end) += reach;
    }
    simulator().memory.add(begin, static_cast<size_t>(end - begin), writable, name);
    return first;
  }
};

// Turns a launcher's error text into a RuntimeError.
inline void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}

inline void set_order(const std::string& name, uint64_t seed) {
  if (name == "forward") {
    simulator().order = Order::forward;
  } else if (name == "reverse") {
    simulator().order = Order::reverse;
  } else if (name == "random") {
    simulator().order = Order::random;
  } else {
    throw std::invalid_argument("order: " + name + "; must be forward, reverse or random");
  }
  simulator().seed = seed;
}

inline void bind_simulator(py::module_& m) {
  m.def("set_order", &set_order, py::arg("name"), py::arg("seed") = 1,
        "The order in which blocks, and the threads of a block, take their turns: forward, reverse or random.");
  m.def(
      "operations", [] { return simulator().operations(); },
      "Barriers, shuffles and waits that kernels have executed, each as 'block_barrier bias_act.cuh:120'.");
  m.def("forget_operations", [] { simulator().forget_operations(); });
  m.def(
      "omit", [](const std::string& operation) { simulator().omit(operation); }, py::arg("operation"),
      "Kernels leave out this operation from now on; '' for none. A test must then fail.");
  m.def("launches", [] { return simulator().launches; }, "Kernels run so far.");
  m.def("switches", [] { return simulator().switches; }, "Times that a thread waited, so far.");
}

}  // namespace fastinv::host
