// Launches adam_record and adam_step.
#include "adam.cuh"

namespace fastinv::cuda {

template <class T>
static const char* step(const AdamStepParams& p, cudaStream_t stream) {
  const int64_t piece = adam_threads * adam_unroll;
  const dim3 grid(static_cast<unsigned>((p.size + piece - 1) / piece),
                  static_cast<unsigned>(p.pictures < 65535 ? p.pictures : 65535));
  return launch(adam_step_kernel<T>, grid, dim3(adam_threads), 0, stream, p, static_cast<T>(1 - p.beta1),
                static_cast<T>(1 - p.beta2), static_cast<T>(p.eps));
}

const char* adam_record(const AdamRecordParams& p, void* stream_pointer) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  if (p.dtype == Dtype::float64) {
    return launch(adam_record_kernel<double>, dim3(1), dim3(adam_threads), 0, stream, p);
  }
  return launch(adam_record_kernel<float>, dim3(1), dim3(adam_threads), 0, stream, p);
}

const char* adam_step(const AdamStepParams& p, void* stream_pointer) {
  if (p.pictures == 0 || p.size == 0) return nullptr;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  return p.dtype == Dtype::float64 ? step<double>(p, stream) : step<float>(p, stream);
}

}  // namespace fastinv::cuda
