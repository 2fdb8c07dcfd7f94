// Launches modulated_conv2d_scale (one pass) and modulated_conv2d_dot (one pass, then the sum of the partial sums).
#include "channel_scale.cuh"

namespace fastinv::cuda {

template <class Params>
static ChannelWalk scale_walk(const Params& p, bool sums) {
  const int vector = p.dtype == Dtype::float64 ? 2 : p.dtype == Dtype::float32 ? 4 : 8;
  if (p.channels_last) return walk_columns(p.samples, p.pixels, p.channels, vector, sums);
  return walk_planes(p.samples, p.channels, p.pixels, vector, sums);
}

int64_t channel_dot_workspace(const ChannelDotParams& p) {
  return partial_count(scale_walk(p, true)) * (p.dtype == Dtype::float64 ? 8 : 4);
}

template <class T>
static const char* scale(const ChannelScaleParams& p, const ChannelWalk& walk, cudaStream_t stream) {
  ScaleMap<T> map{};
  map.in[0] = static_cast<const T*>(p.x);
  map.out = static_cast<T*>(p.out);
  map.operand = static_cast<const compute_t<T>*>(p.scale);
  map.operand_stride = p.channels;
  map.aligned = all_aligned(p.x, p.out);
  return launch_walk(walk, map, stream);
}

template <class T>
static const char* dot(const ChannelDotParams& p, const ChannelWalk& walk, cudaStream_t stream) {
  using C = compute_t<T>;
  DotMap<T> map{};
  map.in[0] = static_cast<const T*>(p.a);
  map.in[1] = static_cast<const T*>(p.b);
  map.aligned = all_aligned(p.a, p.b);
  map.partials = static_cast<C*>(p.partials);
  const char* error = launch_walk(walk, map, stream);
  if (error != nullptr) return error;
  return launch_sum<C, C>(walk, p.samples, map.partials, static_cast<C*>(p.out), stream);
}

const char* channel_scale(const ChannelScaleParams& p, void* stream_pointer) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  const ChannelWalk walk = scale_walk(p, false);
  switch (p.dtype) {
    case Dtype::float32:
      return scale<float>(p, walk, stream);
    case Dtype::float64:
      return scale<double>(p, walk, stream);
    case Dtype::float16:
      return scale<half>(p, walk, stream);
    default:
      return scale<bfloat16>(p, walk, stream);
  }
}

const char* channel_dot(const ChannelDotParams& p, void* stream_pointer) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  const ChannelWalk walk = scale_walk(p, true);
  switch (p.dtype) {
    case Dtype::float32:
      return dot<float>(p, walk, stream);
    case Dtype::float64:
      return dot<double>(p, walk, stream);
    case Dtype::float16:
      return dot<half>(p, walk, stream);
    default:
      return dot<bfloat16>(p, walk, stream);
  }
}

}  // namespace fastinv::cuda
