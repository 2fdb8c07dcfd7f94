// Matrix times vector for the matrices of all layers at once. The matrices are what there is to read (29 MB at
// 1024x1024), so each is read once for up to 8 samples. Forward: one warp for each row, along which its lanes lie.
// Backward: one block for each 32 columns, whose threads share the rows. Sums: some 16 terms in a thread, then a tree.
#pragma once

#include "synthesis_scale.cuh"
#include "synthesis_styles.h"

namespace fastinv::cuda {

constexpr int kRowThreads = 256, kRowWarps = kRowThreads / 32;
constexpr int kOutputsPerBlock = 2 * kRowWarps;  // of demodulation
constexpr int kColumnThreads = 512, kColumnWarps = kColumnThreads / 32;
constexpr int kColumns = 32;  // per block

// Where each layer's blocks, outputs and weights begin; made by the launcher.
struct LayerStarts {
  int block[kSynthesisLayers + 1];  // the last: of the blocks that copy rows of no layer
  int output[kSynthesisLayers + 1];
  int64_t weight[kSynthesisLayers];
};

// The last i < count with starts[i] <= value (starts[0] <= value).
__device__ __forceinline__ int find_interval(const int* starts, int count, int value) {
  int found = 0;
  for (int i = 1; i < count; ++i) found += value >= starts[i] ? 1 : 0;
  return found;
}

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Samples beyond the last read the last one's numbers; nobody writes their results.
template <int S>
__device__ __forceinline__ int64_t clamped_sample(int64_t first, int s, int64_t samples) {
  return first + s < samples ? first + s : samples - 1;
}

template <class T, int V, int S>
__global__ void __launch_bounds__(kRowThreads) styles_kernel(StylesParams p) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (row >= p.rows) return;  // the whole warp; there is no barrier of the block
  const int input = find_interval(p.first_row, p.inputs, row);
  const int64_t first = static_cast<int64_t>(blockIdx.y) * S;
  const T* weight = static_cast<const T*>(p.weight) + static_cast<int64_t>(row) * p.width;
  const T* w_plus[S];
  T sums[S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
    sums[s] = T(0);
    w_plus[s] = static_cast<const T*>(p.w_plus) + (clamped_sample<S>(first, s, p.samples) * p.inputs + input) * p.width;
  }
#pragma unroll(S == 1 ? 4 : 2)
  for (int k = lane * V; k < p.width; k += 32 * V) {
    const Vec<T, V> a = load<V>(weight + k);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Vec<T, V> b = load<V>(w_plus[s] + k);
#pragma unroll
      for (int v = 0; v < V; ++v) sums[s] += a.values[v] * b.values[v];
    }
  }
  const T bias = load<1>(static_cast<const T*>(p.bias) + row).values[0];
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const T total = warp_sum(sums[s]);
    if (lane == s && first + s < p.samples) {
      store<1>(static_cast<T*>(p.styles) + (first + s) * p.rows + row, Vec<T, 1>{total + bias});
    }
  }
}

// Copies the rows of no layer, those of toRGB, for the samples of the block. `from` and `to` are [samples, rows].
template <int S, class T>
__device__ __forceinline__ void copy_other_rows(const DemodulationParams& p, int block, const T* from, T* to) {
  const int row = block * blockDim.x + threadIdx.x;
  bool other = row < p.rows;
  for (int i = 0; i < p.layers; ++i) other = other && (row < p.row[i] || row >= p.row[i] + p.inputs[i]);
  if (!other) return;
  for (int s = 0; s < S; ++s) {
    const int64_t sample = static_cast<int64_t>(blockIdx.y) * S + s;
    if (sample < p.samples) store<1>(to + sample * p.rows + row, load<1>(from + sample * p.rows + row));
  }
}

// The bound for S = 8 (0: none) keeps the compiler from spilling a register or two for the sake of occupancy.
template <class T, int V, int S>
__global__ void __launch_bounds__(kRowThreads, S == 8 ? 2 : 0)
    demodulation_kernel(DemodulationParams p, LayerStarts starts) {
  FASTINV_SHARED(T, shared_factors, S);
  const T* styles = static_cast<const T*>(p.styles);
  const int layer = find_interval(starts.block, p.layers + 1, blockIdx.x);
  const int part = blockIdx.x - starts.block[layer];
  if (layer == p.layers) {
    copy_other_rows<S>(p, part, styles, static_cast<T*>(p.scaled));
    return;  // the whole block
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = p.row[layer], inputs = p.inputs[layer];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * S;
  for (int s = warp; s < S; s += kRowWarps) {
    int exponent = 0;
    if (p.scale) {
      const T* own = styles + clamped_sample<S>(first, s, p.samples) * p.rows + row;
      T largest = T(0);
#pragma unroll 4
      for (int i = lane; i < inputs; i += 32) largest = larger_magnitude(largest, T(fabs(load<1>(own + i).values[0])));
      exponent = scale_exponent(warp_largest(largest));
    }
    if (lane == 0) shared_factors[s] = ldexp(T(1), -exponent);
  }
  block_barrier();

  T factors[S];
  int offsets[S];  // of the samples, in 32 bits to spare registers
  const T* own = styles + first * p.rows + row;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    factors[s] = shared_factors[s];
    offsets[s] = static_cast<int>(clamped_sample<S>(first, s, p.samples) - first) * p.rows;
  }
  const int all_outputs = starts.output[p.layers], outputs = p.outputs[layer];
  const T epsilon = static_cast<T>(p.epsilon[layer]);
#pragma unroll 1
  for (int i = warp; i < kOutputsPerBlock; i += kRowWarps) {
    const int output = part * kOutputsPerBlock + i;
    if (output >= outputs) break;
    const T* sumsq =
        static_cast<const T*>(p.weight_sumsq) + starts.weight[layer] + static_cast<int64_t>(output) * inputs;
    T sums[S];
#pragma unroll
    for (int s = 0; s < S; ++s) sums[s] = T(0);
#pragma unroll(S == 1 ? 4 : 1)
    for (int k = lane * V; k < inputs; k += 32 * V) {
      const Vec<T, V> weights = load<V>(sumsq + k);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const Vec<T, V> values = load<V>(own + offsets[s] + k);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const T value = values.values[v] * factors[s];
          sums[s] += value * value * weights.values[v];
        }
      }
    }
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const T total = warp_sum(sums[s]) + epsilon * (factors[s] * factors[s]);
      if (lane == s && first + s < p.samples) {
        store<1>(static_cast<T*>(p.d) + (first + s) * all_outputs + starts.output[layer] + output,
                 Vec<T, 1>{T(1) / sqrt(total)});
      }
    }
  }
  if (part != 0) return;  // the layer's first block also writes its styles
#pragma unroll 1
  for (int s = 0; s < S; ++s) {
    if (first + s < p.samples) {
      T* scaled = static_cast<T*>(p.scaled) + (first + s) * p.rows + row;
      for (int i = threadIdx.x; i < inputs; i += kRowThreads) {
        store<1>(scaled + i, Vec<T, 1>{load<1>(own + s * p.rows + i).values[0] * shared_factors[s]});
      }
      if (threadIdx.x == 0) {
        store<1>(static_cast<T*>(p.scales) + (first + s) * p.layers + layer, Vec<T, 1>{shared_factors[s]});
      }
    }
  }
}

// sum_r factors[s, r] matrix[r, column] for 32 columns from `column` on: thread 32 s + c returns that of sample s and
// column c, threads from 32 S on nothing of use. matrix: [rows, width]. factors: S pointers. shared: kColumnWarps S 32.
template <int V, int S, class T>
__device__ __forceinline__ T column_sum(const T* matrix, int rows, int width, int column, const T* const (&factors)[S],
                                        T* shared) {
  constexpr int groups = kColumns / V, row_lanes = kColumnThreads / groups;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int own_column = column + static_cast<int>(threadIdx.x % groups) * V;
  T sums[S][V];
#pragma unroll
  for (int s = 0; s < S; ++s) {
#pragma unroll
    for (int v = 0; v < V; ++v) sums[s][v] = T(0);
  }
  if (own_column < width) {
    matrix += own_column;
#pragma unroll(S == 1 ? 4 : 2)
    for (int row = threadIdx.x / groups; row < rows; row += row_lanes) {
      const Vec<T, V> values = load<V>(matrix + static_cast<int64_t>(row) * width);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const T factor = load<1>(factors[s] + row).values[0];
#pragma unroll
        for (int v = 0; v < V; ++v) sums[s][v] += factor * values.values[v];
      }
    }
  }
#pragma unroll
  for (int s = 0; s < S; ++s) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int mask = groups; mask < 32; mask *= 2) sums[s][v] += shuffle_xor(sums[s][v], mask);
      if (lane < groups) shared[(warp * S + s) * kColumns + lane * V + v] = sums[s][v];
    }
  }
  block_barrier();
  T total = T(0);
  if (threadIdx.x < S * kColumns) {
#pragma unroll
    for (int i = 0; i < kColumnWarps; ++i) total += shared[i * S * kColumns + threadIdx.x];
  }
  return total;
}

template <class T, int V, int S>
__global__ void __launch_bounds__(kColumnThreads, 1) styles_backward_kernel(StylesParams p) {
  FASTINV_SHARED(T, shared, kColumnWarps * S * kColumns);
  const int input = blockIdx.y, column = blockIdx.x * kColumns, row = p.first_row[input];
  const int64_t first = static_cast<int64_t>(blockIdx.z) * S;
  const T* dstyles[S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
    dstyles[s] = static_cast<const T*>(p.dstyles) + clamped_sample<S>(first, s, p.samples) * p.rows + row;
  }
  const T total = column_sum<V>(static_cast<const T*>(p.weight) + static_cast<int64_t>(row) * p.width,
                                p.first_row[input + 1] - row, p.width, column, dstyles, shared);
  const int64_t sample = first + threadIdx.x / kColumns;
  const int own_column = column + threadIdx.x % kColumns;
  if (threadIdx.x < S * kColumns && sample < p.samples && own_column < p.width) {
    store<1>(static_cast<T*>(p.dw_plus) + (sample * p.inputs + input) * p.width + own_column, Vec<T, 1>{total});
  }
}

template <class T, int V, int S>
__global__ void __launch_bounds__(kColumnThreads, 1)
    demodulation_backward_kernel(DemodulationParams p, LayerStarts starts) {
  FASTINV_SHARED(T, shared, kColumnWarps * S * kColumns);
  const T* dstyles = static_cast<const T*>(p.dstyles);
  T* result = static_cast<T*>(p.result);
  const int layer = find_interval(starts.block, p.layers + 1, blockIdx.x);
  const int part = blockIdx.x - starts.block[layer];
  if (layer == p.layers) {
    copy_other_rows<S>(p, part, dstyles, result);
    return;  // the whole block
  }
  const int inputs = p.inputs[layer], all_outputs = starts.output[p.layers];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * S;
  const T* q[S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
    q[s] = static_cast<const T*>(p.q) + clamped_sample<S>(first, s, p.samples) * all_outputs + starts.output[layer];
  }
  const T total = column_sum<V>(static_cast<const T*>(p.weight_sumsq) + starts.weight[layer], p.outputs[layer], inputs,
                                part * kColumns, q, shared);
  const int64_t sample = first + threadIdx.x / kColumns;
  const int own_column = part * kColumns + threadIdx.x % kColumns;
  if (threadIdx.x < S * kColumns && sample < p.samples && own_column < inputs) {
    const int64_t at = sample * p.rows + p.row[layer] + own_column;
    const T style = load<1>(static_cast<const T*>(p.styles) + at).values[0];
    const T factor = load<1>(static_cast<const T*>(p.factors) + sample * p.layers + layer).values[0];
    store<1>(result + at, Vec<T, 1>{(load<1>(dstyles + at).values[0] - style * total) * factor});
  }
}

}  // namespace fastinv::cuda
