// The one place that includes torch headers: LibTorch's stable ABI only, so that one binary serves every torch >= 2.10
// and every Python. TORCH_TARGET_VERSION is set by the build.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bfloat16.h"
#include "isa.h"

namespace fastinv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// FASTINV_CHECK(condition, "upfirdn2d: up must be >= 1, got ", up): a Python RuntimeError with that one line.
#define FASTINV_CHECK(condition, ...)                                                \
  do {                                                                               \
    if (!(condition)) throw std::runtime_error(::fastinv::concatenate(__VA_ARGS__)); \
  } while (0)

template <class... Parts>
std::string concatenate(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

// Runs body(begin, end) over [begin, end) in torch's thread pool, at least `grain` items to a thread.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (begin < end) torch::stable::parallel_for(begin, end, grain < 1 ? 1 : grain, body);
}

// FASTINV_DISPATCH(x.scalar_type(), "upfirdn2d", [&] { run<scalar_t>(...); }): scalar_t is float, double or bfloat16
// (fastinv::bfloat16, the kernels' storage type). Returns what the lambda returns.
#define FASTINV_DISPATCH(dtype, op, ...)                                                                          \
  [&] {                                                                                                           \
    switch (dtype) {                                                                                              \
      case ::fastinv::ScalarType::Float: {                                                                        \
        using scalar_t = float;                                                                                   \
        return __VA_ARGS__();                                                                                     \
      }                                                                                                           \
      case ::fastinv::ScalarType::Double: {                                                                       \
        using scalar_t = double;                                                                                  \
        return __VA_ARGS__();                                                                                     \
      }                                                                                                           \
      case ::fastinv::ScalarType::BFloat16: {                                                                     \
        using scalar_t = ::fastinv::bfloat16;                                                                     \
        return __VA_ARGS__();                                                                                     \
      }                                                                                                           \
      default:                                                                                                    \
        throw std::runtime_error(::fastinv::concatenate(op, ": dtype ", torch::headeronly::toString(dtype),       \
                                                        " has no CPU kernel; use float32, float64 or bfloat16")); \
    }                                                                                                             \
  }()

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// True for a dense NHWC tensor that is not also contiguous as NCHW (the stable ABI has no
// is_contiguous(memory_format)). Strides of size-1 dimensions say nothing and are not looked at.
inline bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4 || x.is_contiguous()) return false;
  int64_t expected = 1;
  for (int dim : {1, 3, 2, 0}) {
    if (x.size(dim) == 0) return false;
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

// Whether to compute in NHWC: x is channels_last, or was before it was cropped or expanded (its channels lie side by
// side).
inline bool prefers_channels_last(const Tensor& x) {
  return x.dim() == 4 && x.size(1) > 1 && x.stride(1) == 1 && x.numel() > 0 && !x.is_contiguous();
}

// x itself when it is already dense in the wanted layout, else a copy. Companions of a leading tensor (gradients,
// residuals) must pass through here before a kernel reads their pointer: autograd hands over expanded tensors.
inline Tensor in_layout(const Tensor& x, bool channels_last) {
  if (channels_last && x.dim() == 4) {
    return is_channels_last(x) ? x : torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast);
  }
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// A new uninitialised tensor on the CPU, dense in the given layout.
inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype, bool channels_last = false) {
  using torch::headeronly::MemoryFormat;
  bool nhwc = channels_last && sizes.size() == 4;
  return torch::stable::empty({sizes.data(), sizes.size()}, dtype, std::nullopt,
                              torch::stable::Device(torch::headeronly::DeviceType::CPU), std::nullopt,
                              nhwc ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace fastinv
