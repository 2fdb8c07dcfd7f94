// Launches the LPIPS passes. No torch headers here: nvcc would spend half a minute on them.
#include "perceptual.cuh"

namespace fastinv::cuda {

static int log2_of(int power) {
  int log2 = 0;
  while (1 << log2 < power) ++log2;
  return log2;
}

static const char* no_such_pair() { return "perceptual_input has no kernel for this pair of dtypes"; }
static const char* too_large() { return "perceptual: more than 65535 samples or rows"; }

template <class Image, class T, int factor, int V>
static const char* launch_input(const PerceptualInputParams& p, bool backward, cudaStream_t stream) {
  const bool gather = backward && factor == 0;
  const int columns = gather ? p.image_width : p.width, rows = gather ? p.image_height : p.height;
  if (p.n > 65535 || rows > 65535) return too_large();
  const dim3 grid((columns + kPerceptualInputThreads - 1) / kPerceptualInputThreads, rows, static_cast<unsigned>(p.n));
  return launch(
      backward ? &perceptual_input_backward_kernel<Image, T, factor, V> : &perceptual_input_kernel<Image, T, factor, V>,
      grid, dim3(kPerceptualInputThreads), 0, stream, p);
}

// Whether a window of factor x factor pixels can be read and written row by row as vectors.
template <class Image>
static bool rows_are_vectors(const PerceptualInputParams& p, int factor) {
  if (p.image_height != p.height * factor || p.image_width != p.width * factor || p.strides[3] != 1) return false;
  const int64_t bytes = factor * static_cast<int64_t>(sizeof(Image));
  if (bytes > 16 || reinterpret_cast<uintptr_t>(p.images) % bytes != 0) return false;
  for (int axis = 0; axis < 3; ++axis) {
    if (p.strides[axis] % factor != 0) return false;
  }
  return true;
}

template <class Image, class T, int V>
static const char* choose_factor(const PerceptualInputParams& p, bool backward, cudaStream_t stream) {
  if (rows_are_vectors<Image>(p, 1)) return launch_input<Image, T, 1, V>(p, backward, stream);
  if (rows_are_vectors<Image>(p, 2)) return launch_input<Image, T, 2, V>(p, backward, stream);
  if constexpr (sizeof(Image) <= 4) {
    if (rows_are_vectors<Image>(p, 4)) return launch_input<Image, T, 4, V>(p, backward, stream);
  }
  return launch_input<Image, T, 0, V>(p, backward, stream);
}

template <class Image, class T>
static const char* choose_vector(const PerceptualInputParams& p, bool backward, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(T);
  if constexpr (V > 3) {
    if (p.channels == V && reinterpret_cast<uintptr_t>(p.features) % 16 == 0) {
      return choose_factor<Image, T, V>(p, backward, stream);
    }
  }
  return choose_factor<Image, T, 1>(p, backward, stream);
}

static const char* input(const PerceptualInputParams& p, bool backward, void* stream_pointer) {
  if (p.n == 0) return nullptr;
  if (p.image_height > kPerceptualMostSide || p.image_width > kPerceptualMostSide) {
    return "perceptual_input takes pictures of at most 32768 pixels a side";
  }
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  const bool from_float = p.image_dtype == Dtype::float32;
  if (!from_float && p.image_dtype != p.dtype) return no_such_pair();
  switch (p.dtype) {
    case Dtype::float32:
      return choose_vector<float, float>(p, backward, stream);
    case Dtype::float64:
      return from_float ? no_such_pair() : choose_vector<double, double>(p, backward, stream);
    case Dtype::float16:
      return from_float ? choose_vector<float, half>(p, backward, stream)
                        : choose_vector<half, half>(p, backward, stream);
    case Dtype::bfloat16:
      return from_float ? choose_vector<float, bfloat16>(p, backward, stream)
                        : choose_vector<bfloat16, bfloat16>(p, backward, stream);
  }
  return no_such_pair();
}

const char* perceptual_input(const PerceptualInputParams& p, void* stream) { return input(p, false, stream); }
const char* perceptual_input_backward(const PerceptualInputParams& p, void* stream) { return input(p, true, stream); }

template <class T>
static const char* stage(const PerceptualStageParams& p, cudaStream_t stream) {
  const int lanes = perceptual_lanes(p.dtype, p.channels), vectors = p.channels / perceptual_vector(p.dtype) / lanes;
  const int log2_lanes = log2_of(lanes);
  const dim3 grid(perceptual_blocks_in_row(p.dtype, p.channels, p.width), (p.height + 1) / 2,
                  static_cast<unsigned>(p.n));
  const dim3 block(kPerceptualThreads);
  if (vectors == 1) return launch(&perceptual_stage_kernel<T, 1>, grid, block, 0, stream, p, log2_lanes);
  if (vectors == 2) return launch(&perceptual_stage_kernel<T, 2>, grid, block, 0, stream, p, log2_lanes);
  if constexpr (sizeof(T) >= 4) {
    if (vectors == 4) return launch(&perceptual_stage_kernel<T, 4>, grid, block, 0, stream, p, log2_lanes);
  }
  if constexpr (sizeof(T) == 8) {
    if (vectors == 8) return launch(&perceptual_stage_kernel<T, 8>, grid, block, 0, stream, p, log2_lanes);
  }
  return "perceptual_stage has no kernel for this number of channels";
}

template <class T>
static const char* stage_backward(const PerceptualStageParams& p, cudaStream_t stream) {
  const int vectors = p.channels / perceptual_vector(p.dtype);
  const int64_t threads = static_cast<int64_t>((p.width + 1) / 2) * vectors;
  const dim3 grid(static_cast<unsigned>((threads + kPerceptualThreads - 1) / kPerceptualThreads), (p.height + 1) / 2,
                  static_cast<unsigned>(p.n));
  return launch(&perceptual_stage_backward_kernel<T>, grid, dim3(kPerceptualThreads), 0, stream, p, log2_of(vectors));
}

static const char* stage(const PerceptualStageParams& p, bool backward, void* stream_pointer) {
  if (p.n == 0 || p.height == 0 || p.width == 0) return nullptr;
  if (!perceptual_channels_fit(p.dtype, p.channels)) {
    return "perceptual_stage has no kernel for this number of channels";
  }
  if (p.n > 65535 || (p.height + 1) / 2 > 65535) return too_large();
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  switch (p.dtype) {
    case Dtype::float32:
      return backward ? stage_backward<float>(p, stream) : stage<float>(p, stream);
    case Dtype::float64:
      return backward ? stage_backward<double>(p, stream) : stage<double>(p, stream);
    case Dtype::float16:
      return backward ? stage_backward<half>(p, stream) : stage<half>(p, stream);
    case Dtype::bfloat16:
      return backward ? stage_backward<bfloat16>(p, stream) : stage<bfloat16>(p, stream);
  }
  return "perceptual_stage has no kernel for this dtype";
}

const char* perceptual_stage(const PerceptualStageParams& p, void* stream) { return stage(p, false, stream); }
const char* perceptual_stage_backward(const PerceptualStageParams& p, void* stream) { return stage(p, true, stream); }

const char* perceptual_sum(const PerceptualSumParams& p, void* stream_pointer) {
  if (p.n == 0) return nullptr;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  const dim3 grid(static_cast<unsigned>(p.n)), block(kPerceptualSumThreads);
  if (p.dtype == Dtype::float64) return launch(&perceptual_sum_kernel<double>, grid, block, 0, stream, p);
  return launch(&perceptual_sum_kernel<float>, grid, block, 0, stream, p);
}

}  // namespace fastinv::cuda
