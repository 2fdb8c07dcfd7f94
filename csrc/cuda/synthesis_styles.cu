// Launches the kernels of styles and demodulation.
#include <type_traits>

#include "synthesis_styles.cuh"

namespace fastinv::cuda {

static unsigned blocks_for(int64_t work, int per_block) {
  return static_cast<unsigned>((work + per_block - 1) / per_block);
}

// Calls run(T, V, S) with the element type, the vector width and the number of samples of a block, as constants.
template <class Run>
static const char* dispatch(Dtype dtype, bool vectors, int64_t samples, const Run& run) {
  const auto with_samples = [&](auto type, auto width) {
    if (samples == 1) return run(type, width, std::integral_constant<int, 1>{});
    if (samples <= 4) return run(type, width, std::integral_constant<int, 4>{});
    return run(type, width, std::integral_constant<int, 8>{});
  };
  using one = std::integral_constant<int, 1>;
  if (dtype == Dtype::float64) return with_samples(double(), one{});
  return vectors ? with_samples(float(), std::integral_constant<int, 4>{}) : with_samples(float(), one{});
}

static bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

const char* synthesis_styles(const StylesParams& p, void* stream) {
  if (p.samples == 0 || p.rows == 0) return nullptr;
  const bool vectors = p.width % 4 == 0 && aligned(p.weight) && aligned(p.w_plus);
  return dispatch(p.dtype, vectors, p.samples, [&](auto type, auto width, auto samples) {
    const dim3 grid(blocks_for(p.rows, kRowWarps), blocks_for(p.samples, samples));
    return launch(styles_kernel<decltype(type), width, samples>, grid, kRowThreads, 0,
                  static_cast<cudaStream_t>(stream), p);
  });
}

const char* synthesis_styles_backward(const StylesParams& p, void* stream) {
  if (p.samples == 0 || p.inputs == 0 || p.width == 0) return nullptr;
  const bool vectors = p.width % 4 == 0 && aligned(p.weight);
  return dispatch(p.dtype, vectors, p.samples, [&](auto type, auto width, auto samples) {
    const dim3 grid(blocks_for(p.width, kColumns), p.inputs, blocks_for(p.samples, samples));
    return launch(styles_backward_kernel<decltype(type), width, samples>, grid, kColumnThreads, 0,
                  static_cast<cudaStream_t>(stream), p);
  });
}

// `forward`: blocks by outputs, else by inputs. Every layer has a block, for what is to be written but not summed.
static LayerStarts layer_starts(const DemodulationParams& p, bool forward) {
  LayerStarts starts{};
  int64_t weight = 0;
  for (int i = 0; i < p.layers; ++i) {
    const unsigned blocks = forward ? blocks_for(p.outputs[i], kOutputsPerBlock) : blocks_for(p.inputs[i], kColumns);
    starts.block[i + 1] = starts.block[i] + static_cast<int>(blocks > 0 ? blocks : 1);
    starts.output[i + 1] = starts.output[i] + p.outputs[i];
    starts.weight[i] = weight;
    weight += static_cast<int64_t>(p.inputs[i]) * p.outputs[i];
  }
  return starts;
}

const char* synthesis_demodulation(const DemodulationParams& p, void* stream) {
  if (p.samples == 0 || p.rows + p.layers == 0) return nullptr;
  const LayerStarts starts = layer_starts(p, true);
  bool vectors = p.rows % 4 == 0 && aligned(p.styles) && aligned(p.weight_sumsq);
  for (int i = 0; i < p.layers; ++i) vectors = vectors && p.row[i] % 4 == 0 && p.inputs[i] % 4 == 0;
  return dispatch(p.dtype, vectors, p.samples, [&](auto type, auto width, auto samples) {
    const dim3 grid(starts.block[p.layers] + blocks_for(p.rows, kRowThreads), blocks_for(p.samples, samples));
    return launch(demodulation_kernel<decltype(type), width, samples>, grid, kRowThreads, 0,
                  static_cast<cudaStream_t>(stream), p, starts);
  });
}

const char* synthesis_demodulation_backward(const DemodulationParams& p, void* stream) {
  if (p.samples == 0 || p.rows + p.layers == 0) return nullptr;
  const LayerStarts starts = layer_starts(p, false);
  bool vectors = aligned(p.weight_sumsq);
  for (int i = 0; i < p.layers; ++i) vectors = vectors && p.inputs[i] % 4 == 0;
  return dispatch(p.dtype, vectors, p.samples, [&](auto type, auto width, auto samples) {
    const dim3 grid(starts.block[p.layers] + blocks_for(p.rows, kColumnThreads), blocks_for(p.samples, samples));
    return launch(demodulation_backward_kernel<decltype(type), width, samples>, grid, kColumnThreads, 0,
                  static_cast<cudaStream_t>(stream), p, starts);
  });
}

}  // namespace fastinv::cuda
