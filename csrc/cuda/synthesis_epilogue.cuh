// Kernels of synthesis_epilogue and its backward for the forms without a filter. A thread keeps V channels over several
// pixels, so that their operands stay in registers; `lanes` threads side by side, a power of two, make up a pixel,
// `rows` of them a block. V is 8 to 16 bytes, see synthesis_epilogue.cu, or one channel.
//
// Estimate for half, 1024 x 1024 x 32, on an H200: 4.3 TB/s and 30 T instructions/s (of a lane), so 7 for each byte.
//   forward   6 bytes an element (u, y, next), 19 a pixel: 221 MB, 51 us; about 20 instructions an element, 46 fit
//   backward  6 bytes an element (dnext, y, du), 16 a pixel, sums 3 MB: 221 MB, 51 us; about 25 instructions, 46 fit
#pragma once

#include "synthesis_point.cuh"

namespace fastinv::cuda {

// How a launch cuts the work: by shapes and dtype alone.
struct SynthesisWalk {
  int lane_bits;    // lanes = 1 << lane_bits
  int steps;        // forward: how often a block takes its next rows * kPixels pixels
  int groups;       // backward: blocks side by side that share the channels
  int tiles;        // backward: sums per sample and channel
  int tile_pixels;  // backward
};

// Place of a pixel's channels in u, in units of C values: after a pixel shuffle, the four phases of a 2 x 2 block of
// pixels lie one after the other.
__host__ __device__ __forceinline__ int place_in_u(bool shuffled, int pixel, int width) {
  if (!shuffled) return pixel;
  const int y = pixel / width, x = pixel - y * width;
  return ((y / 2) * (width / 2) + x / 2) * 4 + y % 2 * 2 + x % 2;
}

template <class T, int V>
__device__ __forceinline__ Vec<T, V> load_or_zero(const T* address, bool inside) {
  if (inside) return load<V>(address);
  Vec<T, V> zeros;
#pragma unroll
  for (int i = 0; i < V; ++i) zeros.values[i] = from_compute<T>(compute_t<T>(0));
  return zeros;
}

template <class C>
__device__ __forceinline__ C load_noise(const SynthesisLayer& p, int64_t sample, int pixel, bool inside) {
  if (p.noise == nullptr || !inside) return C(0);
  return load<1>(static_cast<const C*>(p.noise) + sample * p.noise_stride + pixel).values[0];
}

// The sum over the lanes of a pixel, as far as they are in one warp.
template <class C>
__device__ __forceinline__ C sum_lanes(C value, int lanes) {
  for (int mask = min(lanes, 32) / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Threads of a block, and how many blocks the registers must leave room for: 20 to 24 warps with 32 (forward) or 64
// bytes of loads on their way in each thread. One channel a thread takes up to 1024 threads for a pixel.
template <int V>
constexpr int forward_threads = V == 1 ? kSynthesisMostChannels : 256;
template <int V>
constexpr int forward_blocks = V == 1 ? 1 : 3;
template <int V>
constexpr int backward_threads = V == 1 ? kSynthesisMostChannels : 128;
template <class T, int V, bool kRgb>
constexpr int backward_blocks = V == 1 ? 1 : (sizeof(T) == 2 && kRgb ? 5 : 6);

// grid (blocks over the pixels, samples). Dynamic shared memory with a picture: 3 values for each warp of each pixel,
// for two steps in turn.
template <class T, int V, bool kRgb, int kPixels>
__global__ void __launch_bounds__(forward_threads<V>, forward_blocks<V>)
    synthesis_epilogue_kernel(SynthesisEpilogueParams p, SynthesisConstants<compute_t<T>> k, SynthesisWalk walk) {
  using C = compute_t<T>;
  FASTINV_DYNAMIC_SHARED(C, shared);
  const int lanes = 1 << walk.lane_bits, rows = blockDim.x >> walk.lane_bits;
  const int lane = threadIdx.x & (lanes - 1), row = threadIdx.x >> walk.lane_bits;
  const int first = lane * V, pixels = p.height * p.width, step = rows * kPixels;
  const int64_t sample = blockIdx.y, sample_offset = sample * pixels * p.channels;
  const bool has_channels = first < p.channels, shuffled = p.form == Form::shuffled;
  const bool picture = kRgb && p.rgb_weight != nullptr;
  const int parts = max(1, lanes / 32);
  const T* u = static_cast<const T*>(p.u) + sample_offset;
  T* y = static_cast<T*>(p.y) + sample_offset;
  T* next = p.next == nullptr ? nullptr : static_cast<T*>(p.next) + sample_offset;

  ForwardChannels<C, V> channels;
  load_operands<kRgb>(channels, p, sample, first, has_channels);

  for (int s = 0; s < walk.steps; ++s) {
    const int base = (blockIdx.x * walk.steps + s) * step;
    if (base >= pixels) break;
    C* parts_of_rgb = shared + (s % 2) * (step * parts * 3);  // [pixel of the step][warp of the pixel][3]
    Vec<T, V> values[kPixels];
    C noise[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = base + i * rows + row;
      const bool inside = has_channels && pixel < pixels;
      const int place = inside ? place_in_u(shuffled, pixel, p.width) : 0;
      values[i] = load_or_zero<T, V>(u + place * p.channels + first, inside);
      noise[i] = k.strength * load_noise<C>(p, sample, pixel, inside);
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = base + i * rows + row;
      const int offset = pixel * p.channels + first;
      C wide[V], rgb[3] = {C(0), C(0), C(0)};
#pragma unroll
      for (int c = 0; c < V; ++c) wide[c] = to_compute(values[i].values[c]);
      Vec<T, V> y_values, next_values;
      forward_point<kRgb>(wide, noise[i], channels, k, y_values, next_values, rgb);
      if (has_channels && pixel < pixels) {
        store(y + offset, y_values);
        if (next != nullptr) store(next + offset, next_values);
      }
      if (picture) {
#pragma unroll
        for (int j = 0; j < 3; ++j) rgb[j] = sum_lanes(rgb[j], lanes);
        if (lane % 32 == 0) {
          C* part = parts_of_rgb + ((i * rows + row) * parts + lane / 32) * 3;
          for (int j = 0; j < 3; ++j) part[j] = rgb[j];
        }
      }
    }
    if (picture) {
      block_barrier();  // one a step: who is two steps ahead has met the others in between
      for (int i = threadIdx.x; i < step && base + i < pixels; i += blockDim.x) {
        C sums[3] = {C(0), C(0), C(0)};
        for (int part = 0; part < parts; ++part) {
          for (int j = 0; j < 3; ++j) sums[j] += parts_of_rgb[(i * parts + part) * 3 + j];
        }
        const int row_of_image = (base + i) / p.width;
        write_picture(p, k, sample, row_of_image, base + i - row_of_image * p.width, sums);
      }
    }
  }
}

// V values into shared memory, 16 bytes at a time.
template <class C, int V>
__device__ __forceinline__ void store_all(C* address, const C (&values)[V]) {
  constexpr int width = V * sizeof(C) > 16 ? 16 / sizeof(C) : V;
#pragma unroll
  for (int i = 0; i < V; i += width) {
    Vec<C, width> part;
#pragma unroll
    for (int j = 0; j < width; ++j) part.values[j] = values[i + j];
    store(address + i, part);
  }
}

// What all channels of a pixel share, put into shared memory once for each tile.
template <class C>
struct alignas(4 * sizeof(C)) PixelTerms {
  C noise;       // times its strength
  C visible[3];  // see load_visible
};

// grid (tiles * groups, samples): a block makes the sums of one tile over its group of channels; one group where
// dnoise, a sum over all channels, is wanted. Dynamic shared memory: PixelTerms for each pixel of the tile, then 5 V
// values for each thread or, if that is more, one value for each warp of each pixel for dnoise.
template <class T, int V, bool kRgb, int kPixels>
__global__ void __launch_bounds__(backward_threads<V>, (backward_blocks<T, V, kRgb>))
    synthesis_epilogue_backward_kernel(SynthesisEpilogueBackwardParams p, SynthesisConstants<compute_t<T>> k,
                                       SynthesisWalk walk) {
  using C = compute_t<T>;
  FASTINV_DYNAMIC_SHARED(C, shared);
  const int lanes = 1 << walk.lane_bits, rows = blockDim.x >> walk.lane_bits;
  const int lane = threadIdx.x & (lanes - 1), row = threadIdx.x >> walk.lane_bits;
  const int tile = blockIdx.x / walk.groups, group = blockIdx.x - tile * walk.groups;
  const int group_channels = lanes * V, first = group * group_channels + lane * V;
  const int pixels = p.height * p.width;
  const int begin = tile * walk.tile_pixels, count = min(walk.tile_pixels, pixels - begin);
  const int64_t sample = blockIdx.y;
  const int64_t tile_offset = (sample * pixels + begin) * p.channels + first;
  const bool has_channels = first < p.channels;
  const int own = has_channels ? count : 0;  // pixels for which this thread has channels
  const T* y = static_cast<const T*>(p.y) + tile_offset;
  const T* dnext = p.dnext == nullptr ? y : static_cast<const T*>(p.dnext) + tile_offset;  // not read if null
  T* du = static_cast<T*>(p.du) + sample * pixels * p.channels + first;

  const int step = rows * kPixels, steps = (count + step - 1) / step;
  Vec<T, V> dnext_values[kPixels], y_values[kPixels];
  const auto fetch = [&](int s) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = s * step + i * rows + row;
      dnext_values[i] = load_or_zero<T, V>(dnext + pixel * p.channels, pixel < own && p.dnext != nullptr);
      y_values[i] = load_or_zero<T, V>(y + pixel * p.channels, pixel < own);
    }
  };
  fetch(0);  // on its way while the rest is prepared

  PixelTerms<C>* terms = reinterpret_cast<PixelTerms<C>*>(shared);
  for (int i = threadIdx.x; i < steps * step; i += blockDim.x) {
    PixelTerms<C> term = {};
    if (p.noise != nullptr && i < count) {
      const C* noise = static_cast<const C*>(p.noise) + sample * p.noise_stride + begin + i;
      term.noise = k.strength * load<1>(noise).values[0];
    }
    if (kRgb && p.dimage != nullptr && i < count) load_visible(term.visible, p, k, sample, begin + i);
    terms[i] = term;
  }
  shared += steps * step * (sizeof(PixelTerms<C>) / sizeof(C));

  BackwardChannels<C, V> channels;
  load_operands<kRgb>(channels, p, sample, first, has_channels);
  C sums[kSynthesisSums][V] = {};
  block_barrier();

  const int parts = max(1, lanes / 32);
  for (int s = 0; s < steps; ++s) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = s * step + i * rows + row;
      const PixelTerms<C> term = terms[pixel];
      C dv[V];
      backward_point<kRgb, true>(dnext_values[i], y_values[i], term.visible, term.noise, channels, k, sums, dv);
      if (pixel < own) {
        Vec<T, V> du_values;
#pragma unroll
        for (int c = 0; c < V; ++c) du_values.values[c] = from_compute<T>(dv[c] * channels.d[c]);
        store(du + place_in_u(p.form == Form::shuffled, begin + pixel, p.width) * p.channels, du_values);
      }
      if (p.dnoise != nullptr) {
        C sum = C(0);
#pragma unroll
        for (int c = 0; c < V; ++c) sum += dv[c];
        sum = sum_lanes(sum, lanes);
        if (lane % 32 == 0 && pixel < count) shared[pixel * parts + lane / 32] = sum;
      }
    }
    fetch(s + 1);
  }

  if (p.dnoise != nullptr) {
    block_barrier();
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      C sum = C(0);
      for (int part = 0; part < parts; ++part) sum += shared[i * parts + part];
      store(static_cast<C*>(p.dnoise) + sample * pixels + begin + i, Vec<C, 1>{{k.strength * sum}});
    }
    block_barrier();
  }

  // The rows' sums, one after the other: [row][plane][channel of the group].
#pragma unroll
  for (int plane = 0; plane < kSynthesisSums; ++plane) {
    store_all(shared + (row * kSynthesisSums + plane) * group_channels + lane * V, sums[plane]);
  }
  block_barrier();
  C* out = static_cast<C*>(p.sums) + (sample * walk.tiles + tile) * kSynthesisSums * p.channels;
  for (int i = threadIdx.x; i < kSynthesisSums * group_channels; i += blockDim.x) {
    const int plane = i / group_channels, channel = group * group_channels + i % group_channels;
    C sum = C(0);
    for (int r = 0; r < rows; ++r) sum += shared[r * kSynthesisSums * group_channels + i];
    if (channel < p.channels) store(out + plane * p.channels + channel, Vec<C, 1>{{sum}});
  }
}

}  // namespace fastinv::cuda
