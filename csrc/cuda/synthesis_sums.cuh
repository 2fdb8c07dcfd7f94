// Reductions in two stages, the layout of whose partial results depends on shapes alone. style_gradients: a block adds
// 64 tiles of 32 columns of a layer's sums, seen as a matrix [tiles, planes * channels], in float64; then a block adds
// what 32 channels have left and sorts it. gradient_scale: the largest magnitude of each 4096 elements; then each block
// finds the largest of the sample from these and scales its 4096.
#pragma once

#include "synthesis_scale.cuh"
#include "synthesis_sums.h"

namespace fastinv::cuda {

constexpr int kSumThreads = 256, kSumColumns = 32, kSumLanes = kSumThreads / kSumColumns;

// Where each layer's blocks and partial sums begin; made by the launcher.
struct SumStarts {
  int tile_block[kSumLayers + 1];     // of the first stage
  int channel_block[kSumLayers + 1];  // of the second; the last: of the blocks that write zeros
  int chunks[kSumLayers];
  int64_t partial[kSumLayers];
  int64_t partials;  // per sample
};

__device__ __forceinline__ int find_layer(const int* starts, int count, int block) {
  int found = 0;
  for (int i = 1; i < count; ++i) found += block >= starts[i] ? 1 : 0;
  return found;
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) sum_tiles_kernel(StyleGradientsParams p, SumStarts starts) {
  FASTINV_SHARED(double, shared, kSumThreads);
  const int layer = find_layer(starts.tile_block, p.layer_count, blockIdx.x);
  const int block = blockIdx.x - starts.tile_block[layer];
  const int tiles = p.layers[layer].tiles, chunks = starts.chunks[layer];
  const int columns = p.layers[layer].planes * p.layers[layer].channels;
  const int chunk = block % chunks, column = block / chunks * kSumColumns + static_cast<int>(threadIdx.x % kSumColumns);
  const int64_t sample = blockIdx.y;
  double sum = 0;
  if (column < columns) {
    const T* sums = static_cast<const T*>(p.layers[layer].sums) + sample * tiles * columns + column;
    const int end = tiles < (chunk + 1) * kTilesPerChunk ? tiles : (chunk + 1) * kTilesPerChunk;
#pragma unroll 8
    for (int tile = chunk * kTilesPerChunk + threadIdx.x / kSumColumns; tile < end; tile += kSumLanes) {
      sum += static_cast<double>(load<1>(sums + static_cast<int64_t>(tile) * columns).values[0]);
    }
  }
  shared[threadIdx.x] = sum;
  block_barrier();
  if (threadIdx.x < kSumColumns && column < columns) {
#pragma unroll
    for (int i = 1; i < kSumLanes; ++i) sum += shared[i * kSumColumns + threadIdx.x];
    store<1>(
        p.partial + sample * starts.partials + starts.partial[layer] + static_cast<int64_t>(chunk) * columns + column,
        Vec<double, 1>{sum});
  }
}

// Zeros for the rows and outputs that no layer has.
template <class T>
__device__ __forceinline__ void write_zeros(const StyleGradientsParams& p, int block) {
  const int place = block * kSumThreads + threadIdx.x;
  const bool is_row = place < p.rows;
  const int at = is_row ? place : place - p.rows;
  bool write = is_row || at < p.outputs;
  for (int i = 0; i < p.layer_count; ++i) {
    const SumLayer& layer = p.layers[i];
    const auto covers = [&](int first) { return first >= 0 && at >= first && at < first + layer.channels; };
    if (is_row ? covers(layer.next_row) || covers(layer.rgb_row) : covers(layer.first_output)) write = false;
  }
  const int64_t sample = blockIdx.y;
  if (write && is_row) store<1>(static_cast<T*>(p.dstyles) + sample * p.rows + at, Vec<T, 1>{T(0)});
  if (write && !is_row) store<1>(static_cast<T*>(p.q) + sample * p.outputs + at, Vec<T, 1>{T(0)});
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) sort_sums_kernel(StyleGradientsParams p, SumStarts starts) {
  FASTINV_SHARED(double, shared, kSumPlanes* kSumThreads);
  const int index = find_layer(starts.channel_block, p.layer_count + 1, blockIdx.x);
  const int block = blockIdx.x - starts.channel_block[index];
  if (index == p.layer_count) {
    write_zeros<T>(p, block);
    return;  // the whole block
  }
  const int channels = p.layers[index].channels, planes = p.layers[index].planes;
  const int chunks = starts.chunks[index];
  const int channel = block * kSumColumns + static_cast<int>(threadIdx.x % kSumColumns);
  const int64_t sample = blockIdx.y;
  double sums[kSumPlanes] = {};
  if (channel < channels) {
    const double* partial = p.partial + sample * starts.partials + starts.partial[index] + channel;
#pragma unroll 4
    for (int chunk = threadIdx.x / kSumColumns; chunk < chunks; chunk += kSumLanes) {
#pragma unroll
      for (int plane = 0; plane < kSumPlanes; ++plane) {
        if (plane < planes) {
          sums[plane] += load<1>(partial + (static_cast<int64_t>(chunk) * planes + plane) * channels).values[0];
        }
      }
    }
  }
#pragma unroll
  for (int plane = 0; plane < kSumPlanes; ++plane) shared[plane * kSumThreads + threadIdx.x] = sums[plane];
  block_barrier();
  if (threadIdx.x >= kSumColumns || channel >= channels) return;
  const double unscale =
      p.unscale == nullptr ? 1.0 : static_cast<double>(load<1>(static_cast<const T*>(p.unscale) + sample).values[0]);
#pragma unroll
  for (int plane = 0; plane < kSumPlanes; ++plane) {
#pragma unroll
    for (int i = 1; i < kSumLanes; ++i) sums[plane] += shared[plane * kSumThreads + i * kSumColumns + threadIdx.x];
    sums[plane] *= unscale;
  }
  T* dstyles = static_cast<T*>(p.dstyles) + sample * p.rows + channel;
  if (p.layers[index].next_row >= 0) store<1>(dstyles + p.layers[index].next_row, Vec<T, 1>{static_cast<T>(sums[0])});
  if (p.layers[index].rgb_row >= 0) store<1>(dstyles + p.layers[index].rgb_row, Vec<T, 1>{static_cast<T>(sums[1])});
  if (p.layers[index].first_output >= 0) {
    const int output = p.layers[index].first_output + channel;
    const int64_t at = sample * p.outputs + output;
    const double bias = static_cast<double>(load<1>(static_cast<const T*>(p.bias) + output).values[0]);
    const double d = static_cast<double>(load<1>(static_cast<const T*>(p.d) + at).values[0]);
    const double dd_times_d = sums[2] - sums[3] - bias * sums[4];
    store<1>(static_cast<T*>(p.q) + at, Vec<T, 1>{static_cast<T>(dd_times_d * (d * d))});
  }
}

constexpr int kScaleThreads = 256, kScaleWarps = kScaleThreads / 32;

// The largest magnitude of the block's values, one for each thread; thread 0 knows it then. shared: one for each warp.
template <class T>
__device__ __forceinline__ T block_largest(T value, T* shared) {
  value = warp_largest(value);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  block_barrier();
#pragma unroll
  for (int i = 1; i < kScaleWarps; ++i) value = larger_magnitude(value, shared[i]);
  return value;
}

template <class T, int V>
__global__ void __launch_bounds__(kScaleThreads) largest_kernel(GradientScaleParams p) {
  FASTINV_SHARED(T, shared, kScaleWarps);
  const int64_t sample = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kScaleTile;
  const T* gradient = static_cast<const T*>(p.gradient) + sample * p.elements + first;
  const int count = p.elements - first < kScaleTile ? static_cast<int>(p.elements - first) : kScaleTile;
  T largest = T(0);
#pragma unroll 4
  for (int i = threadIdx.x * V; i < count; i += kScaleThreads * V) {
    const Vec<T, V> values = load<V>(gradient + i);
#pragma unroll
    for (int v = 0; v < V; ++v) largest = larger_magnitude(largest, T(fabs(values.values[v])));
  }
  largest = block_largest(largest, shared);
  if (threadIdx.x == 0) {
    store<1>(static_cast<T*>(p.largest) + sample * gridDim.x + blockIdx.x, Vec<T, 1>{largest});
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kScaleThreads) gradient_scale_kernel(GradientScaleParams p) {
  FASTINV_SHARED(T, shared, kScaleWarps);
  FASTINV_SHARED(T, shared_factor, 1);
  const int64_t sample = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kScaleTile;
  const T* tiles = static_cast<const T*>(p.largest) + sample * gridDim.x;
  T largest = T(0);
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kScaleThreads) {
    largest = larger_magnitude(largest, load<1>(tiles + i).values[0]);
  }
  largest = block_largest(largest, shared);
  if (threadIdx.x == 0) {
    const int exponent = scale_exponent(largest);
    shared_factor[0] = ldexp(T(1), -exponent);
    if (blockIdx.x == 0) store<1>(static_cast<T*>(p.inverse) + sample, Vec<T, 1>{ldexp(T(1), exponent)});
  }
  block_barrier();
  const T factor = shared_factor[0];
  const T* gradient = static_cast<const T*>(p.gradient) + sample * p.elements + first;
  T* scaled = static_cast<T*>(p.scaled) + sample * p.elements + first;
  const int count = p.elements - first < kScaleTile ? static_cast<int>(p.elements - first) : kScaleTile;
#pragma unroll 4
  for (int i = threadIdx.x * V; i < count; i += kScaleThreads * V) {
    Vec<T, V> values = load<V>(gradient + i);
#pragma unroll
    for (int v = 0; v < V; ++v) values.values[v] *= factor;
    store(scaled + i, values);
  }
}

}  // namespace fastinv::cuda
