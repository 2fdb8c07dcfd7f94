// Launches the kernels of style_gradients and gradient_scale.
#include "synthesis_sums.cuh"

namespace fastinv::cuda {

static int column_blocks(int columns) { return (columns + kSumColumns - 1) / kSumColumns; }

template <class T>
static const char* style_gradients(const StyleGradientsParams& p, const SumStarts& starts, cudaStream_t stream) {
  const unsigned samples = static_cast<unsigned>(p.samples);
  if (starts.tile_block[p.layer_count] > 0) {
    const dim3 grid(starts.tile_block[p.layer_count], samples);
    const char* error = launch(sum_tiles_kernel<T>, grid, kSumThreads, 0, stream, p, starts);
    if (error != nullptr) return error;
  }
  const int zero_blocks = (p.rows + p.outputs + kSumThreads - 1) / kSumThreads;
  const dim3 grid(starts.channel_block[p.layer_count] + zero_blocks, samples);
  return launch(sort_sums_kernel<T>, grid, kSumThreads, 0, stream, p, starts);
}

const char* synthesis_style_gradients(const StyleGradientsParams& p, void* stream) {
  if (p.samples == 0 || p.rows + p.outputs == 0) return nullptr;
  SumStarts starts{};
  for (int i = 0; i < p.layer_count; ++i) {
    const SumLayer& layer = p.layers[i];
    const int columns = layer.planes * layer.channels, chunks = sum_chunks(layer.tiles);
    starts.tile_block[i + 1] = starts.tile_block[i] + column_blocks(columns) * chunks;
    starts.channel_block[i + 1] = starts.channel_block[i] + column_blocks(layer.channels);
    starts.chunks[i] = chunks;
    starts.partial[i] = starts.partials;
    starts.partials += static_cast<int64_t>(columns) * chunks;
  }
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  return p.dtype == Dtype::float64 ? style_gradients<double>(p, starts, on) : style_gradients<float>(p, starts, on);
}

template <class T, int V>
static const char* gradient_scale(const GradientScaleParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(scale_tiles(p.elements)), static_cast<unsigned>(p.samples));
  const char* error = launch(largest_kernel<T, V>, grid, kScaleThreads, 0, stream, p);
  return error != nullptr ? error : launch(gradient_scale_kernel<T, V>, grid, kScaleThreads, 0, stream, p);
}

const char* synthesis_gradient_scale(const GradientScaleParams& p, void* stream) {
  if (p.samples == 0 || p.elements == 0) return nullptr;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (p.dtype == Dtype::float64) return gradient_scale<double, 1>(p, on);
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(p.gradient) | reinterpret_cast<uintptr_t>(p.scaled);
  const bool vectors = p.elements % 4 == 0 && addresses % 16 == 0;
  return vectors ? gradient_scale<float, 4>(p, on) : gradient_scale<float, 1>(p, on);
}

}  // namespace fastinv::cuda
