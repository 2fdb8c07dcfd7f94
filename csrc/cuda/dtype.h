// The element types of the CUDA kernels. No CUDA and no torch headers: launchers' interfaces include it.
#pragma once

namespace fastinv::cuda {

enum class Dtype { float32, float64, float16, bfloat16 };

}  // namespace fastinv::cuda
