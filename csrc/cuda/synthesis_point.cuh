// The math of synthesis_epilogue and its backward for one pixel and V channels of it, whatever the form: formulas at
// the head of fastinv/ops/synthesis.py. T is the feature maps' type, C = compute_t<T>.
#pragma once

#include <limits>

#include "device.cuh"
#include "synthesis_epilogue.h"

namespace fastinv::cuda {

// The layer's numbers in the compute type: converted here on the host, as some devices are slow with doubles.
template <class C>
struct SynthesisConstants {
  C strength, alpha, gain;
  C clamp, rgb_clamp;  // NaN for none: nothing compares to it
  C taps[4];
  bool clamped;
};

template <class C>
SynthesisConstants<C> synthesis_constants(const SynthesisLayer& p) {
  SynthesisConstants<C> k;
  k.strength = static_cast<C>(p.strength);
  k.alpha = static_cast<C>(p.alpha);
  k.gain = static_cast<C>(p.gain);
  k.clamped = p.clamp >= 0;
  k.clamp = k.clamped ? static_cast<C>(p.clamp) : std::numeric_limits<C>::quiet_NaN();
  k.rgb_clamp = p.rgb_clamp >= 0 ? static_cast<C>(p.rgb_clamp) : std::numeric_limits<C>::quiet_NaN();
  for (int i = 0; i < 4; ++i) k.taps[i] = static_cast<C>(p.taps[i]);
  return k;
}

// --- operands of V channels from `first` on, kept in registers over many pixels
// ----------------------------------------- One at a time: slices of a row of styles may start anywhere.
template <int V, class C>
__device__ __forceinline__ void load_channels(C (&values)[V], const void* row, int64_t offset, C absent) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    values[i] = row != nullptr ? load<1>(static_cast<const C*>(row) + offset + i).values[0] : absent;
  }
}

template <class C, int V>
struct ForwardChannels {
  C d[V], bias[V], next[V];
  C rgb[3][V];  // rgb_weight * rgb_styles
};

// inside: whether the thread has channels at all; without, y and the products with rgb are zero.
template <bool kRgb, class C, int V>
__device__ __forceinline__ void load_operands(ForwardChannels<C, V>& channels, const SynthesisEpilogueParams& p,
                                              int64_t sample, int first, bool inside) {
  load_channels(channels.d, inside ? p.d : nullptr, sample * p.d_stride + first, C(1));
  load_channels(channels.bias, inside ? p.bias : nullptr, first, C(0));
  load_channels(channels.next, inside ? p.next_styles : nullptr, sample * p.next_stride + first, C(1));
  if constexpr (kRgb) {
    C styles[V];
    load_channels(styles, inside ? p.rgb_styles : nullptr, sample * p.rgb_stride + first, C(0));
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      load_channels(channels.rgb[k], inside ? p.rgb_weight : nullptr, int64_t(k) * p.channels + first, C(0));
#pragma unroll
      for (int i = 0; i < V; ++i) channels.rgb[k][i] *= styles[i];
    }
  }
}

template <class C, int V>
struct BackwardChannels {
  C d[V], next[V];
  C rgb_styles[V], rgb_weight[3][V];
};

template <bool kRgb, class C, int V>
__device__ __forceinline__ void load_operands(BackwardChannels<C, V>& channels,
                                              const SynthesisEpilogueBackwardParams& p, int64_t sample, int first,
                                              bool inside) {
  load_channels(channels.d, inside ? p.d : nullptr, sample * p.d_stride + first, C(1));
  load_channels(channels.next, inside ? p.next_styles : nullptr, sample * p.next_stride + first, C(1));
  if constexpr (kRgb) {
    load_channels(channels.rgb_styles, inside ? p.rgb_styles : nullptr, sample * p.rgb_stride + first, C(0));
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      load_channels(channels.rgb_weight[k], inside ? p.rgb_weight : nullptr, int64_t(k) * p.channels + first, C(0));
    }
  }
}

// --- forward
// ------------------------------------------------------------------------------------------------------------
// Comparisons keep a NaN, as torch's clamp does, and leave the value alone where the bound is NaN.
template <class C>
__device__ __forceinline__ C clamped(C value, C bound) {
  return value > bound ? bound : value < -bound ? -bound : value;
}

// u: the convolution's result (after the FIR filter, if any); noise: strength * noise of the pixel. Adds to rgb the
// part of these channels in the picture.
template <bool kRgb, class T, int V, class C>
__device__ __forceinline__ void forward_point(const C (&u)[V], C noise, const ForwardChannels<C, V>& channels,
                                              const SynthesisConstants<C>& k, Vec<T, V>& y, Vec<T, V>& next,
                                              C (&rgb)[3]) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const C v = u[i] * channels.d[i] + noise + channels.bias[i];
    y.values[i] = from_compute<T>(clamped((v > C(0) ? v : v * k.alpha) * k.gain, k.clamp));
    const C kept = to_compute(y.values[i]);  // what follows sees the rounded value, as the backward pass does
    next.values[i] = from_compute<T>(kept * channels.next[i]);
    if constexpr (kRgb) {
#pragma unroll
      for (int j = 0; j < 3; ++j) rgb[j] += kept * channels.rgb[j][i];
    }
  }
}

// One axis of the upsampling by two: the output at x is taps[0] * in[low] + taps[1] * in[low + 1], zero outside.
template <class C>
struct UpsampledAxis {
  int low;
  C taps[2];
};
template <class C>
__device__ __forceinline__ UpsampledAxis<C> upsampled_axis(int x, const C (&taps)[4]) {
  const bool odd = x % 2 != 0;
  return {x / 2 - (odd ? 0 : 1), {odd ? taps[1] : taps[0], odd ? taps[3] : taps[2]}};
}

// Finishes and writes the three colours of pixel (y, x), whose sums over the channels are given: bias, clamp, picture
// of the resolution before.
template <class C>
__device__ __forceinline__ void write_picture(const SynthesisEpilogueParams& p, const SynthesisConstants<C>& k,
                                              int64_t sample, int y, int x, const C (&sums)[3]) {
  const int plane = p.height * p.width, pixel = y * p.width + x;
  const int height = p.height / 2, width = p.width / 2;
  const int64_t first = sample * 3 * plane + pixel;
  const UpsampledAxis<C> rows = upsampled_axis(y, k.taps), columns = upsampled_axis(x, k.taps);
#pragma unroll
  for (int j = 0; j < 3; ++j) {
    C value = clamped(sums[j] + load<1>(static_cast<const C*>(p.rgb_bias) + j).values[0], k.rgb_clamp);
    if (p.rgb != nullptr) store<1>(static_cast<C*>(p.rgb) + first + j * plane, Vec<C, 1>{{value}});
    if (p.previous != nullptr) {
      const C* previous = static_cast<const C*>(p.previous) + (sample * 3 + j) * (height * width);
      C total = C(0);
#pragma unroll
      for (int a = 0; a < 2; ++a) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const int row = rows.low + a, column = columns.low + b;
          const bool inside = row >= 0 && row < height && column >= 0 && column < width;
          if (inside) total += rows.taps[a] * columns.taps[b] * load<1>(previous + row * width + column).values[0];
        }
      }
      value += total;
    }
    store<1>(static_cast<C*>(p.image) + first + j * plane, Vec<C, 1>{{value}});
  }
}

// --- backward
// ----------------------------------------------------------------------------------------------------------- The
// picture's gradient at a pixel of a sample: zero where its part was clamped.
template <class C>
__device__ __forceinline__ void load_visible(C (&visible)[3], const SynthesisEpilogueBackwardParams& p,
                                             const SynthesisConstants<C>& k, int64_t sample, int pixel) {
  const int plane = p.height * p.width;
  const int64_t first = sample * 3 * plane + pixel;
#pragma unroll
  for (int j = 0; j < 3; ++j) {
    visible[j] = load<1>(static_cast<const C*>(p.dimage) + first + j * plane).values[0];
    if (p.rgb != nullptr) {
      const C rgb = load<1>(static_cast<const C*>(p.rgb) + first + j * plane).values[0];
      if (fabs(rgb) >= k.rgb_clamp) visible[j] = C(0);
    }
  }
}

template <class C, int V>
using ChannelSums = C[kSynthesisSums][V];

// dnext, y, visible (of load_visible) and strength * noise of a pixel -> dv. With kSums its terms are added to the
// sums.
template <bool kRgb, bool kSums, class T, int V, class C>
__device__ __forceinline__ void backward_point(const Vec<T, V>& dnext, const Vec<T, V>& y, const C (&visible)[3],
                                               C noise, const BackwardChannels<C, V>& channels,
                                               const SynthesisConstants<C>& k, ChannelSums<C, V>& sums, C (&dv)[V]) {
  const C slope_below = k.alpha * k.gain;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const C g = to_compute(dnext.values[i]), kept = to_compute(y.values[i]);
    C dy = g * channels.next[i];
    if constexpr (kSums) sums[0][i] += g * kept;
    if constexpr (kRgb) {
      const C q = channels.rgb_weight[0][i] * visible[0] + channels.rgb_weight[1][i] * visible[1] +
                  channels.rgb_weight[2][i] * visible[2];
      dy += q * channels.rgb_styles[i];
      if constexpr (kSums) sums[1][i] += q * kept;
    }
    dy = fabs(kept) >= k.clamp ? C(0) : dy;
    dv[i] = dy * (kept > C(0) ? k.gain : slope_below);
    if constexpr (kSums) {
      sums[2][i] += dy * kept;
      sums[3][i] += dv[i] * noise;
      sums[4][i] += dv[i];
    }
  }
}

}  // namespace fastinv::cuda
