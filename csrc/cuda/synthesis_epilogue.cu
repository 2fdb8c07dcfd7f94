// Launches the kernels of synthesis_epilogue and its backward for the forms without a filter.
#include "synthesis_epilogue.cuh"

namespace fastinv::cuda {

// Channels of a thread. 16 bytes of them where registers suffice; in half precision, 16 channels' operands and sums are
// too many where there is a picture, and in the backward pass, and more pixels at once make up for it. One, in the
// kernel with a picture, for double and for numbers of channels that are no multiple.
template <class T>
constexpr int whole_vector = sizeof(T) == 8 ? 1 : 16 / sizeof(T);
template <class T>
constexpr int short_vector = sizeof(T) == 8 ? 1 : 4;

static int bits_for(int count) {  // of the smallest power of two that is not below
  int bits = 0;
  while (1 << bits < count) ++bits;
  return bits;
}

template <class T, int V, bool kRgb>
static const char* forward(const SynthesisEpilogueParams& p, cudaStream_t stream) {
  using C = compute_t<T>;
  constexpr int pixels_at_once = V == 1 ? 2 : kRgb ? 32 / (V * sizeof(T)) : 4;
  constexpr int most_steps = 4, enough_blocks = 2048;
  SynthesisWalk walk{};
  walk.lane_bits = bits_for((p.channels + V - 1) / V);
  const int lanes = 1 << walk.lane_bits, threads = max(256, lanes), rows = threads / lanes;
  const int64_t step = rows * pixels_at_once, steps = (int64_t(p.height) * p.width + step - 1) / step;
  walk.steps = static_cast<int>(max(int64_t(1), min(int64_t(most_steps), steps * p.samples / enough_blocks)));
  const dim3 grid(static_cast<unsigned>((steps + walk.steps - 1) / walk.steps), static_cast<unsigned>(p.samples));
  const size_t rgb_parts = step * max(1, lanes / 32) * 3 * min(2, walk.steps);
  const size_t shared = p.rgb_weight != nullptr ? rgb_parts * sizeof(C) : 0;
  return launch(synthesis_epilogue_kernel<T, V, kRgb, pixels_at_once>, grid, threads, shared, stream, p,
                synthesis_constants<C>(p), walk);
}

template <class T, int V, bool kRgb>
static const char* backward(const SynthesisEpilogueBackwardParams& p, cudaStream_t stream) {
  using C = compute_t<T>;
  constexpr int pixels_at_once = V == 1 ? 2 : 32 / (V * sizeof(T));
  constexpr int most_lanes = 16;  // layers with few pixels need more blocks than tiles
  const int64_t pixels = int64_t(p.height) * p.width;
  SynthesisWalk walk{};
  walk.tiles = static_cast<int>(sum_tiles(p.form, p.height, p.width));
  walk.tile_pixels = static_cast<int>(sum_tile_pixels(pixels));
  const int vectors = (p.channels + V - 1) / V;
  walk.lane_bits = bits_for(p.dnoise != nullptr ? vectors : min(vectors, most_lanes));
  const int lanes = 1 << walk.lane_bits;
  walk.groups = (vectors + lanes - 1) / lanes;
  int rows = 4;  // several pixels a thread, sixteen in large tiles
  while (rows < 16 && 8 * rows <= walk.tile_pixels) rows *= 2;
  const int threads = max(lanes, min(128, max(64, lanes * rows)));
  const int step = threads / lanes * pixels_at_once;
  const int padded = (walk.tile_pixels + step - 1) / step * step;
  const int for_sums = threads * V * kSynthesisSums;
  const int for_noise = p.dnoise != nullptr ? walk.tile_pixels * max(1, lanes / 32) : 0;
  const size_t shared = (padded * 4 + max(for_sums, for_noise)) * sizeof(C);
  const dim3 grid(static_cast<unsigned>(walk.tiles) * walk.groups, static_cast<unsigned>(p.samples));
  return launch(synthesis_epilogue_backward_kernel<T, V, kRgb, pixels_at_once>, grid, threads, shared, stream, p,
                synthesis_constants<C>(p), walk);
}

template <class T>
static const char* forward_of(const SynthesisEpilogueParams& p, cudaStream_t stream) {
  if constexpr (whole_vector<T> > 1) {
    const bool picture = p.rgb_weight != nullptr;
    if (picture && p.channels % short_vector<T> == 0) return forward<T, short_vector<T>, true>(p, stream);
    if (!picture && p.channels % whole_vector<T> == 0) return forward<T, whole_vector<T>, false>(p, stream);
  }
  return forward<T, 1, true>(p, stream);
}

template <class T>
static const char* backward_of(const SynthesisEpilogueBackwardParams& p, cudaStream_t stream) {
  constexpr int V = short_vector<T>;
  if constexpr (V > 1) {
    const int most_channels = p.dnoise != nullptr ? backward_threads<V> * V : kSynthesisMostChannels;
    if (p.channels % V == 0 && p.channels <= most_channels) {
      return p.dimage != nullptr ? backward<T, V, true>(p, stream) : backward<T, V, false>(p, stream);
    }
  }
  return backward<T, 1, true>(p, stream);
}

const char* synthesis_epilogue(const SynthesisEpilogueParams& p, void* stream) {
  if (p.samples == 0 || p.channels == 0 || p.height == 0 || p.width == 0) return nullptr;
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::float32:
      return forward_of<float>(p, cuda_stream);
    case Dtype::float64:
      return forward_of<double>(p, cuda_stream);
    case Dtype::float16:
      return forward_of<half>(p, cuda_stream);
    case Dtype::bfloat16:
      return forward_of<bfloat16>(p, cuda_stream);
  }
  return "unknown dtype";
}

// Without pixels there still is one tile, of zeros.
const char* synthesis_epilogue_backward(const SynthesisEpilogueBackwardParams& p, void* stream) {
  if (p.samples == 0 || p.channels == 0) return nullptr;
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::float32:
      return backward_of<float>(p, cuda_stream);
    case Dtype::float64:
      return backward_of<double>(p, cuda_stream);
    case Dtype::float16:
      return backward_of<half>(p, cuda_stream);
    case Dtype::bfloat16:
      return backward_of<bfloat16>(p, cuda_stream);
  }
  return "unknown dtype";
}

}  // namespace fastinv::cuda
