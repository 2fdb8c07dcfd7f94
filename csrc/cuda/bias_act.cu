// Launches bias_act: one pass over memory and, for the bias gradient, the sum of the blocks' partial sums.
#include <cmath>

#include "bias_act.cuh"

namespace fastinv::cuda {

static int vector_of_dtype(Dtype dtype) { return dtype == Dtype::float64 ? 2 : dtype == Dtype::float32 ? 4 : 8; }

static ChannelWalk walk_of(const BiasActParams& p) {
  const int vector = vector_of_dtype(p.dtype);
  if ((p.b == nullptr && p.db == nullptr) || p.channels == 1) {  // no channels to tell apart: one plane
    return walk_planes(1, 1, p.outer * p.channels * p.inner, vector, p.db != nullptr);
  }
  if (p.inner == 1) return walk_columns(1, p.outer, p.channels, vector, p.db != nullptr);
  return walk_planes(p.outer, p.channels, p.inner, vector, p.db != nullptr);
}

int64_t bias_act_workspace(const BiasActParams& p) {
  return p.db == nullptr ? 0 : partial_count(walk_of(p)) * (p.dtype == Dtype::float64 ? 8 : 4);
}

template <class Map>
static const char* run(const BiasActParams& p, cudaStream_t stream) {
  using T = typename Map::T;
  using C = typename Map::C;
  const void* const sources[3] = {p.x, p.dy, p.grad};
  const ChannelWalk walk = walk_of(p);
  Map map{};
  map.aligned = all_aligned(p.out);
  for (int k = 0; k < Map::inputs; ++k) {
    map.in[k] = static_cast<const T*>(sources[k]);
    map.aligned = map.aligned && all_aligned(sources[k]);
  }
  map.out = static_cast<T*>(p.out);
  map.operand = static_cast<const T*>(p.b);
  map.partials = static_cast<C*>(p.db == nullptr ? nullptr : p.partials);
  map.activation = static_cast<Activation>(p.act);
  map.alpha = static_cast<C>(map.activation == Activation::linear ? 1.0 : p.alpha);
  map.gain = static_cast<C>(p.gain);
  map.clamp = static_cast<C>(p.clamp < 0 ? NAN : p.clamp);
  const char* error = launch_walk(walk, map, stream);
  if (error != nullptr || p.db == nullptr) return error;
  return launch_sum<C, T>(walk, 1, map.partials, static_cast<T*>(p.db), stream);
}

template <class T>
static const char* dispatch(const BiasActParams& p, cudaStream_t stream) {
  const bool piecewise = is_piecewise(static_cast<Activation>(p.act));
  switch (p.order) {
    case BiasActOrder::forward:
      return piecewise ? run<PiecewiseForward<T>>(p, stream) : run<Smooth<T, 0>>(p, stream);
    case BiasActOrder::first:
      return piecewise ? run<PiecewiseFirst<T>>(p, stream) : run<Smooth<T, 1>>(p, stream);
    default:
      return run<Smooth<T, 2>>(p, stream);
  }
}

const char* bias_act(const BiasActParams& p, void* stream_pointer) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  switch (p.dtype) {
    case Dtype::float32:
      return dispatch<float>(p, stream);
    case Dtype::float64:
      return dispatch<double>(p, stream);
    case Dtype::float16:
      return dispatch<half>(p, stream);
    default:
      return dispatch<bfloat16>(p, stream);
  }
}

}  // namespace fastinv::cuda
