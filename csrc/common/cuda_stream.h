// The current CUDA stream of torch, in a way that lets the CUDA library load in a CPU build of torch as well.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "stable.h"

// Only a CUDA build of torch has this symbol. Weak: null elsewhere, instead of a library that does not load.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace fastinv {

// Null in a torch without CUDA. The symbol itself is null as well where libtorch.so, which we are linked to, does not
// bring libtorch_cuda.so into our scope: then it is looked up in the one that is loaded.
inline decltype(&aoti_torch_get_current_cuda_stream) find_current_cuda_stream() {
  if (aoti_torch_get_current_cuda_stream != nullptr) return aoti_torch_get_current_cuda_stream;
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<decltype(&aoti_torch_get_current_cuda_stream)>(
      dlsym(library, "aoti_torch_get_current_cuda_stream"));
}

inline void* current_cuda_stream(int32_t device_index) {
  static const auto get_current = find_current_cuda_stream();
  FASTINV_CHECK(get_current != nullptr, "the CUDA kernels need a CUDA build of torch; this torch has no CUDA");
  void* stream = nullptr;
  FASTINV_CHECK(get_current(device_index, &stream) == 0, "torch did not give the current stream of CUDA device ",
                device_index);
  return stream;
}

}  // namespace fastinv
