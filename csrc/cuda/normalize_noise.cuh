// Noise maps to mean 0 and mean square 1, in place: each block finds mean and squared deviations of 4096 elements; then
// each block puts together those of its sample, which is exact where E[x^2] - E[x]^2 would cancel, and applies them.
#pragma once

#include "noise.cuh"

namespace fastinv::cuda {

__device__ __forceinline__ int normalize_tiles(int64_t elements) {
  return static_cast<int>((elements + kNormalizeTile - 1) / kNormalizeTile);
}

struct NormalizeBlock {
  int map, tiles, tile, count;
  int64_t first_partial;  // of the sample
  int64_t offset;         // of the tile in the map
};

__device__ __forceinline__ NormalizeBlock normalize_block(const NormalizeNoiseParams& p) {
  NormalizeBlock b;
  b.map = 0;
  for (int i = 1; i < p.count; ++i) b.map += static_cast<int>(blockIdx.x) >= p.first_block[i] ? 1 : 0;
  b.tiles = normalize_tiles(p.elements[b.map]);
  const int block = blockIdx.x - p.first_block[b.map], sample = block / b.tiles;
  b.tile = block - sample * b.tiles;
  b.first_partial = blockIdx.x - b.tile;
  const int64_t first = static_cast<int64_t>(b.tile) * kNormalizeTile, left = p.elements[b.map] - first;
  b.offset = sample * p.elements[b.map] + first;
  b.count = left < kNormalizeTile ? static_cast<int>(left) : kNormalizeTile;
  return b;
}

template <class T, int V>
__global__ void __launch_bounds__(kNoiseThreads) deviations_kernel(NormalizeNoiseParams p) {
  FASTINV_SHARED(double, shared, 2 * kNoiseWarps);
  const NormalizeBlock b = normalize_block(p);
  const T* x = static_cast<const T*>(p.maps[b.map]) + b.offset;
  const double shift = static_cast<double>(load<1>(x).values[0]);
  double sum = 0, squares = 0;
#pragma unroll 4
  for (int i = threadIdx.x * V; i < b.count; i += kNoiseThreads * V) {
    const Vec<T, V> values = load<V>(x + i);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const double value = static_cast<double>(values.values[v]) - shift;
      sum += value;
      squares += value * value;
    }
  }
  block_sums(sum, squares, shared);
  if (threadIdx.x == 0) write_pair(p.partials, blockIdx.x, shift + sum / b.count, squares - sum * sum / b.count);
}

template <class T, int V>
__global__ void __launch_bounds__(kNoiseThreads) normalize_noise_kernel(NormalizeNoiseParams p) {
  FASTINV_SHARED(double, shared, 4 * kNoiseWarps);
  FASTINV_SHARED(double, shared_mean, 1);
  FASTINV_SHARED(double, shared_factor, 1);
  const NormalizeBlock b = normalize_block(p);
  const double elements = static_cast<double>(p.elements[b.map]);
  const double* partials = p.partials + 2 * b.first_partial;
  const auto count = [&](int tile) {
    return tile < b.tiles - 1 ? double{kNormalizeTile} : elements - static_cast<double>(tile) * kNormalizeTile;
  };
  double sum = 0, squares = 0;
  for (int tile = threadIdx.x; tile < b.tiles; tile += kNoiseThreads) {
    sum += load<1>(partials + 2 * tile).values[0] * count(tile);
    squares += load<1>(partials + 2 * tile + 1).values[0];
  }
  block_sums(sum, squares, shared);
  if (threadIdx.x == 0) shared_mean[0] = sum / elements;
  block_barrier();
  const double mean = shared_mean[0];
  double between = 0, unused = 0;
  for (int tile = threadIdx.x; tile < b.tiles; tile += kNoiseThreads) {
    const double difference = load<1>(partials + 2 * tile).values[0] - mean;
    between += difference * difference * count(tile);
  }
  block_sums(between, unused, shared + 2 * kNoiseWarps);
  if (threadIdx.x == 0) {
    const double mean_square = (squares + between) / elements;
    const double rounding = (sizeof(T) == 8 ? 0x1p-50 : 0x1p-21) * mean;  // 4 epsilon: a constant becomes zeros
    shared_factor[0] = mean_square <= rounding * rounding ? 0.0 : 1.0 / sqrt(mean_square);
  }
  block_barrier();
  const double factor = shared_factor[0];
  T* x = static_cast<T*>(p.maps[b.map]) + b.offset;
#pragma unroll 4
  for (int i = threadIdx.x * V; i < b.count; i += kNoiseThreads * V) {
    Vec<T, V> values = *reinterpret_cast<const Vec<T, V>*>(x + i);  // not by `load`: this kernel writes them
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values.values[v] = static_cast<T>((static_cast<double>(values.values[v]) - mean) * factor);
    }
    store(x + i, values);
  }
}

}  // namespace fastinv::cuda
