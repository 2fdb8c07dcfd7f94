// upfirdn2d, for filters of at most 12 taps along an axis, factors 1 and 2, and images that 32 bits index.
//
// A thread owns COLUMNS neighbouring outputs of a row (times V channels) and marches down the rows. Of each input row
// it reads the few samples that these outputs need (neighbours read the same ones: they come from L1, not from memory),
// filters them horizontally in registers, and adds the result to the sums of all output rows that the input row belongs
// to: as many registers as there are taps, no shared memory, no barrier, each input row touched once.
// Up-sampling needs no zeros: UP outputs side by side see the same samples through UP subsets of the taps.
// A 2-D filter that is an outer product is found to be one on the device, by every block for itself, so that nobody has
// to wait for its values on the host; with other 2-D filters a thread sums all products, an output row after the other.
//
// Compiled for 4 taps, the common case, with vectors of channels or with planes (of one channel); and for 12, which
// serves all else with one channel to a thread: longer filters, few channels, unaligned tensors. More sizes would cost
// nvcc more time than they would save anyone.
//
// Instructions against bytes, estimated, not measured. A copy at 4.3 TB/s leaves 132 SMs * 128 lanes * 1.755 GHz * 4 B
// / 4.3 TB/s = 27 instructions an output in half precision, 55 in float32; 85 % of a copy leaves 32.
//   4 taps, half, channels, up = down = 1, a row of a thread (8 outputs): 4 loads, their addresses 8 and zeros 8,
//   conversions 32, products 32 + 32, rounding and store 5, loop 12: 17 an output. Not an outer product: 47, so half of
//   a copy. Up: 6 of 17, down: 30 of 69 (more bytes an output).
//   planes, half (4 outputs): 4 loads of pairs and their shifts 8, conversions 7, products 32, store 3, loop 12: 17.
//   12 taps (2 outputs): 13 loads, addresses 13, zeros 13, conversions 13, products 48, stores 6, loop 12: 59 an output
//   in half precision, so half of a copy; float32 52, nearly all of one.
// Reads in flight: 4.3 TB/s / 2 * 700 ns / 132 SMs = 11 KB an SM would do; 512 threads have 2 rows of 16 new bytes
// (channels; planes, float32), 768 have 2 of 8 (planes, half): 12 to 16 KB; up-sampling reads a fifth of its bytes.
// Registers (ptxas, sm_90): 4 taps, channels 117 to 128 half, 75 to 86 float32; planes 48 to 68 and 52 to 74; 12 taps
// 96 to 128. No spills.
#pragma once

#include <cstring>

#include "device.cuh"
#include "upfirdn2d.h"

namespace fastinv::cuda {

constexpr int march_threads = 256;
constexpr int short_taps = 4, long_taps = 12;  // that the march is compiled for; longer filters are not marched

__host__ __device__ __forceinline__ int64_t row_offset(int64_t image, int64_t row, int64_t rows, int64_t row_size) {
  return (image * rows + row) * row_size;
}

// Output up * m + phase - shift reads samples base + m * down + j, through tap up * j + tap - phase.
struct MarchAxis {
  int size, out, base, shift, tap, taps;
};

struct MarchParams {
  const void* input;
  void* output;
  const float* filter;
  MarchAxis x, y;
  int channels;
  int vectors;      // of channels, in a pixel
  int row_threads;  // threads side by side: column groups * vectors
  int row_groups;   // groups of UP output rows
  int march;        // of these, as many as a thread computes
  int chunks;       // so many threads compute a column
  int threads;      // all together
  bool one_dimensional, flip_filter;
  float scale;  // of a tap
};

// What is known when a march is compiled. PLANES: one channel, outputs stored as vectors along the row.
template <class T_, int V_, int UP_, int DOWN_, int TAPS_, bool PLANES_>
struct March {
  using T = T_;
  using C = compute_t<T>;
  static constexpr int V = V_, UP = UP_, DOWN = DOWN_, TAPS = TAPS_;
  static constexpr bool PLANES = PLANES_;
  static constexpr int COLUMNS = V > 1 ? UP : PLANES && DOWN == 1 ? 4 : 2;
  // Groups of columns begin where their first two phases share samples, but in planes, where stores must be aligned.
  static constexpr int TAPS_X = UP == 1 ? TAPS : TAPS / 2 + (PLANES ? 1 : 0);
  static constexpr int TAPS_Y = TAPS / UP;
  static constexpr int ROWS = TAPS_Y / DOWN;  // groups of output rows that an input row belongs to
  static constexpr int SAMPLES = (COLUMNS / UP - 1) * DOWN + TAPS_X;
  static constexpr bool PAIRS = PLANES && sizeof(T) == 2;  // reads 4 bytes at a time
  // Rows that are being read: enough bytes in flight, and no more registers than 512 threads an SM may have.
  static constexpr int AHEAD = V > 1 && UP == 2 ? 1 : 2;
  static constexpr int STRIDE = TAPS + 4;  // of the staged 2-D filter: two zeros at either end of a row
  static_assert(TAPS % 2 == 0 && AHEAD % DOWN == 0 && COLUMNS % UP == 0 && (UP == 1 || DOWN == 1));
};

// As they were read: packed, which the compiler would not keep values of 16 bits.
template <class M>
struct Samples {
  static constexpr int bytes = M::V * sizeof(typename M::T);
  static constexpr int words = bytes < 4 ? 1 : bytes / 4;  // of a sample, but for pairs
  static constexpr int pairs = (M::SAMPLES + 1) / 2;
  uint32_t word[M::PAIRS ? pairs : M::SAMPLES * words];
};

template <class Value>
__device__ __forceinline__ uint32_t as_bits(const Value& value) {
  uint32_t bits = 0;
  memcpy(&bits, &value, sizeof(value));
  return bits;
}

// Bit i: column first + i is one of the row's.
template <class M>
__device__ __forceinline__ unsigned columns_inside(int first, int size) {
  unsigned inside = 0;
#pragma unroll
  for (int i = 0; i < M::SAMPLES; ++i) inside |= (first + i >= 0 && first + i < size ? 1u : 0u) << i;
  return inside;
}

// The samples from `from` on, zeros where `inside` has no bit; `neighbours`: the one before and two behind are inside.
template <class M>
__device__ __forceinline__ Samples<M> load_samples(const typename M::T* from, int channels, unsigned inside,
                                                   bool neighbours) {
  Samples<M> samples = {};
  if constexpr (!M::PAIRS) {
    constexpr int words = Samples<M>::words;
#pragma unroll
    for (int i = 0; i < M::SAMPLES; ++i) {
      if (inside >> i & 1) {
        const auto vector = load<M::V>(from);
        memcpy(&samples.word[i * words], &vector, sizeof(vector));
      }
      from += channels;
    }
  } else {
    constexpr int pairs = Samples<M>::pairs;
    if (neighbours && inside != 0) {
      // Pairs must be aligned: one value earlier where need be, and one pair more, shifted back.
      const bool odd = reinterpret_cast<uintptr_t>(from) % 4 != 0;
      from -= odd ? 1 : 0;
      uint32_t low = as_bits(load<2>(from));
#pragma unroll
      for (int i = 0; i < pairs; ++i) {
        const bool last_half = i == pairs - 1 && M::SAMPLES % 2 != 0;  // its upper value is not used
        const uint32_t high = last_half ? 0 : as_bits(load<2>(from + 2 * i + 2));
        samples.word[i] = static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (odd ? 16 : 0));
        low = high;
      }
    } else {
#pragma unroll
      for (int i = 0; i < pairs; ++i) {
        uint32_t value[2] = {0, 0};
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          if (inside >> (2 * i + k) & 1) value[k] = as_bits(load<1>(from + 2 * i + k));
        }
        samples.word[i] = value[0] | value[1] << 16;
      }
    }
  }
  return samples;
}

template <class M>
__device__ __forceinline__ typename M::C sample_value(const Samples<M>& samples, int i, int v) {
  typename M::T value;
  if constexpr (sizeof(value) == 2) {
    const int half_word = M::PAIRS ? i : i * Samples<M>::words * 2 + v;
    const uint16_t bits = static_cast<uint16_t>(samples.word[half_word / 2] >> (half_word % 2 * 16));
    memcpy(&value, &bits, sizeof(value));
  } else {
    memcpy(&value, &samples.word[i * M::V + v], sizeof(value));
  }
  return to_compute(value);
}

// Stores a thread's outputs of one row. `row` is the pixel 0 of the row.
template <class M>
__device__ __forceinline__ void store_outputs(typename M::T* row, int first, const MarchParams& p,
                                              const typename M::C (&value)[M::COLUMNS][M::V]) {
  using T = typename M::T;
  if constexpr (M::PLANES) {
    Vec<T, M::COLUMNS> vector;
#pragma unroll
    for (int e = 0; e < M::COLUMNS; ++e) vector.values[e] = from_compute<T>(value[e][0]);
    T* to = row + first;
    if (first + M::COLUMNS <= p.x.out && reinterpret_cast<uintptr_t>(to) % sizeof(vector) == 0) {
      store<M::COLUMNS>(to, vector);
    } else {
#pragma unroll
      for (int e = 0; e < M::COLUMNS; ++e) {
        if (first + e < p.x.out) store<1>(to + e, Vec<T, 1>{{vector.values[e]}});
      }
    }
  } else {
#pragma unroll
    for (int e = 0; e < M::COLUMNS; ++e) {
      const int column = first + e;
      Vec<T, M::V> vector;
#pragma unroll
      for (int v = 0; v < M::V; ++v) vector.values[v] = from_compute<T>(value[e][v]);
      if (column >= 0 && column < p.x.out) store<M::V>(row + column * p.channels, vector);
    }
  }
}

// Filter taps in shared memory, as correlation needs them and scaled; zeros around.
template <class M>
struct StagedFilter {
  const typename M::C* dense;  // [TAPS, STRIDE], tap (y, x) at y * STRIDE + 2 + x
  const typename M::C* x;      // [STRIDE], tap x at 2 + x
  const typename M::C* y;      // [TAPS]
};

// One thread's part of the picture: output row groups [0, groups) from `input` row `first_row` on.
template <class M>
__device__ __forceinline__ void march_rows(const MarchParams& p, const StagedFilter<M>& filter,
                                           const typename M::T* input, typename M::T* output, int first_column,
                                           int first_output, int first_row, int first_output_row, int groups) {
  using C = typename M::C;
  using T = typename M::T;
  constexpr int width = M::COLUMNS, rows_ahead = M::AHEAD;
  const int input_row_size = p.x.size * p.channels, output_row_size = p.x.out * p.channels;

  C tap_x[M::UP][M::TAPS_X], tap_y[M::UP][M::TAPS_Y];
#pragma unroll
  for (int phase = 0; phase < M::UP; ++phase) {
#pragma unroll
    for (int j = 0; j < M::TAPS_X; ++j) tap_x[phase][j] = filter.x[2 + M::UP * j + p.x.tap - phase];
#pragma unroll
    for (int j = 0; j < M::TAPS_Y; ++j) tap_y[phase][j] = filter.y[M::UP * j + M::UP - 1 - phase];
  }

  C sums[M::UP][M::ROWS][width][M::V] = {};
  const int end_row = min(p.y.size, first_row + (groups - 1) * M::DOWN + M::TAPS_Y);
  const unsigned inside = columns_inside<M>(first_column, p.x.size);
  const bool neighbours = first_column >= 1 && first_column + M::SAMPLES + 1 < p.x.size;
  const int channels = M::PLANES ? 1 : p.channels;
  auto read = [&](int row) {
    const bool row_inside = row >= 0 && row < end_row;
    const T* from = input + ((row_inside ? row : 0) * input_row_size + first_column * channels);
    return load_samples<M>(from, channels, row_inside ? inside : 0, neighbours);
  };
  Samples<M> ahead[rows_ahead];
#pragma unroll
  for (int i = 0; i < rows_ahead; ++i) ahead[i] = read(first_row + i);

  // The sums of a group of output rows are complete once its last input row has been added.
  const int steps = groups + M::ROWS - 1;
#pragma unroll 1
  for (int step = 0; step < steps; step += rows_ahead / M::DOWN) {
    // Zero, which the compiler does not know: else it keeps all addresses of the loop in registers.
    const int unknown_zero = step >> 30;
#pragma unroll
    for (int i = 0; i < rows_ahead; ++i) {
      const int next_row = first_row + (step + unknown_zero) * M::DOWN + i + rows_ahead;
      const int group = step + i / M::DOWN - (M::ROWS - 1);  // the one that this row may complete
      C filtered[width][M::V];
#pragma unroll
      for (int e = 0; e < width; ++e) {
#pragma unroll
        for (int v = 0; v < M::V; ++v) {
          C sum = 0;
#pragma unroll
          for (int j = 0; j < M::TAPS_X; ++j) {
            sum += tap_x[e % M::UP][j] * sample_value<M>(ahead[i], e / M::UP * M::DOWN + j, v);
          }
          filtered[e][v] = sum;
        }
      }
      ahead[i] = read(next_row);
      constexpr int last = M::DOWN - 1;
      const int part = i % M::DOWN;
#pragma unroll
      for (int phase = 0; phase < M::UP; ++phase) {
        C complete[width][M::V] = {};
#pragma unroll
        for (int r = 0; r < M::ROWS; ++r) {
          const int j = (M::ROWS - 1 - r) * M::DOWN + part;
#pragma unroll
          for (int e = 0; e < width; ++e) {
#pragma unroll
            for (int v = 0; v < M::V; ++v) {
              const C sum = (j == 0 ? C(0) : sums[phase][r][e][v]) + tap_y[phase][j] * filtered[e][v];
              if (part < last) {
                sums[phase][r][e][v] = sum;
              } else if (r > 0) {
                sums[phase][r - 1][e][v] = sum;
              } else {
                complete[e][v] = sum;
              }
            }
          }
        }
        const int row = first_output_row + (group + unknown_zero) * M::UP + phase;
        if (part == last && group >= 0 && group < groups && row >= 0 && row < p.y.out) {
          store_outputs<M>(output + row * output_row_size, first_output, p, complete);
        }
      }
    }
  }
}

// The same for a filter that is no outer product: sums of all products, an output row after the other.
template <class M>
__device__ __forceinline__ void dense_rows(const MarchParams& p, const StagedFilter<M>& filter,
                                           const typename M::T* input, typename M::T* output, int first_column,
                                           int first_output, int first_row, int first_output_row, int groups) {
  using C = typename M::C;
  const int input_row_size = p.x.size * p.channels, output_row_size = p.x.out * p.channels;
  const unsigned inside = columns_inside<M>(first_column, p.x.size);
  const bool neighbours = first_column >= 1 && first_column + M::SAMPLES + 1 < p.x.size;
  const int channels = M::PLANES ? 1 : p.channels;
  const int begin = max(0, first_output_row), end = min(p.y.out, first_output_row + groups * M::UP);
#pragma unroll 1
  for (int row = begin; row < end; ++row) {
    const int group = (row - first_output_row) / M::UP, phase = (row - first_output_row) % M::UP;
    C sums[M::COLUMNS][M::V] = {};
#pragma unroll 1
    for (int j = 0; j < M::TAPS_Y; ++j) {
      const int from = first_row + group * M::DOWN + j;
      if (from < 0 || from >= p.y.size) continue;
      const Samples<M> samples =
          load_samples<M>(input + (from * input_row_size + first_column * channels), channels, inside, neighbours);
      const C* taps = filter.dense + (M::UP * j + M::UP - 1 - phase) * M::STRIDE + 2 + p.x.tap;
#pragma unroll
      for (int e = 0; e < M::COLUMNS; ++e) {
#pragma unroll
        for (int t = 0; t < M::TAPS_X; ++t) {
          const C tap = taps[M::UP * t - e % M::UP];
#pragma unroll
          for (int v = 0; v < M::V; ++v) sums[e][v] += tap * sample_value<M>(samples, e / M::UP * M::DOWN + t, v);
        }
      }
    }
    store_outputs<M>(output + row * output_row_size, first_output, p, sums);
  }
}

// Stages the filter; returns whether it is an outer product, which all threads find alike.
template <class M>
__device__ __forceinline__ bool stage_filter(const MarchParams& p, typename M::C* dense, typename M::C* x,
                                             typename M::C* y) {
  using C = typename M::C;
  const int taps = p.one_dimensional ? p.x.taps : p.x.taps * p.y.taps;
  auto tap = [&](int i) { return load<1>(p.filter + (p.flip_filter ? i : taps - 1 - i)).values[0] * p.scale; };
  if (p.one_dimensional) {
    for (int i = threadIdx.x; i < M::STRIDE; i += march_threads) {
      const C value = i >= 2 && i - 2 < taps ? tap(i - 2) : C(0);
      x[i] = value;
      if (i >= 2 && i - 2 < M::TAPS) y[i - 2] = value;
    }
    block_barrier();
    return true;
  }
  for (int i = threadIdx.x; i < M::TAPS * M::STRIDE; i += march_threads) {
    const int row = i / M::STRIDE, column = i % M::STRIDE - 2;
    dense[i] = row < p.y.taps && column >= 0 && column < p.x.taps ? tap(row * p.x.taps + column) : C(0);
  }
  block_barrier();
  // Sums of rows and of columns rather than a division by the largest tap: exact for the usual dyadic filters.
  for (int i = threadIdx.x; i < M::STRIDE; i += march_threads) {
    C sum = 0;
#pragma unroll 1
    for (int row = 0; row < M::TAPS; ++row) sum += dense[row * M::STRIDE + i];
    x[i] = sum;
  }
  for (int i = threadIdx.x; i < M::TAPS; i += march_threads) {
    C sum = 0, total = 0;
#pragma unroll 1
    for (int column = 0; column < M::STRIDE; ++column) sum += dense[i * M::STRIDE + column];
#pragma unroll 1
    for (int j = 0; j < M::TAPS * M::STRIDE; ++j) total += dense[j];
    y[i] = sum / total;
  }
  block_barrier();
  C total = 0, total_size = 0, largest = 0, error = 0;
  bool finite = true;
  for (int row = 0; row < p.y.taps; ++row) {
    for (int i = 2; i < 2 + p.x.taps; ++i) {
      const C value = dense[row * M::STRIDE + i], difference = fabsf(value - x[i] * y[row]);
      finite = finite && difference <= difference;  // not NaN: the taps may sum to zero
      total += value;
      total_size += fabsf(value);
      largest = fmaxf(largest, fabsf(value));
      error = fmaxf(error, difference);
    }
  }
  // A total near zero would cost digits; so much rounding a float32 outer product may have.
  return finite && fabsf(total) > C(0.1) * total_size && error <= C(5e-7) * largest;
}

template <class M>
__global__ void __launch_bounds__(march_threads, 2) march_kernel(MarchParams p) {
  using C = typename M::C;
  using T = typename M::T;
  FASTINV_SHARED(C, dense, M::TAPS * M::STRIDE);
  FASTINV_SHARED(C, x, M::STRIDE);
  FASTINV_SHARED(C, y, M::TAPS);
  const bool separable = stage_filter<M>(p, dense, x, y);
  const int thread = blockIdx.x * march_threads + threadIdx.x;
  if (thread >= p.threads) return;  // no barrier follows

  const int in_row = thread % p.row_threads, stripe = thread / p.row_threads;
  const int vector = in_row % p.vectors, column_group = in_row / p.vectors;
  const int chunk = stripe % p.chunks, image = stripe / p.chunks;
  const int first_group = chunk * p.march;
  const int groups = min(p.march, p.row_groups - first_group);
  const T* input =
      static_cast<const T*>(p.input) + row_offset(image, 0, p.y.size, int64_t(p.x.size) * p.channels) + vector * M::V;
  T* output = static_cast<T*>(p.output) + row_offset(image, 0, p.y.out, int64_t(p.x.out) * p.channels) + vector * M::V;
  const int first_column = p.x.base + column_group * (M::COLUMNS / M::UP) * M::DOWN;
  const int first_output = column_group * M::COLUMNS - p.x.shift;
  const int first_row = p.y.base + first_group * M::DOWN;
  const int first_output_row = first_group * M::UP - p.y.shift;
  const StagedFilter<M> filter{dense, x, y};
  if (separable) {
    march_rows<M>(p, filter, input, output, first_column, first_output, first_row, first_output_row, groups);
  } else {
    dense_rows<M>(p, filter, input, output, first_column, first_output, first_row, first_output_row, groups);
  }
}

}  // namespace fastinv::cuda
