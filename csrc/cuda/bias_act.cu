// Launches the bias_act kernel. No torch headers here: nvcc would spend half a minute on them.
#include "bias_act.cuh"

namespace fastinv::cuda {

template <class T>
static void launch(const BiasActParams& p, cudaStream_t stream) {
  constexpr int threads = 256;
  constexpr int64_t most_blocks = 4096;  // the kernel strides over the rest
  const int64_t wanted = (p.n + threads * Pack<T>::size - 1) / (threads * Pack<T>::size);
  const int blocks = static_cast<int>(wanted < most_blocks ? wanted : most_blocks);
  bias_act_kernel<T><<<blocks, threads, 0, stream>>>(p);
}

const char* bias_act(const BiasActParams& p, void* stream) {
  if (p.n == 0) return nullptr;
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::float32:
      launch<float>(p, cuda_stream);
      break;
    case Dtype::float64:
      launch<double>(p, cuda_stream);
      break;
    case Dtype::float16:
      launch<__half>(p, cuda_stream);
      break;
    case Dtype::bfloat16:
      launch<__nv_bfloat16>(p, cuda_stream);
      break;
  }
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace fastinv::cuda
