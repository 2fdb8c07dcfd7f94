// What the checks and registrations of CUDA kernels (<op>_cuda.cpp) share: dtypes, operands, outputs, launch errors.
// Every op starts with a device guard:  const DeviceGuard guard = device_guard("bias_act", x);
#pragma once

#include "../common/cuda_stream.h"
#include "dtype.h"

namespace fastinv {

#ifndef FASTINV_SIMULATED
#define FASTINV_CUDA_KEY CUDA
using torch::stable::accelerator::DeviceGuard;
constexpr auto kCudaDevice = torch::headeronly::DeviceType::CUDA;
inline bool on_cuda(const Tensor& x) { return x.is_cuda(); }
inline void* cuda_stream_of(const Tensor& leader) { return current_cuda_stream(leader.get_device_index()); }
#else  // the same checks and launches for tensors on the CPU, where the simulator runs the kernels; CMakeLists.txt
#define FASTINV_CUDA_KEY CPU
struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
  ~DeviceGuard() {}
};
constexpr auto kCudaDevice = torch::headeronly::DeviceType::CPU;
inline bool on_cuda(const Tensor& x) { return x.is_cpu(); }
inline void* cuda_stream_of(const Tensor&) { return nullptr; }
#endif

// Makes the device of x, the leading tensor, the current one.
inline DeviceGuard device_guard(const char* op, const Tensor& x) {
  FASTINV_CHECK(on_cuda(x), op, ": the CUDA kernel takes tensors on a CUDA device");
  return DeviceGuard(x.get_device_index());
}

inline cuda::Dtype cuda_dtype(const char* op, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return cuda::Dtype::float32;
    case ScalarType::Double:
      return cuda::Dtype::float64;
    case ScalarType::Half:
      return cuda::Dtype::float16;
    case ScalarType::BFloat16:
      return cuda::Dtype::bfloat16;
    default:
      throw std::runtime_error(concatenate(op, ": dtype ", torch::headeronly::toString(dtype),
                                           " has no CUDA kernel; use float32, float64, float16 or bfloat16"));
  }
}

// The dtype in which a kernel computes, and that small operands (styles, sums over pixels) have.
inline ScalarType cuda_compute_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < x.dim(); ++i) sizes.push_back(x.size(i));
  return sizes;
}

inline std::string to_string(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

// `x`, the argument `name` of `op`, made dense; an error unless it is on the device of `leader` and has that dtype and
// those sizes.
inline Tensor cuda_operand(const char* op, const char* name, const Tensor& x, const Tensor& leader, ScalarType dtype,
                           const std::vector<int64_t>& sizes, bool channels_last = false) {
  FASTINV_CHECK(on_cuda(x) && x.get_device_index() == leader.get_device_index(), op, ": ", name,
                " must be on CUDA device ", leader.get_device_index());
  FASTINV_CHECK(x.scalar_type() == dtype, op, ": ", name, " must be ", torch::headeronly::toString(dtype), ", got ",
                torch::headeronly::toString(x.scalar_type()));
  FASTINV_CHECK(sizes_of(x) == sizes, op, ": ", name, " must have shape ", to_string(sizes), ", got ",
                to_string(sizes_of(x)));
  return in_layout(x, channels_last);
}

// Dense `x`, copied where it begins inside of 16 bytes (a slice may): for kernels that have nothing but vector loads.
inline Tensor aligned(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 ? x : torch::stable::clone(x);
}

// A new uninitialised tensor on the device of `leader`, dense in the given layout.
inline Tensor cuda_empty(const std::vector<int64_t>& sizes, ScalarType dtype, const Tensor& leader,
                         bool channels_last = false) {
  using torch::headeronly::MemoryFormat;
  const bool nhwc = channels_last && sizes.size() == 4;
  const torch::stable::Device device(kCudaDevice,
                                     static_cast<torch::stable::accelerator::DeviceIndex>(leader.get_device_index()));
  return torch::stable::empty({sizes.data(), sizes.size()}, dtype, std::nullopt, device, std::nullopt,
                              nhwc ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// `error` is what a launcher returned.
inline void check_launch(const char* op, const char* error) {
  FASTINV_CHECK(error == nullptr, op, ": CUDA error: ", error);
}

}  // namespace fastinv
