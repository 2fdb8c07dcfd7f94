// Layout of the noise pyramid, and the launches of its kernels.
#include "noise.cuh"
#include "normalize_noise.cuh"

namespace fastinv::cuda {

static int tiles_of(int size) { return (size + kNoiseTile - 1) / kNoiseTile; }

NoiseSizes noise_layout(NoiseParams& p) {
  NoiseSizes sizes{};
  for (int i = 0; i < p.count; ++i) {
    NoiseMap& map = p.maps[i];
    map.levels = 1;
    while (map.size >> (map.levels - 1) > 8) ++map.levels;
    map.tail = 0;
    while (map.size >> map.tail > kNoiseTile) ++map.tail;
    map.sample_pyramid = map.sample_partials = 0;
    for (int level = 0; level < map.levels; ++level) {
      const int size = map.size >> level, tiles = tiles_of(size);
      map.level[level] = map.sample_pyramid;
      map.tile_sums[level] = map.sample_partials;
      if (level > 0) map.sample_pyramid += (size * size + 3) / 4 * 4;  // each begins at a multiple of 16 bytes
      if (level < map.tail) map.sample_partials += tiles * tiles;
    }
    map.pyramid = sizes.pyramid;
    map.means = static_cast<int>(sizes.means);
    map.partials = static_cast<int>(sizes.partials);
    sizes.pyramid += static_cast<int64_t>(map.samples) * map.sample_pyramid;
    sizes.means += static_cast<int64_t>(map.samples) * map.levels;
    sizes.partials += static_cast<int64_t>(map.samples) * map.sample_partials;
  }
  return sizes;
}

// Gives each map blocks(map) blocks for each of its samples. Returns how many these are.
template <class Blocks>
static int share_out(NoiseParams& p, const Blocks& blocks) {
  int total = 0;
  for (int i = 0; i < p.count; ++i) {
    p.maps[i].first_block = total;
    total += p.maps[i].samples * blocks(p.maps[i]);
  }
  return total;
}

static int all_tiles(const NoiseMap& map) { return tiles_of(map.size) * tiles_of(map.size); }

template <class T>
static const char* regularization(NoiseParams p, cudaStream_t stream) {
  const char* error = nullptr;
  const int tiles = share_out(p, [](const NoiseMap& map) { return map.tail > 0 ? all_tiles(map) : 0; });
  if (tiles > 0) error = launch(noise_pyramid_kernel<T>, tiles, kNoiseThreads, 0, stream, p);
  const int blocks = share_out(p, level_blocks);
  if (error == nullptr) error = launch(noise_levels_kernel<T>, blocks, kNoiseThreads, 0, stream, p);
  return error != nullptr ? error : launch(noise_value_kernel<T>, p.samples, kNoiseThreads, 0, stream, p);
}

const char* noise_regularization(const NoiseParams& p, void* stream) {
  if (p.samples == 0 || p.count == 0) return nullptr;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  return p.dtype == Dtype::float64 ? regularization<double>(p, on) : regularization<float>(p, on);
}

const char* noise_regularization_backward(const NoiseParams& params, void* stream) {
  NoiseParams p = params;
  const int blocks = share_out(p, all_tiles);
  if (blocks == 0) return nullptr;
  const auto kernel = p.dtype == Dtype::float64 ? noise_backward_kernel<double> : noise_backward_kernel<float>;
  return launch(kernel, blocks, kNoiseThreads, 0, static_cast<cudaStream_t>(stream), p);
}

int64_t normalize_noise_partials(const NormalizeNoiseParams& p) {
  int64_t tiles = 0;
  for (int i = 0; i < p.count; ++i) tiles += p.samples[i] * ((p.elements[i] + kNormalizeTile - 1) / kNormalizeTile);
  return tiles;
}

template <class T, int V>
static const char* normalize(NormalizeNoiseParams p, cudaStream_t stream) {
  int64_t blocks = 0;
  for (int i = 0; i < p.count; ++i) {
    p.first_block[i] = static_cast<int>(blocks);
    blocks += p.samples[i] * ((p.elements[i] + kNormalizeTile - 1) / kNormalizeTile);
  }
  if (blocks == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>(blocks));
  const char* error = launch(deviations_kernel<T, V>, grid, kNoiseThreads, 0, stream, p);
  return error != nullptr ? error : launch(normalize_noise_kernel<T, V>, grid, kNoiseThreads, 0, stream, p);
}

const char* normalize_noise(const NormalizeNoiseParams& p, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (p.dtype == Dtype::float64) return normalize<double, 1>(p, on);
  bool vectors = true;
  for (int i = 0; i < p.count; ++i) {
    vectors = vectors && p.elements[i] % 4 == 0 && reinterpret_cast<uintptr_t>(p.maps[i]) % 16 == 0;
  }
  return vectors ? normalize<float, 4>(p, on) : normalize<float, 1>(p, on);
}

}  // namespace fastinv::cuda
