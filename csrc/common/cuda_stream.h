// The current CUDA stream of torch, in a way that lets the CUDA library load in a CPU build of torch as well.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "stable.h"

// Only a CUDA build of torch has this symbol. Weak: null elsewhere, instead of a library that does not load.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace fastinv {

inline void* current_cuda_stream(int32_t device_index) {
  FASTINV_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                "the CUDA kernels need a CUDA build of torch; this torch has no CUDA");
  void* stream = nullptr;
  FASTINV_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream) == 0,
                "torch did not give the current stream of CUDA device ", device_index);
  return stream;
}

}  // namespace fastinv
