// Kernels of the LPIPS passes. Formulas: fastinv/ops/perceptual.py.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "device.cuh"
#include "perceptual.h"

namespace fastinv::cuda {

constexpr int kPerceptualInputThreads = 128;
constexpr int kPerceptualSumThreads = 256;

// Single values through the checked and, for the first, read-only path.
template <class T>
__device__ __forceinline__ T load_one(const T* address) {
  return load<1>(address).values[0];
}
template <class T>
__device__ __forceinline__ void store_one(T* address, T value) {
  store<1>(address, Vec<T, 1>{{value}});
}

// The largest power of two that is not above |x|, from the bits of its exponent: 1 where |x| is below 2^-100, infinite
// or NaN.
__device__ __forceinline__ float power_of_two_below(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  bits &= 0x7f800000u;
  if (bits < 27u << 23 || bits == 0x7f800000u) bits = 0x3f800000u;
  memcpy(&x, &bits, sizeof(bits));
  return x;
}

// The gradient of a distance times the loss scale, and the inverse of that scale.
template <class T>
__device__ __forceinline__ compute_t<T> scaled_gradient(compute_t<T> grad) {
  if constexpr (std::is_same_v<T, half>) grad = grad / power_of_two_below(grad) * (1 << kPerceptualLossScale);
  return grad;
}
template <class T>
__device__ __forceinline__ compute_t<T> inverse_loss_scale(compute_t<T> grad) {
  if constexpr (std::is_same_v<T, half>) return power_of_two_below(grad) * (1.0f / (1 << kPerceptualLossScale));
  return compute_t<T>(1);
}

// First and one-past-last input of output `index` of an area average along one axis; both sizes at most
// kPerceptualMostSide.
__device__ __forceinline__ int window_begin(int index, int inputs, int outputs) {
  return static_cast<int>(static_cast<uint32_t>(index * inputs) / static_cast<uint32_t>(outputs));
}
__device__ __forceinline__ int window_end(int index, int inputs, int outputs) {
  return static_cast<int>(static_cast<uint32_t>((index + 1) * inputs + outputs - 1) / static_cast<uint32_t>(outputs));
}

// A pixel of NHWC features that has at least three channels; those beyond the third are written as zero.
template <class T, int V>
__device__ __forceinline__ void store_pixel(T* address, const compute_t<T> (&values)[3], int channels) {
  if (V > 1) {
    Vec<T, V> pixel;
#pragma unroll
    for (int c = 0; c < V; ++c) pixel.values[c] = from_compute<T>(c < 3 ? values[c < 3 ? c : 0] : compute_t<T>(0));
    store<V>(address, pixel);
  } else {
    for (int c = 0; c < channels; ++c) {
      store_one(address + c, from_compute<T>(c < 3 ? values[c < 3 ? c : 0] : compute_t<T>(0)));
    }
  }
}
template <class T, int V>
__device__ __forceinline__ void load_pixel(compute_t<T> (&values)[3], const T* address) {
  if (V > 1) {
    const Vec<T, V> pixel = load<V>(address);
#pragma unroll
    for (int c = 0; c < 3; ++c) values[c] = to_compute(pixel.values[c < V ? c : 0]);
  } else {
#pragma unroll
    for (int c = 0; c < 3; ++c) values[c] = to_compute(load_one(address + c));
  }
}

// One thread for each pixel of the features; block (x: columns, y: row, z: sample). factor > 0: windows of
// factor x factor whose rows are loaded as vectors (images aligned to them, dense rows); 0: any windows and strides.
// V: channels that are stored at once, the whole pixel; 1: any number of channels.
template <class Image, class T, int factor, int V>
__global__ void __launch_bounds__(kPerceptualInputThreads) perceptual_input_kernel(PerceptualInputParams p) {
  using C = compute_t<T>;
  const int x = blockIdx.x * kPerceptualInputThreads + threadIdx.x, y = blockIdx.y;
  if (x >= p.width) return;
  const Image* images = static_cast<const Image*>(p.images) + blockIdx.z * p.strides[0];
  C values[3];
  if constexpr (factor > 0) {
    const Image* window = images + static_cast<int64_t>(y) * factor * p.strides[2] + x * factor;
    Vec<Image, factor> rows[3][factor];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
#pragma unroll
      for (int i = 0; i < factor; ++i) rows[c][i] = load<factor>(window + c * p.strides[1] + i * p.strides[2]);
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      C sum = 0;
#pragma unroll
      for (int i = 0; i < factor; ++i) {
#pragma unroll
        for (int j = 0; j < factor; ++j) sum += to_compute(rows[c][i].values[j]);
      }
      values[c] = sum * (C(1) / (factor * factor)) * static_cast<C>(p.scale[c]) + static_cast<C>(p.offset[c]);
    }
  } else {
    const int top = window_begin(y, p.image_height, p.height), bottom = window_end(y, p.image_height, p.height);
    const int left = window_begin(x, p.image_width, p.width), right = window_end(x, p.image_width, p.width);
    const C share = C(1) / ((bottom - top) * (right - left));
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      C sum = 0;
      for (int i = top; i < bottom; ++i) {
        C row_sum = 0;
        const Image* row = images + c * p.strides[1] + i * p.strides[2];
        for (int j = left; j < right; ++j) row_sum += static_cast<C>(to_compute(load_one(row + j * p.strides[3])));
        sum += row_sum;
      }
      values[c] = sum * share * static_cast<C>(p.scale[c]) + static_cast<C>(p.offset[c]);
    }
  }
  T* features = static_cast<T*>(p.features) + static_cast<int64_t>(blockIdx.z) * p.height * p.width * p.channels;
  store_pixel<T, V>(features + (y * p.width + x) * p.channels, values, p.channels);
}

// factor > 0: one thread for each pixel of the features, which writes its window. factor 0: one thread for each pixel
// of the images (windows may overlap by a pixel), which gathers.
template <class Image, class T, int factor, int V>
__global__ void __launch_bounds__(kPerceptualInputThreads) perceptual_input_backward_kernel(PerceptualInputParams p) {
  using C = compute_t<T>;
  const int x = blockIdx.x * kPerceptualInputThreads + threadIdx.x, y = blockIdx.y;
  if (x >= (factor > 0 ? p.width : p.image_width)) return;
  const int64_t plane = static_cast<int64_t>(p.image_height) * p.image_width;
  Image* images = static_cast<Image*>(p.images) + static_cast<int64_t>(blockIdx.z) * 3 * plane;
  const T* grad =
      static_cast<const T*>(p.features) + static_cast<int64_t>(blockIdx.z) * p.height * p.width * p.channels;
  const C unscale = inverse_loss_scale<T>(load_one(static_cast<const C*>(p.grad_value) + blockIdx.z));
  if constexpr (factor > 0) {
    C values[3];
    load_pixel<T, V>(values, grad + (y * p.width + x) * p.channels);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      Vec<Image, factor> row;
      const C value = values[c] * static_cast<C>(p.scale[c]) * (unscale * (C(1) / (factor * factor)));
#pragma unroll
      for (int j = 0; j < factor; ++j) row.values[j] = from_compute<Image>(value);
#pragma unroll
      for (int i = 0; i < factor; ++i) {
        store<factor>(images + c * plane + static_cast<int64_t>(y * factor + i) * p.image_width + x * factor, row);
      }
    }
  } else {
    // Output i sees input y when floor(i H / h) <= y < ceil((i + 1) H / h).
    const int first_row = window_begin(y, p.height, p.image_height);
    const int last_row = window_end(y, p.height, p.image_height);
    const int first_column = window_begin(x, p.width, p.image_width);
    const int last_column = window_end(x, p.width, p.image_width);
    C sums[3] = {C(0), C(0), C(0)};
#pragma unroll 1
    for (int i = first_row; i < last_row; ++i) {
      const int rows = window_end(i, p.image_height, p.height) - window_begin(i, p.image_height, p.height);
#pragma unroll 1
      for (int j = first_column; j < last_column; ++j) {
        const int columns = window_end(j, p.image_width, p.width) - window_begin(j, p.image_width, p.width);
        const C share = C(1) / (rows * columns);
        C values[3];
        load_pixel<T, V>(values, grad + (i * p.width + j) * p.channels);
#pragma unroll
        for (int c = 0; c < 3; ++c) sums[c] += values[c] * share;
      }
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      store_one(images + c * plane + static_cast<int64_t>(y) * p.image_width + x,
                from_compute<Image>(sums[c] * static_cast<C>(p.scale[c]) * unscale));
    }
  }
}

// V values of the computing type, which may take several loads.
template <int V, class C>
__device__ __forceinline__ Vec<C, V> load_long(const C* address) {
  constexpr int part = V * sizeof(C) > 16 ? 16 / sizeof(C) : V;
  Vec<C, V> result;
#pragma unroll
  for (int first = 0; first < V; first += part) {
    const Vec<C, part> values = load<part>(address + first);
#pragma unroll
    for (int i = 0; i < part; ++i) result.values[first + i] = values.values[i];
  }
  return result;
}

// The four pixels of a 2x2 window in row order; those beyond the edge are moved onto it and marked.
struct PixelWindow {
  int pixel[4];  // y * width + x
  bool inside[4];
  int pooled;  // position in the pooled map
  bool complete;
};
__device__ __forceinline__ PixelWindow pixel_window(int row, int column, int height, int width) {
  PixelWindow window;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int y = 2 * row + i / 2, x = 2 * column + i % 2;
    window.inside[i] = y < height && x < width;
    window.pixel[i] = (y < height ? y : height - 1) * width + (x < width ? x : width - 1);
  }
  window.complete = window.inside[3];
  window.pooled = row * (width / 2) + column;
  return window;
}

// The second pass over the features of a window, which are still in registers: distance to the target, slope, and the
// block's partial sum. Every thread of the block calls it.
template <class T, int K>
__device__ __forceinline__ void distance_to_target(const PerceptualStageParams& p,
                                                   const Vec<T, 16 / sizeof(T)> (&h)[K][4],
                                                   const compute_t<T> (&norm)[4], const compute_t<T> (&inverse)[4],
                                                   const PixelWindow& window, int lane, int lanes) {
  using C = compute_t<T>;
  constexpr int V = 16 / sizeof(T);
  FASTINV_SHARED(C, warp_sums, kPerceptualThreads / 32);
  const int64_t pixels = static_cast<int64_t>(p.height) * p.width, sample = blockIdx.z;
  const T* target = static_cast<const T*>(p.target) + sample * pixels * p.channels;
  C ratio[4], distance[4] = {C(0), C(0), C(0), C(0)}, dot[4] = {C(0), C(0), C(0), C(0)};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // 1 for the target itself, which is then at distance 0 exactly, whatever the compiler fuses
    ratio[i] = load_one(static_cast<const C*>(p.target_inverse) + sample * pixels + window.pixel[i]) / inverse[i];
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int channel = (lane + k * lanes) * V;
    const Vec<C, V> head = load_long<V>(static_cast<const C*>(p.head) + channel);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Vec<T, V> other = load<V>(target + window.pixel[i] * p.channels + channel);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const C value = to_compute(h[k][i].values[v]);
        const C difference = (value - to_compute(other.values[v]) * ratio[i]) * inverse[i];
        const C weighted = head.values[v] * difference;
        distance[i] += weighted * difference;
        dot[i] += weighted * value;
      }
    }
  }
  C total = C(0);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    for (int mask = lanes / 2; mask > 0; mask /= 2) dot[i] += shuffle_xor(dot[i], mask);
    if (window.inside[i]) {
      const int64_t at = sample * pixels + window.pixel[i];
      total +=
          p.pixel_weight == nullptr ? distance[i] : distance[i] * load_one(static_cast<const C*>(p.pixel_weight) + at);
      if (lane == 0) {
        const C slope = C(2) * dot[i] * inverse[i] * inverse[i] / norm[i];
        store_one(static_cast<C*>(p.slope) + at, norm[i] == C(0) ? C(0) : slope);
      }
    }
  }
  for (int mask = 16; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = total;
  block_barrier();
  if (threadIdx.x == 0) {
    C sum = warp_sums[0];
#pragma unroll
    for (int warp = 1; warp < kPerceptualThreads / 32; ++warp) sum += warp_sums[warp];
    const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    const int64_t blocks = static_cast<int64_t>(gridDim.y) * gridDim.x;
    store_one(static_cast<C*>(p.partial) + sample * blocks + block, sum / pixels);
  }
}

// Bias, ReLU, pooling, norms over channels, distance to the target. `lanes` threads share a window and each has
// K vectors of its channels. Block (x: windows of a row, y: row, z: sample).
template <class T, int K>
__global__ void __launch_bounds__(kPerceptualThreads, 1)
    perceptual_stage_kernel(PerceptualStageParams p, int log2_lanes) {
  using C = compute_t<T>;
  constexpr int V = 16 / sizeof(T);
  const int lanes = 1 << log2_lanes, lane = threadIdx.x & (lanes - 1);
  const int column = blockIdx.x * (kPerceptualThreads >> log2_lanes) + (threadIdx.x >> log2_lanes);
  const PixelWindow window = pixel_window(blockIdx.y, column, p.height, p.width);
  const int64_t pixels = static_cast<int64_t>(p.height) * p.width, sample = blockIdx.z;
  const T* u = static_cast<const T*>(p.u) + sample * pixels * p.channels;
  T* out = static_cast<T*>(p.h) + sample * pixels * p.channels;
  T* pooled = static_cast<T*>(p.pooled);
  if (pooled != nullptr) pooled += sample * (p.height / 2) * (p.width / 2) * p.channels;

  Vec<T, V> h[K][4];
  C squares[4] = {C(0), C(0), C(0), C(0)};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int channel = (lane + k * lanes) * V;
    const Vec<T, V> bias = load<V>(static_cast<const T*>(p.bias) + channel);
#pragma unroll
    for (int i = 0; i < 4; ++i) h[k][i] = load<V>(u + window.pixel[i] * p.channels + channel);
    Vec<T, V> largest;
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const C sum = to_compute(h[k][i].values[v]) + to_compute(bias.values[v]);
        const T rounded = from_compute<T>(sum < C(0) ? C(0) : sum);  // a NaN stays one
        const C value = to_compute(rounded);
        h[k][i].values[v] = rounded;
        squares[i] += value * value;
        if (i == 0 || value > to_compute(largest.values[v]) || value != value) largest.values[v] = rounded;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (window.inside[i]) store<V>(out + window.pixel[i] * p.channels + channel, h[k][i]);
    }
    if (pooled != nullptr && window.complete) store<V>(pooled + window.pooled * p.channels + channel, largest);
  }
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) squares[i] += shuffle_xor(squares[i], mask);
  }
  C norm[4], inverse[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    norm[i] = sqrt(squares[i]);
    inverse[i] = C(1) / (norm[i] + C(1e-10));
    if (lane == 0 && window.inside[i]) {
      store_one(static_cast<C*>(p.inverse) + sample * pixels + window.pixel[i], inverse[i]);
    }
  }
  if (p.target != nullptr) distance_to_target<T, K>(p, h, norm, inverse, window, lane, lanes);
}

// relu', pooling' and distance' in one pass. One thread for each window and vector of channels.
// Block (x: windows of a row times vectors, y: row, z: sample).
template <class T>
__global__ void __launch_bounds__(kPerceptualThreads, 1)
    perceptual_stage_backward_kernel(PerceptualStageParams p, int log2_vectors) {
  using C = compute_t<T>;
  constexpr int V = 16 / sizeof(T);
  const int thread = blockIdx.x * kPerceptualThreads + threadIdx.x;
  const int channel = (thread & ((1 << log2_vectors) - 1)) * V, column = thread >> log2_vectors;
  if (2 * column >= p.width) return;
  const PixelWindow window = pixel_window(blockIdx.y, column, p.height, p.width);
  const int64_t pixels = static_cast<int64_t>(p.height) * p.width, sample = blockIdx.z;
  const int64_t first = sample * pixels * p.channels + channel;

  Vec<T, V> features[4], other[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    features[i] = load<V>(static_cast<const T*>(p.h) + first + window.pixel[i] * p.channels);
    other[i] = load<V>(static_cast<const T*>(p.target) + first + window.pixel[i] * p.channels);
  }
  Vec<T, V> from_pool;
#pragma unroll
  for (int v = 0; v < V; ++v) from_pool.values[v] = from_compute<T>(C(0));
  if (p.grad_pooled != nullptr && window.complete) {
    const int64_t at = (sample * (p.height / 2) * (p.width / 2) + window.pooled) * p.channels + channel;
    from_pool = load<V>(static_cast<const T*>(p.grad_pooled) + at);
  }
  // Which pixel of the window each channel was pooled from: the first of equal ones.
  int source[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    source[v] = 0;
    C largest = to_compute(features[0].values[v]);
#pragma unroll
    for (int i = 1; i < 4; ++i) {
      const C value = to_compute(features[i].values[v]);
      if (value > largest || value != value) {
        largest = value;
        source[v] = i;
      }
    }
  }
  const Vec<C, V> head = load_long<V>(static_cast<const C*>(p.head) + channel);
  const C grad_value = scaled_gradient<T>(load_one(static_cast<const C*>(p.grad_value) + sample)) / pixels;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t at = sample * pixels + window.pixel[i];
    const C factor =
        p.pixel_weight == nullptr ? grad_value : grad_value * load_one(static_cast<const C*>(p.pixel_weight) + at);
    const C inverse = load_one(static_cast<const C*>(p.inverse) + at),
            slope = load_one(static_cast<const C*>(p.slope) + at) * factor;
    const C ratio = load_one(static_cast<const C*>(p.target_inverse) + at) / inverse, direct = C(2) * inverse * factor;
    Vec<T, V> grad;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const C value = to_compute(features[i].values[v]);
      const C difference = (value - to_compute(other[i].values[v]) * ratio) * inverse;
      C sum = head.values[v] * difference * direct - value * slope;
      if (source[v] == i) sum += to_compute(from_pool.values[v]);
      if (value <= C(0)) sum = C(0);
      if constexpr (std::is_same_v<T, half>) sum = sum > 65504.0f ? 65504.0f : sum < -65504.0f ? -65504.0f : sum;
      grad.values[v] = from_compute<T>(sum);
    }
    if (window.inside[i]) store<V>(static_cast<T*>(p.grad) + first + window.pixel[i] * p.channels, grad);
  }
}

// One block for each sample: short runs in each thread, then a tree.
template <class C>
__global__ void __launch_bounds__(kPerceptualSumThreads) perceptual_sum_kernel(PerceptualSumParams p) {
  FASTINV_SHARED(C, warp_sums, kPerceptualSumThreads / 32);
  C total = C(0);
  for (int i = 0; i < p.count; ++i) {
    const C* partial = static_cast<const C*>(p.partials[i]) + blockIdx.x * p.columns[i];
    for (int64_t j = threadIdx.x; j < p.columns[i]; j += kPerceptualSumThreads) total += load_one(partial + j);
  }
  for (int mask = 16; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = total;
  block_barrier();
  if (threadIdx.x == 0) {
    C sum = warp_sums[0];
    for (int warp = 1; warp < kPerceptualSumThreads / 32; ++warp) sum += warp_sums[warp];
    store_one(static_cast<C*>(p.values) + blockIdx.x, sum);
  }
}

}  // namespace fastinv::cuda
