// One pass over a dense tensor with an operand per channel and, if wanted, sums per channel: what bias_act and
// channel_scale share. A block of 256 threads takes a piece of a run; a thread keeps its channels for the whole piece,
// so that no element costs a division. Two walks:
//   planes   [samples * channels, length]: a run is the plane of one channel (NCHW). Blocks take a piece of one plane,
//            or several small planes.
//   columns  [samples, pixels, channels]: a run is a sample (NHWC). Threads stand side by side along the channels and
//            march down the pixels. Channels and 16-byte vectors fall together again every `period` elements.
// Sums: registers, then a tree over the block, then one row of partial sums per block that a second kernel adds up. The
// layout depends on shapes only and there are no atomics, so the result is the same in every run.
#pragma once

#include "device.cuh"

namespace fastinv::cuda {

constexpr int walk_threads = 256;
constexpr int64_t walk_most_channels = int64_t(1) << 22;  // of columns: a period and a piece then fit into 32 bits

template <class T>
constexpr int vector_of = 16 / sizeof(T);

struct ChannelWalk {
  bool columns;
  int64_t samples, channels;
  int64_t runs, length;  // `runs` one after the other, of `length` elements
  int64_t blocks;
  uint32_t pieces;        // of a run
  int32_t piece;          // elements of it, the last has fewer; in columns a multiple of the period
  int32_t lanes, rows;    // threads of a block: vectors side by side, and how often (planes: one plane each)
  int32_t period, tiles;  // of columns; `tiles` blocks side by side make up a period
};

// Vectors that a thread takes: enough for its fixed costs to vanish, few enough for thousands of blocks, so that the
// last of them to finish do not matter. With sums twice as many: half the partial sums.
inline int64_t walk_iterations(int64_t elements, int vector, bool sums) {
  const int64_t wanted = elements / (int64_t(walk_threads) * vector * (sums ? 2048 : 4096));
  return wanted < 1 ? 1 : wanted > 16 ? 16 : wanted;
}

// iterations: 0 for what suits the size; tests give it.
inline ChannelWalk walk_planes(int64_t samples, int64_t channels, int64_t length, int vector, bool sums,
                               int64_t iterations = 0) {
  ChannelWalk walk{};
  walk.samples = samples;
  walk.channels = channels;
  walk.runs = samples * channels;
  walk.length = length;
  // A plane whose length is no multiple of a vector may begin anywhere inside of one.
  const int64_t vectors = (length + vector - 1) / vector + (length % vector != 0);
  walk.lanes = 1;
  while (walk.lanes < walk_threads && walk.lanes < vectors) walk.lanes *= 2;
  walk.rows = walk_threads / walk.lanes;
  if (iterations == 0) iterations = walk_iterations(walk.runs * length, vector, sums);
  const int64_t longest = walk_threads * vector * iterations;
  walk.piece = static_cast<int32_t>(length < longest ? length : longest);
  walk.pieces = static_cast<uint32_t>((length + longest - 1) / longest);
  walk.period = walk.tiles = 1;
  walk.blocks = (walk.runs + walk.rows - 1) / walk.rows * walk.pieces;
  return walk;
}

// At most walk_most_channels channels.
inline ChannelWalk walk_columns(int64_t samples, int64_t pixels, int64_t channels, int vector, bool sums,
                                int64_t iterations = 0) {
  constexpr int side_by_side = 32, rows_per_sum = 32, longest = 1 << 28;
  ChannelWalk walk{};
  walk.columns = true;
  walk.samples = walk.runs = samples;
  walk.channels = channels;
  walk.length = pixels * channels;
  if (samples == 0 || walk.length == 0) return walk;
  int common = vector;  // the greatest common divisor with the channels: vector is a power of two
  while (channels % common != 0) common /= 2;
  walk.period = static_cast<int32_t>(channels * (vector / common));
  const int groups = walk.period / vector;
  walk.tiles = (groups + side_by_side - 1) / side_by_side;
  walk.lanes = (groups + walk.tiles - 1) / walk.tiles;
  walk.rows = walk_threads / walk.lanes;
  if (iterations == 0) iterations = walk_iterations(samples * walk.length, vector, sums);
  const int64_t least = sums ? (rows_per_sum + walk.rows - 1) / walk.rows : 1;  // so that partial sums stay few
  iterations = iterations < least ? least : iterations;
  const int64_t most = longest / (int64_t(walk.rows) * walk.period);
  iterations = iterations > most ? (most < 1 ? 1 : most) : iterations;
  walk.piece = static_cast<int32_t>(walk.rows * iterations * walk.period);
  walk.pieces = static_cast<uint32_t>((walk.length + walk.piece - 1) / walk.piece);
  walk.blocks = samples * walk.pieces * walk.tiles;
  return walk;
}

// How many partial sums a walk writes: rows of `channels` values, as many for each sample.
inline int64_t partial_count(const ChannelWalk& walk) {
  return walk.samples * walk.pieces * (walk.columns ? walk.period : walk.channels);
}

// A 64-bit division takes a hundred instructions, and most numbers are small.
__host__ __device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

// What one thread does.
struct ThreadRange {
  int64_t base;         // a multiple of the vector; the positions below count from it
  int32_t begin, end;   // what of the run is this block's (nothing for a thread that has no channel)
  int32_t first, step;  // the thread's vectors
  int64_t sample;
  int64_t channel;        // planes: of the run; columns: of the vector's first value
  int64_t partial;        // planes: where the run's sum goes; columns: where the block's row of sums starts
  int32_t slot;           // columns: place of the vector's first value in that row, modulo the period
  int32_t member, width;  // sums are over members; width threads of the block have the same member number
  bool active;
};

__host__ __device__ __forceinline__ ThreadRange thread_range(const ChannelWalk& walk, int vector, uint32_t block,
                                                             int thread) {
  ThreadRange range;
  const int row = thread / walk.lanes, lane = thread - row * walk.lanes;
  const uint32_t tile = block % walk.tiles, rest = block / walk.tiles;
  const uint32_t piece = rest % walk.pieces, group = rest / walk.pieces;
  const int64_t run = walk.columns ? group : int64_t(group) * walk.rows + row;
  const int64_t done = int64_t(piece) * walk.piece, left = walk.length - done;
  const int64_t start = run * walk.length + done;
  range.base = start - start % vector;
  range.begin = static_cast<int32_t>(start - range.base);
  if (walk.columns) {
    const int column = (static_cast<int>(tile) * walk.lanes + lane) * vector;
    range.active = row < walk.rows && column < walk.period;
    range.first = row * walk.period + column;
    range.step = walk.rows * walk.period;
    range.sample = run;
    range.slot = column - range.begin + (column < range.begin ? walk.period : 0);
    range.channel = static_cast<uint32_t>(range.slot) % static_cast<uint32_t>(walk.channels);
    range.partial = (run * walk.pieces + piece) * walk.period;
    range.member = row;
    range.width = walk.lanes;
  } else {
    range.active = run < walk.runs;
    range.first = lane * vector;
    range.step = walk.lanes * vector;
    range.sample = divide(run, walk.channels);
    range.channel = run - range.sample * walk.channels;
    range.slot = 0;
    range.partial = (range.sample * walk.pieces + piece) * walk.channels + range.channel;
    range.member = lane;
    range.width = walk.rows;
  }
  range.end = range.active ? range.begin + static_cast<int32_t>(left < walk.piece ? left : walk.piece) : 0;
  return range;
}

// The sums of a block over its members, by a tree, into its row of partial sums.
template <class C, int V>
__device__ __forceinline__ void write_partials(const ChannelWalk& walk, const ThreadRange& range, C (&sums)[V],
                                               C* partials) {
  FASTINV_SHARED(C, scratch, walk_threads * V);
  if (!walk.columns) {
#pragma unroll
    for (int half = V / 2; half > 0; half /= 2) {
#pragma unroll
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
  }
  const int values = walk.columns ? V : 1;
  const int place = walk.columns ? threadIdx.x : range.member * walk.rows + threadIdx.x / walk.lanes;
  C* mine = scratch + place * values;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i < values) mine[i] = sums[i];
  }
  block_barrier();
  for (int count = walk.columns ? walk.rows : walk.lanes; count > 1;) {
    const int half = (count + 1) / 2;
    if (range.member < count - half) {
      for (int i = 0; i < values; ++i) mine[i] += mine[half * range.width * values + i];
    }
    block_barrier();
    count = half;
  }
  if (range.member == 0 && range.active) {
    for (int i = 0; i < values; ++i) {
      const int slot = range.slot + i;
      store<1>(partials + range.partial + (slot < walk.period ? slot : slot - walk.period), Vec<C, 1>{{mine[i]}});
    }
  }
}

// A Map says what is computed:
//   T, Operand                  element types of the tensors and of the operand
//   inputs, unroll              tensors that are read; vectors of each that a thread has on the way at a time
//   writes, sums                whether there is a result, whether sums of it over a channel
//   in[inputs], out             tensors, dense and of one shape
//   operand, operand_stride     one value for each channel, or null for zero; stride from sample to sample
//   aligned                     whether all tensors begin at a multiple of 16 bytes
//   partials                    null, or where partial sums go
//   apply(values, operand, result)
template <class Map>
__global__ void __launch_bounds__(walk_threads, 3) channel_walk_kernel(ChannelWalk walk, Map map) {
  using T = typename Map::T;
  using C = compute_t<T>;
  constexpr int V = vector_of<T>, inputs = Map::inputs, unroll = Map::unroll;
  const ThreadRange range = thread_range(walk, V, blockIdx.x, threadIdx.x);
  C operand[V], sums[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    operand[i] = sums[i] = C(0);
  }
  if (map.operand != nullptr && range.active) {
    const auto* from = map.operand + range.sample * map.operand_stride;
    int64_t channel = range.channel;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      operand[i] = static_cast<C>(load<1>(from + channel).values[0]);
      if (walk.columns) channel = channel + 1 == walk.channels ? 0 : channel + 1;
    }
  }
  for (int at = range.first; at < range.end;) {
    if (map.aligned && at >= range.begin && at + V <= range.end) {
      Vec<T, V> vectors[unroll][inputs];
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        const int position = at + u * range.step;
        if (position + V > range.end) break;
#pragma unroll
        for (int k = 0; k < inputs; ++k) vectors[u][k] = load<V>(map.in[k] + range.base + position);
      }
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        if (at + V > range.end) break;
        C values[inputs][V], result[V];
#pragma unroll
        for (int k = 0; k < inputs; ++k) {
#pragma unroll
          for (int i = 0; i < V; ++i) values[k][i] = to_compute(vectors[u][k].values[i]);
        }
        map.apply(values, operand, result);
        Vec<T, V> rounded;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          if (Map::sums) sums[i] += result[i];
          if (Map::writes) rounded.values[i] = from_compute<T>(result[i]);
        }
        if (Map::writes) store<V>(map.out + range.base + at, rounded);
        at += range.step;
      }
    } else {  // the ends of a run that begins or ends inside a vector, and tensors that do not begin at 16 bytes
#pragma unroll 1
      for (int i = 0; i < V; ++i) {
        const int position = at + i;
        if (position < range.begin || position >= range.end) continue;
        C values[inputs][1], result[1], one_operand[1] = {operand[0]};
#pragma unroll
        for (int k = 0; k < inputs; ++k)
          values[k][0] = to_compute(load<1>(map.in[k] + range.base + position).values[0]);
#pragma unroll
        for (int j = 1; j < V; ++j) one_operand[0] = j == i ? operand[j] : one_operand[0];  // stays in registers
        map.apply(values, one_operand, result);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          if (Map::sums && j == i) sums[j] += result[0];
        }
        if (Map::writes) store<1>(map.out + range.base + position, Vec<T, 1>{{from_compute<T>(result[0])}});
      }
      at += range.step;
    }
  }
  if constexpr (Map::sums) {
    if (map.partials != nullptr) write_partials<C, V>(walk, range, sums, map.partials);
  }
}

// out[sample, channel] = sum over the rows of partials[sample, row, channel]. Short runs, then trees.
template <class C, class Out>
__global__ void __launch_bounds__(walk_threads)
    channel_sum_kernel(const C* partials, Out* out, int64_t rows, int64_t channels, uint32_t tiles) {
  constexpr int width = 8, members = walk_threads / width, runs = 8;
  FASTINV_SHARED(C, scratch, walk_threads);
  const int64_t sample = blockIdx.x / tiles;
  const int64_t channel = int64_t(blockIdx.x % tiles) * width + threadIdx.x % width;
  const int member = threadIdx.x / width;
  C sums[runs];
#pragma unroll
  for (int u = 0; u < runs; ++u) sums[u] = C(0);
  if (channel < channels) {
    const C* from = partials + sample * rows * channels + channel;
    for (int64_t row = member; row < rows; row += members * runs) {
#pragma unroll
      for (int u = 0; u < runs; ++u) {
        if (row + u * members < rows) sums[u] += load<1>(from + (row + u * members) * channels).values[0];
      }
    }
  }
#pragma unroll
  for (int half = runs / 2; half > 0; half /= 2) {
#pragma unroll
    for (int u = 0; u < half; ++u) sums[u] += sums[u + half];
  }
  scratch[threadIdx.x] = sums[0];
  block_barrier();
  for (int half = members / 2; half > 0; half /= 2) {
    if (member < half) scratch[threadIdx.x] += scratch[threadIdx.x + half * width];
    block_barrier();
  }
  if (member == 0 && channel < channels) {
    const Out value = from_compute<Out>(static_cast<compute_t<Out>>(scratch[threadIdx.x]));
    store<1>(out + sample * channels + channel, Vec<Out, 1>{{value}});
  }
}

template <class Map>
static const char* launch_walk(const ChannelWalk& walk, const Map& map, cudaStream_t stream) {
  if (walk.blocks == 0 || walk.length == 0) return nullptr;
  if (walk.blocks > INT32_MAX) return "the tensor is too large for one launch";
  return launch(channel_walk_kernel<Map>, dim3(static_cast<unsigned>(walk.blocks)), dim3(walk_threads), 0, stream, walk,
                map);
}

// The second stage, for `samples` results of [channels]; also of an empty tensor, whose sums are zero.
template <class C, class Out>
static const char* launch_sum(const ChannelWalk& walk, int64_t samples, const C* partials, Out* out,
                              cudaStream_t stream) {
  const int64_t tiles = (walk.channels + 7) / 8, blocks = samples * tiles;
  if (blocks == 0) return nullptr;
  const int64_t rows = walk.length == 0 ? 0 : partial_count(walk) / (samples * walk.channels);
  return launch(channel_sum_kernel<C, Out>, dim3(static_cast<unsigned>(blocks)), dim3(walk_threads), 0, stream,
                partials, out, rows, walk.channels, static_cast<uint32_t>(tiles));
}

template <class... Pointers>
static bool all_aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) | ... | uintptr_t(0)) % 16) == 0;
}

}  // namespace fastinv::cuda
