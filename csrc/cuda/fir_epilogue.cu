// Launches the kernels of the forms with a FIR filter. No torch headers here: nvcc would spend half a minute on them.
#include "fir_epilogue_backward.cuh"

namespace fastinv::cuda {

static int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class... Pointers>
static bool aligned16(const Pointers*... pointers) {
  return (... && (reinterpret_cast<uintptr_t>(pointers) % 16 == 0));
}

// Vectors of 16 bytes, where channels and addresses allow; float64 is for tests and takes one value at a time.
template <class T>
static constexpr int fir_vector = sizeof(T) == 8 ? 1 : 16 / sizeof(T);

static FirGrid fir_grid(const SynthesisLayer& p, int vector, int lanes, int columns, int64_t rows) {
  FirGrid grid;
  const int64_t vectors = divided_up(p.channels, vector);
  grid.groups = static_cast<unsigned>(divided_up(vectors, lanes));
  grid.lanes = static_cast<int>(divided_up(vectors, grid.groups));  // groups as even as can be
  grid.columns = columns;
  grid.rows = static_cast<int>(rows);
  grid.column_tiles = static_cast<unsigned>(divided_up(p.width, columns));
  grid.row_tiles = static_cast<unsigned>(divided_up(p.height, rows));
  grid.blocks = static_cast<unsigned>(grid.groups * grid.column_tiles * grid.row_tiles * p.samples);
  return grid;
}

// --- forward ---------------------------------------------------------------------------------------------------------
template <class T, int V>
static const char* launch_forward(const SynthesisEpilogueParams& p, cudaStream_t stream) {
  const auto constants = synthesis_constants<compute_t<T>>(p);
  const int64_t vectors = divided_up(p.channels, V), threads = p.samples * vectors * p.width;
  // Rows of a thread: as few as give the whole device work (132 processors of 2048 threads), as reads exceed writes by
  // three rows a tile. The tiling does not change the results.
  const int64_t wanted = threads * p.height / (132 * 2048), rows = wanted < 2 ? 2 : wanted < 32 ? wanted : 32;
  const int64_t groups = divided_up(vectors, 8);
  const int lanes = static_cast<int>(divided_up(vectors, groups));  // at most 128 bytes of a pixel: few columns of halo
  const int64_t most_columns = kFirThreads / lanes;
  const int columns = static_cast<int>(p.width < most_columns ? p.width : most_columns);
  const FirGrid grid = fir_grid(p, V, lanes, columns, rows);
  if (const char* error = launch(fir_epilogue_kernel<T, V>, dim3(grid.blocks), dim3(grid.lanes, columns),
                                 3 * lanes * V * sizeof(compute_t<T>), stream, p, constants, fir_layout(p), grid)) {
    return error;
  }
  if (p.rgb_weight == nullptr) return nullptr;
  const int64_t pixels = p.samples * p.height * p.width, blocks = divided_up(pixels, kFirThreads / 32);
  return launch(fir_picture_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kFirThreads), 0, stream, p, constants);
}

template <class T>
static const char* forward(const SynthesisEpilogueParams& p, cudaStream_t stream) {
  if (p.channels % fir_vector<T> == 0 && aligned16(p.u, p.y, p.next)) {
    return launch_forward<T, fir_vector<T>>(p, stream);
  }
  return launch_forward<T, 1>(p, stream);
}

const char* fir_epilogue(const SynthesisEpilogueParams& p, void* stream) {
  if (p.samples == 0) return nullptr;
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::float32:
      return forward<float>(p, cuda_stream);
    case Dtype::float64:
      return forward<double>(p, cuda_stream);
    case Dtype::float16:
      return forward<half>(p, cuda_stream);
    case Dtype::bfloat16:
      return forward<bfloat16>(p, cuda_stream);
  }
  return "unknown dtype";
}

// --- backward --------------------------------------------------------------------------------------------------------
template <class T, int V, bool kPicture>
static const char* launch_backward(const SynthesisEpilogueBackwardParams& p, cudaStream_t stream) {
  const auto constants = synthesis_constants<compute_t<T>>(p);
  // 64 bytes of a pixel: blocks of 272 threads, two on a processor. Where these are all channels, the block also adds
  // up the gradient of the noise: the layer of 1024 x 1024 pixels in half precision, for which a pass more costs most.
  const bool noise_gradient = p.dnoise != nullptr && p.channels <= kFirMostLanes * V;
  const FirGrid grid = fir_grid(p, V, kFirMostLanes, kSumTileColumns, sum_tile_rows(p.height));
  const int tile_columns = p.width < kSumTileColumns ? p.width : static_cast<int>(kSumTileColumns);
  const int columns = (tile_columns + 3) / 4 * 4 + kFirHalo;
  const size_t shared = fir_backward_shared<T, V>(grid.lanes, grid.lanes * columns);
  if (const char* error =
          launch(fir_epilogue_backward_kernel<T, V, kPicture>, dim3(grid.blocks), dim3(grid.lanes, columns), shared,
                 stream, p, constants, fir_layout(p), grid, noise_gradient)) {
    return error;
  }
  if (p.dnoise == nullptr || noise_gradient) return nullptr;
  const int64_t pixels = p.samples * p.height * p.width, blocks = divided_up(pixels, kFirThreads / 32);
  return launch(fir_noise_gradient_kernel<T, V>, dim3(static_cast<unsigned>(blocks)), dim3(kFirThreads), 0, stream, p,
                constants);
}

template <class T>
static const char* backward(const SynthesisEpilogueBackwardParams& p, cudaStream_t stream) {
  if constexpr (fir_vector<T> > 1) {
    const bool vectors = p.channels % fir_vector<T> == 0 && aligned16(p.dnext, p.y, p.du);
    if (vectors && p.dnext != nullptr && p.dimage == nullptr) {
      return launch_backward<T, fir_vector<T>, false>(p, stream);
    }
  }
  return launch_backward<T, 1, true>(p, stream);
}

const char* fir_epilogue_backward(const SynthesisEpilogueBackwardParams& p, void* stream) {
  if (p.samples == 0) return nullptr;
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::float32:
      return backward<float>(p, cuda_stream);
    case Dtype::float64:
      return backward<double>(p, cuda_stream);
    case Dtype::float16:
      return backward<half>(p, cuda_stream);
    case Dtype::bfloat16:
      return backward<bfloat16>(p, cuda_stream);
  }
  return "unknown dtype";
}

}  // namespace fastinv::cuda
