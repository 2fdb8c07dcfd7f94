// synthesis_epilogue for the forms transposed and phases: the 4x4 FIR filter of an up-sampling layer and everything
// after it in one pass over t, the convolution's result. Formulas: fastinv/ops/synthesis.py.
//
// With the taps f, x[i, j] = sum_ab f[a] f[b] t[i + a - 1, j + b - 1], rows before columns inside one thread.
#pragma once

#include <cstring>
#include <type_traits>

#include "synthesis_point.cuh"

namespace fastinv::cuda {

// Where a sample's t[row, column] lies in memory, counted in elements: the only difference between the two forms.
struct FirLayout {
  int pair_of_rows, odd_row, pair_of_columns, odd_column;
  int rows, columns;  // of t; phases have one row and one column more than the filter sees
};

inline FirLayout fir_layout(const SynthesisLayer& p) {
  const int c = p.channels;
  if (p.form == Form::transposed) {
    const int row = (p.width + 1) * c;
    return {2 * row, row, 2 * c, c, p.height + 1, p.width + 1};
  }
  return {(p.width / 2 + 1) * 4 * c, 2 * c, 4 * c, c, p.height + 2, p.width + 2};
}

__host__ __device__ __forceinline__ int row_offset(const FirLayout& layout, int row) {
  return (row >> 1) * layout.pair_of_rows + (row & 1) * layout.odd_row;
}
__host__ __device__ __forceinline__ int column_offset(const FirLayout& layout, int column) {
  return (column >> 1) * layout.pair_of_columns + (column & 1) * layout.odd_column;
}

// Threads of a block: `lanes` vectors of channels side by side (x), times `columns` columns (y). Blocks: groups of
// channels fastest, for whole DRAM pages, then tiles of columns, tiles of rows, samples.
struct FirGrid {
  unsigned groups, column_tiles, row_tiles, blocks;
  int lanes, columns, rows;  // columns and rows: of a tile
};

struct FirTile {
  unsigned sample;
  int row, column, channel;  // the first ones
};

__host__ __device__ __forceinline__ FirTile fir_tile(const FirGrid& grid, unsigned block, int vector) {
  const unsigned group = block % grid.groups, all_tiles = block / grid.groups;
  const unsigned tiles = grid.column_tiles * grid.row_tiles;
  const unsigned sample = all_tiles / tiles, tile = all_tiles % tiles;
  const unsigned row_tile = tile / grid.column_tiles, column_tile = tile % grid.column_tiles;
  return {sample, static_cast<int>(row_tile) * grid.rows, static_cast<int>(column_tile) * grid.columns,
          static_cast<int>(group) * grid.lanes * vector};
}

// V values of T on their way, in words of 32 bits where they are 16 bytes: nvcc gives each 16-bit value of a Vec that
// lives across a branch a register of its own.
template <class T, int V>
struct Raw {
  static constexpr bool packed = sizeof(T) * V == 16;
  using Word = std::conditional_t<packed, uint32_t, T>;
  static constexpr int count = packed ? 4 : V;
  Vec<Word, count> words;

  __device__ __forceinline__ void fetch(const T* from) { words = load<count>(reinterpret_cast<const Word*>(from)); }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < count; ++i) words.values[i] = static_cast<Word>(0.0f);
  }
  __device__ __forceinline__ Vec<T, V> values() const {
    Vec<T, V> result;
    memcpy(&result, &words, sizeof(result));
    return result;
  }
};

// Vectors of C in shared memory, cut into pieces of 16 bytes that lie `threads` pieces apart: neighbouring threads then
// touch neighbouring banks.
template <class C, int V>
struct SharedVectors {
  static constexpr int most = 16 / static_cast<int>(sizeof(C)), piece = V < most ? V : most;
  static __device__ __forceinline__ int place(int threads, int thread, int i) {
    return (i / piece * threads + thread) * piece + i % piece;
  }
  static __device__ __forceinline__ void put(C* base, int threads, int thread, const C (&values)[V]) {
#pragma unroll
    for (int i = 0; i < V; i += piece) {
      Vec<C, piece> part;
#pragma unroll
      for (int j = 0; j < piece; ++j) part.values[j] = values[i + j];
      store<piece>(base + place(threads, thread, i), part);
    }
  }
  static __device__ __forceinline__ void get(const C* base, int threads, int thread, C (&values)[V]) {
#pragma unroll
    for (int i = 0; i < V; i += piece) {
      const Vec<C, piece> part = load_shared<piece>(base + place(threads, thread, i));
#pragma unroll
      for (int j = 0; j < piece; ++j) values[i + j] = part.values[j];
    }
  }
};

constexpr int kFirThreads = 128;

// A thread takes V channels of one column and marches down the rows. Of every row of t it loads its own and three
// neighbouring columns, one row ahead (the neighbours come from L1: 4 x 16 bytes of its bandwidth for 16 of DRAM's),
// filters them along the row, and adds the result to the three outputs that it is part of and that are not done yet.
//
// Bytes of an element (half): 2 of t, 2 of y, 2 of next; a tile reads 3 rows more than it writes, mostly from L2.
// Instructions of a vector of 8, by count and unmeasured: 4 loads, 32 conversions, 32 + 32 filter, 80 epilogue, 6 reads
// of operands, 2 stores = 24 of an element, or 27 us of issue on an H200 for 32 x 1024^2, where the bytes take 47 us.
template <class T, int V>
__global__ void __launch_bounds__(kFirThreads, 6)
    fir_epilogue_kernel(SynthesisEpilogueParams p, SynthesisConstants<compute_t<T>> k, FirLayout layout, FirGrid grid) {
  using C = compute_t<T>;
  const FirTile tile = fir_tile(grid, blockIdx.x, V);
  const int channel = tile.channel + static_cast<int>(threadIdx.x) * V;
  const int column = tile.column + static_cast<int>(threadIdx.y);
  // The operands wait in shared memory: in registers they would cost a quarter of the warps.
  using Shared = SharedVectors<C, V>;
  FASTINV_DYNAMIC_SHARED(C, operands);  // [3][lanes * V]
  const int lanes = blockDim.x, lane = threadIdx.x;
  ForwardChannels<C, V> channels;
  if (threadIdx.y == 0) {
    load_operands<false>(channels, p, tile.sample, channel, channel < p.channels);
    Shared::put(operands, lanes, lane, channels.d);
    Shared::put(operands + lanes * V, lanes, lane, channels.bias);
    Shared::put(operands + 2 * lanes * V, lanes, lane, channels.next);
  }
  block_barrier();
  if (channel >= p.channels || column >= p.width) return;  // no barrier follows

  const T* t =
      static_cast<const T*>(p.u) + tile.sample * (int64_t(layout.rows) * layout.columns * p.channels) + channel;
  const int64_t output = tile.sample * (int64_t(p.height) * p.width * p.channels) + column * p.channels + channel;
  // Columns column - 1 and column; the two to the right of them are a pair of columns further.
  const int columns[2] = {column_offset(layout, column - 1), column_offset(layout, column)};
  const int first = tile.row, last = min(tile.row + grid.rows, p.height);  // rows of the output

  // Row r of t and the noise of row r - 2, which is done once row r is there.
  Raw<T, V> ahead[4];
  C noise_ahead = C(0);
  auto fetch = [&](int row) {
    const bool inside = row >= 0 && row <= p.height;
    const T* from = t + (inside ? row_offset(layout, row) : 0);
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const bool there = inside && (b > 0 || column > 0) && (b < 3 || column + 2 <= p.width);
      if (there) {
        ahead[b].fetch(from + (columns[b % 2] + b / 2 * layout.pair_of_columns));
      } else {
        ahead[b].clear();
      }
    }
    if (p.noise != nullptr && row - 2 >= first && row - 2 < last) {
      const int64_t at = tile.sample * p.noise_stride + ((row - 2) * p.width + column);
      noise_ahead = load<1>(static_cast<const C*>(p.noise) + at).values[0];
    }
  };

  C pending[3][V];
#pragma unroll
  for (int i = 0; i < V; ++i) pending[0][i] = pending[1][i] = pending[2][i] = C(0);
  fetch(first - 1);
#pragma unroll 1
  for (int row = first - 1; row <= last + 1; ++row) {
    C filtered[V] = {};
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const Vec<T, V> neighbour = ahead[b].values();
#pragma unroll
      for (int i = 0; i < V; ++i) filtered[i] += k.taps[b] * to_compute(neighbour.values[i]);
    }
    const C scaled_noise = k.strength * noise_ahead;
    if (row <= last) fetch(row + 1);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const C h = filtered[i];
      filtered[i] = pending[0][i] + k.taps[3] * h;
      pending[0][i] = pending[1][i] + k.taps[2] * h;
      pending[1][i] = pending[2][i] + k.taps[1] * h;
      pending[2][i] = k.taps[0] * h;
    }
    if (row - 2 < first) continue;
    Shared::get(operands, lanes, lane, channels.d);
    Shared::get(operands + lanes * V, lanes, lane, channels.bias);
    Shared::get(operands + 2 * lanes * V, lanes, lane, channels.next);
    Vec<T, V> result, following;
    C unused[3] = {};
    forward_point<false>(filtered, scaled_noise, channels, k, result, following, unused);
    const int64_t at = output + (row - 2) * p.width * p.channels;
    store<V>(static_cast<T*>(p.y) + at, result);
    if (p.next != nullptr) store<V>(static_cast<T*>(p.next) + at, following);
  }
}

// The picture of a layer, from its y. In StyleGAN2 no layer with a FIR filter has one, so this need not be fast: a
// second pass over y, a warp for each pixel.
template <class T>
__global__ void __launch_bounds__(kFirThreads)
    fir_picture_kernel(SynthesisEpilogueParams p, SynthesisConstants<compute_t<T>> k) {
  using C = compute_t<T>;
  constexpr int warp = 32;
  const int pixels = p.height * p.width, lane = threadIdx.x % warp;
  const int64_t at = int64_t(blockIdx.x) * (kFirThreads / warp) + threadIdx.x / warp;
  const bool inside = at < p.samples * pixels;
  const int64_t sample = inside ? at / pixels : 0;
  const int pixel = inside ? static_cast<int>(at - sample * pixels) : 0;
  C sums[3] = {};
  if (inside) {
    const T* y = static_cast<const T*>(p.y) + at * p.channels;
    for (int channel = lane; channel < p.channels; channel += warp) {
      const C styles = load<1>(static_cast<const C*>(p.rgb_styles) + sample * p.rgb_stride + channel).values[0];
      const C value = to_compute(load<1>(y + channel).values[0]) * styles;
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        sums[j] += value * load<1>(static_cast<const C*>(p.rgb_weight) + j * p.channels + channel).values[0];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 3; ++j) {
    for (int mask = warp / 2; mask > 0; mask /= 2) sums[j] += shuffle_xor(sums[j], mask);
  }
  if (inside && lane == 0) write_picture(p, k, sample, pixel / p.width, pixel % p.width, sums);
}

}  // namespace fastinv::cuda
