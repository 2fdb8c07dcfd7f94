// The noise regulariser over all maps at once. Forward: (1) tiles of 64x64 add products of neighbours and make the
// levels down to 64x64; (2) tiles add the products of those levels, while one block for each map goes all the way from
// 64x64; (3) one block for each sample adds what the tiles have left, in a fixed order. Backward: the means of each
// level tell the gradient of every pixel in closed form, so one pass reads all levels and writes it.
#pragma once

#include "device.cuh"
#include "noise.h"

namespace fastinv::cuda {

constexpr int kNoiseThreads = 256, kNoiseWarps = kNoiseThreads / 32;
constexpr int kPatch = 4;                      // height and width of a thread's pixels
constexpr int kPatches = kNoiseTile / kPatch;  // per row of a tile; kPatches^2 threads

__device__ __forceinline__ int find_map(const NoiseParams& p, int block) {
  int found = 0;
  for (int i = 1; i < p.count; ++i) found += block >= p.maps[i].first_block ? 1 : 0;
  return found;
}

__device__ __forceinline__ int noise_tiles(int size) { return (size + kNoiseTile - 1) / kNoiseTile; }

// The picture of a level >= 1, in the scratch memory.
template <class T>
__device__ __forceinline__ T* pyramid_level(const NoiseParams& p, int index, int sample, int level) {
  const NoiseMap& map = p.maps[index];
  return static_cast<T*>(p.pyramid) + map.pyramid + static_cast<int64_t>(sample) * map.sample_pyramid +
         map.level[level];
}
template <class T>
__device__ __forceinline__ const T* level_picture(const NoiseParams& p, int index, int sample, int level) {
  const int size = p.maps[index].size;
  return level > 0 ? pyramid_level<T>(p, index, sample, level)
                   : static_cast<const T*>(p.maps[index].map) + static_cast<int64_t>(sample) * size * size;
}

template <class T>
__device__ __forceinline__ bool row_vectors(const T* picture, int size) {
  return size % 4 == 0 && reinterpret_cast<uintptr_t>(picture) % 16 == 0;
}

// Four pixels of a row; 0 beyond its end.
template <class T>
__device__ __forceinline__ void load_four(const T* row, int column, int size, bool vectors, T (&values)[kPatch]) {
  constexpr int width = 16 / sizeof(T);
  if (vectors) {
#pragma unroll
    for (int i = 0; i < kPatch; i += width) {
      const Vec<T, width> part = load<width>(row + column + i);
#pragma unroll
      for (int j = 0; j < width; ++j) values[i + j] = part.values[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPatch; ++i) values[i] = column + i < size ? load<1>(row + column + i).values[0] : T(0);
  }
}

template <class T>
__device__ __forceinline__ T pixel(const T* picture, int size, int row, int column) {
  return load<1>(picture + row * size + column).values[0];
}

// The sums of both over the block; thread 0 has them then. shared: 2 kNoiseWarps.
__device__ __forceinline__ void block_sums(double& x, double& y, double* shared) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    x += shuffle_xor(x, mask);
    y += shuffle_xor(y, mask);
  }
  if (threadIdx.x % 32 == 0) {
    shared[2 * (threadIdx.x / 32)] = x;
    shared[2 * (threadIdx.x / 32) + 1] = y;
  }
  block_barrier();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 1; i < kNoiseWarps; ++i) {
      x += shared[2 * i];
      y += shared[2 * i + 1];
    }
  }
}

// The 4x4 pixels from (row, column) on (0 outside), and the sums of their products with their left and upper
// neighbours.
template <class T>
__device__ __forceinline__ void load_patch(const T* picture, int size, int row, int column, T (&patch)[kPatch][kPatch],
                                           T& x, T& y) {
  x = y = T(0);
#pragma unroll
  for (int i = 0; i < kPatch; ++i) {
#pragma unroll
    for (int j = 0; j < kPatch; ++j) patch[i][j] = T(0);
  }
  if (row >= size || column >= size) return;
  const bool vectors = row_vectors(picture, size);
  const int left_column = column == 0 ? size - 1 : column - 1, upper_row = row == 0 ? size - 1 : row - 1;
  T above[kPatch];
  load_four(picture + upper_row * size, column, size, vectors, above);
#pragma unroll
  for (int i = 0; i < kPatch; ++i) {
    if (row + i < size) {
      load_four(picture + (row + i) * size, column, size, vectors, patch[i]);
      T left = pixel(picture, size, row + i, left_column);
#pragma unroll
      for (int j = 0; j < kPatch; ++j) {
        x += patch[i][j] * left;
        y += patch[i][j] * above[j];
        left = above[j] = patch[i][j];
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void write_pair(double* pairs, int64_t index, T x, T y) {
  store<1>(pairs + 2 * index, Vec<double, 1>{x});
  store<1>(pairs + 2 * index + 1, Vec<double, 1>{y});
}

template <class T>
__global__ void __launch_bounds__(kNoiseThreads, 3) noise_pyramid_kernel(NoiseParams p) {
  FASTINV_SHARED(double, shared_sums, 2 * kNoiseWarps);
  FASTINV_SHARED(T, shared, kPatches * kPatches * 5 / 4);  // two levels of the tile
  const int index = find_map(p, blockIdx.x), size = p.maps[index].size, tail = p.maps[index].tail;
  const int tiles = noise_tiles(size), block = blockIdx.x - p.maps[index].first_block;
  const int sample = block / (tiles * tiles), tile = block - sample * (tiles * tiles);
  const int tile_row = tile / tiles * kNoiseTile, tile_column = tile % tiles * kNoiseTile;
  const int patch_row = threadIdx.x / kPatches, patch_column = threadIdx.x % kPatches;
  const int row = tile_row + patch_row * kPatch, column = tile_column + patch_column * kPatch;

  T patch[kPatch][kPatch], x, y;
  load_patch(level_picture<T>(p, index, sample, 0), size, row, column, patch, x, y);
  T* picture = pyramid_level<T>(p, index, sample, 1);
  T average = T(0);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const T value =
          (patch[2 * i][2 * j] + patch[2 * i][2 * j + 1] + patch[2 * i + 1][2 * j] + patch[2 * i + 1][2 * j + 1]) *
          T(0.25);
      const int own_row = row / 2 + i, own_column = column / 2 + j;
      if (own_row < size / 2 && own_column < size / 2) {
        store<1>(picture + own_row * (size / 2) + own_column, Vec<T, 1>{value});
      }
      average += value;
    }
  }
  average *= T(0.25);
  double sum_x = x, sum_y = y;
  block_sums(sum_x, sum_y, shared_sums);
  if (threadIdx.x == 0) {
    write_pair(p.partials, p.maps[index].partials + static_cast<int64_t>(sample) * p.maps[index].sample_partials + tile,
               sum_x, sum_y);
  }

  T* from = shared;
  T* to = shared + kPatches * kPatches;
  int own_row = patch_row, own_column = patch_column;  // in the tile's part of the level
  for (int level = 2; level <= tail; ++level) {
    const int side = kNoiseTile >> level;  // of that part
    const bool own = threadIdx.x < static_cast<unsigned>(side * side);
    if (level > 2) {
      block_barrier();
      own_row = threadIdx.x >> (6 - level);
      own_column = threadIdx.x & (side - 1);
      if (own) {
        const T* first = from + 4 * own_row * side + 2 * own_column;
        average = (first[0] + first[1] + first[2 * side] + first[2 * side + 1]) * T(0.25);
      }
      T* other = from;
      from = to;
      to = other;
    }
    if (own) {
      from[own_row * side + own_column] = average;
      const int level_size = size >> level;
      const int level_row = (tile_row >> level) + own_row, level_column = (tile_column >> level) + own_column;
      if (level_row < level_size && level_column < level_size) {
        store<1>(pyramid_level<T>(p, index, sample, level) + level_row * level_size + level_column, Vec<T, 1>{average});
      }
    }
  }
}

// All levels of a map from `tail` on, in shared memory: [64 * 64] and [32 * 32].
template <class T>
__device__ __forceinline__ void noise_tail(const NoiseParams& p, int index, int sample, T* current, T* next,
                                           double* shared_sums) {
  const int column0 = threadIdx.x % 32, row0 = threadIdx.x / 32;
  int level = p.maps[index].tail, size = p.maps[index].size >> level;
  const T* picture = level_picture<T>(p, index, sample, level);
  for (int i = threadIdx.x; i < size * size; i += kNoiseThreads) current[i] = load<1>(picture + i).values[0];
  block_barrier();
  while (true) {
    T x = T(0), y = T(0);
    for (int row = row0; row < size; row += kNoiseWarps) {
      const T* own = current + row * size;
      const T* above = row == 0 ? current + (size - 1) * size : own - size;
      for (int column = column0; column < size; column += 32) {
        x += own[column] * own[column == 0 ? size - 1 : column - 1];
        y += own[column] * above[column];
      }
    }
    double sum_x = x, sum_y = y;
    block_sums(sum_x, sum_y, shared_sums);
    if (threadIdx.x == 0) {
      const double pixels = static_cast<double>(size) * size;
      const NoiseMap& map = p.maps[index];
      write_pair(p.means, map.means + static_cast<int64_t>(sample) * map.levels + level, sum_x / pixels,
                 sum_y / pixels);
    }
    if (++level == p.maps[index].levels) return;
    const int half_size = size / 2;
    T* out = pyramid_level<T>(p, index, sample, level);
    for (int row = row0; row < half_size; row += kNoiseWarps) {
      for (int column = column0; column < half_size; column += 32) {
        const T* first = current + 2 * row * size + 2 * column;
        const T value = (first[0] + first[1] + first[size] + first[size + 1]) * T(0.25);
        next[row * half_size + column] = value;
        store<1>(out + row * half_size + column, Vec<T, 1>{value});
      }
    }
    block_barrier();
    T* other = current;
    current = next;
    next = other;
    size = half_size;
  }
}

// Of one sample: one for the levels from `tail` on, and the tiles of levels 1 and on before it.
__host__ __device__ inline int level_blocks(const NoiseMap& map) {
  return 1 + (map.tail > 1 ? map.sample_partials - map.tile_sums[1] : 0);
}

template <class T>
__global__ void __launch_bounds__(kNoiseThreads) noise_levels_kernel(NoiseParams p) {
  FASTINV_SHARED(double, shared_sums, 2 * kNoiseWarps);
  FASTINV_SHARED(T, shared, kNoiseTile * kNoiseTile * 5 / 4);
  const int index = find_map(p, blockIdx.x), block = blockIdx.x - p.maps[index].first_block;
  const int blocks = level_blocks(p.maps[index]);
  const int sample = block / blocks;
  int tile = block - sample * blocks;
  if (tile == 0) {
    noise_tail(p, index, sample, shared, shared + kNoiseTile * kNoiseTile, shared_sums);
    return;  // the whole block
  }
  --tile;
  int level = 1, size = p.maps[index].size / 2, tiles = noise_tiles(size);
  while (tile >= tiles * tiles) {
    tile -= tiles * tiles;
    ++level;
    size /= 2;
    tiles = noise_tiles(size);
  }
  const int row = tile / tiles * kNoiseTile + static_cast<int>(threadIdx.x / kPatches) * kPatch;
  const int column = tile % tiles * kNoiseTile + static_cast<int>(threadIdx.x % kPatches) * kPatch;
  T patch[kPatch][kPatch], x, y;
  load_patch(level_picture<T>(p, index, sample, level), size, row, column, patch, x, y);
  double sum_x = x, sum_y = y;
  block_sums(sum_x, sum_y, shared_sums);
  if (threadIdx.x == 0) {
    const NoiseMap& map = p.maps[index];
    write_pair(p.partials,
               map.partials + static_cast<int64_t>(sample) * map.sample_partials + map.tile_sums[level] + tile, sum_x,
               sum_y);
  }
}

// One block for each sample of the batch; a warp for each level of each map.
template <class T>
__global__ void __launch_bounds__(kNoiseThreads) noise_value_kernel(NoiseParams p) {
  FASTINV_SHARED(double, shared, kNoiseWarps);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double value = 0;
  int turn = 0;
  for (int index = 0; index < p.count; ++index) {
    const NoiseMap& map = p.maps[index];
    const int sample = map.samples == 1 ? 0 : blockIdx.x;
    const int64_t means = map.means + static_cast<int64_t>(sample) * map.levels;
    for (int level = 0; level < map.levels; ++level, ++turn) {
      if (turn % kNoiseWarps != warp) continue;  // the whole warp
      double x = 0, y = 0;
      if (level >= map.tail) {
        x = load<1>(p.means + 2 * (means + level)).values[0];
        y = load<1>(p.means + 2 * (means + level) + 1).values[0];
      } else {
        const int size = map.size >> level, tiles = noise_tiles(size);
        const double* sums =
            p.partials + 2 * (map.partials + static_cast<int64_t>(sample) * map.sample_partials + map.tile_sums[level]);
        for (int i = lane; i < tiles * tiles; i += 32) {
          x += load<1>(sums + 2 * i).values[0];
          y += load<1>(sums + 2 * i + 1).values[0];
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) {
          x += shuffle_xor(x, mask);
          y += shuffle_xor(y, mask);
        }
        x /= static_cast<double>(size) * size;
        y /= static_cast<double>(size) * size;
        // Of a map that all samples share, the first block writes.
        if (lane == 0 && (map.samples > 1 || blockIdx.x == 0)) write_pair(p.means, means + level, x, y);
      }
      value += x * x + y * y;
    }
  }
  if (lane == 0) shared[warp] = value;
  block_barrier();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 1; i < kNoiseWarps; ++i) value += shared[i];
    store<1>(static_cast<T*>(p.value) + blockIdx.x, Vec<T, 1>{static_cast<T>(value)});
  }
}

// across (left + right) + down (above + below) at a pixel of a picture whose borders meet.
template <class T>
__device__ __forceinline__ T neighbours(const T* picture, int size, int row, int column, T across, T down) {
  const T left = pixel(picture, size, row, column == 0 ? size - 1 : column - 1);
  const T right = pixel(picture, size, row, column == size - 1 ? 0 : column + 1);
  const T above = pixel(picture, size, row == 0 ? size - 1 : row - 1, column);
  const T below = pixel(picture, size, row == size - 1 ? 0 : row + 1, column);
  return across * (left + right) + down * (above + below);
}

template <class T>
__global__ void __launch_bounds__(kNoiseThreads) noise_backward_kernel(NoiseParams p) {
  FASTINV_SHARED(T, factors, 2 * kNoiseLevels);
  const int index = find_map(p, blockIdx.x), block = blockIdx.x - p.maps[index].first_block;
  const int size = p.maps[index].size, levels = p.maps[index].levels, tiles = noise_tiles(size);
  const int sample = block / (tiles * tiles), tile = block - sample * (tiles * tiles);
  // d (mean(x left)^2) / d x = 2 mean(x left) (left + right) / pixels; a pixel is 4^-level of its average.
  if (threadIdx.x < static_cast<unsigned>(2 * levels)) {
    const int level = threadIdx.x / 2, level_size = size >> level;
    double dvalue = 0;
    const bool shared_by_all = p.maps[index].samples == 1;
    for (int n = shared_by_all ? 0 : sample; n < (shared_by_all ? p.samples : sample + 1); ++n) {
      dvalue += static_cast<double>(load<1>(static_cast<const T*>(p.dvalue) + n).values[0]);
    }
    const int64_t pair = p.maps[index].means + static_cast<int64_t>(sample) * levels + level;
    const double mean = load<1>(p.means + 2 * pair + threadIdx.x % 2).values[0];
    const double pixels = static_cast<double>(level_size) * level_size;
    factors[threadIdx.x] = static_cast<T>(2 * dvalue * mean / (pixels * static_cast<double>(int64_t{1} << 2 * level)));
  }
  block_barrier();

  const int row = tile / tiles * kNoiseTile + static_cast<int>(threadIdx.x / kPatches) * kPatch;
  const int column = tile % tiles * kNoiseTile + static_cast<int>(threadIdx.x % kPatches) * kPatch;
  if (row >= size || column >= size) return;  // no barrier follows
  // Where an odd size was cut off by the averaging, deeper levels have no such pixel.
  T deep = T(0);  // of levels that are the same for all 4x4 pixels
  for (int level = 2; level < levels; ++level) {
    const int level_size = size >> level, level_row = row >> level, level_column = column >> level;
    if (level_row < level_size && level_column < level_size) {
      deep += neighbours(level_picture<T>(p, index, sample, level), level_size, level_row, level_column,
                         factors[2 * level], factors[2 * level + 1]);
    }
  }
  T shallow[2][2] = {{deep, deep}, {deep, deep}};
  if (levels > 1) {
    const T* picture = level_picture<T>(p, index, sample, 1);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (row / 2 + i < size / 2 && column / 2 + j < size / 2) {
          shallow[i][j] += neighbours(picture, size / 2, row / 2 + i, column / 2 + j, factors[2], factors[3]);
        }
      }
    }
  }
  const T* picture = level_picture<T>(p, index, sample, 0);
  T* gradient = static_cast<T*>(p.maps[index].gradient) + static_cast<int64_t>(sample) * size * size;
  const bool vectors = row_vectors(picture, size) && row_vectors(gradient, size);
  const T across = factors[0], down = factors[1];
  T above[kPatch], own[kPatch], below[kPatch];
  load_four(picture + (row == 0 ? size - 1 : row - 1) * size, column, size, vectors, above);
  load_four(picture + row * size, column, size, vectors, own);
#pragma unroll
  for (int i = 0; i < kPatch; ++i) {
    if (row + i < size) {
      load_four(picture + (row + i == size - 1 ? 0 : row + i + 1) * size, column, size, vectors, below);
      const int last = column + kPatch - 1 < size - 1 ? column + kPatch - 1 : size - 1;
      T left = pixel(picture, size, row + i, column == 0 ? size - 1 : column - 1);
      const T beyond = pixel(picture, size, row + i, last == size - 1 ? 0 : last + 1);
      T out[kPatch];
#pragma unroll
      for (int j = 0; j < kPatch; ++j) {
        T right = beyond;
        if (j + 1 < kPatch && column + j < last) right = own[(j + 1) % kPatch];
        out[j] = across * (left + right) + down * (above[j] + below[j]) + shallow[i / 2][j / 2];
        left = own[j];
      }
#pragma unroll
      for (int j = 0; j < kPatch; ++j) {
        above[j] = own[j];
        own[j] = below[j];
      }
      T* to = gradient + (row + i) * size + column;
      if (vectors) {
        constexpr int width = 16 / sizeof(T);
#pragma unroll
        for (int j = 0; j < kPatch; j += width) {
          Vec<T, width> part;
#pragma unroll
          for (int v = 0; v < width; ++v) part.values[v] = out[j + v];
          store(to + j, part);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kPatch; ++j) {
          if (column + j < size) store<1>(to + j, Vec<T, 1>{out[j]});
        }
      }
    }
  }
}

}  // namespace fastinv::cuda
