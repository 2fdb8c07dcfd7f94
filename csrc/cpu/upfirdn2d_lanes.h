// upfirdn2d by a separable filter of 4 x 4 taps for NHWC pictures, up 1, up 2 or down 2 along both axes: one pass along
// an output row. Columns are summed down as they are reached and stay in registers for all outputs that they are part
// of, so nothing is written but the result.
#pragma once

#include <utility>

#include "lanes.h"
#include "upfirdn2d.h"

namespace fastinv::FASTINV_ISA {
namespace {

enum class Sampling { same, up2, down2, other };

// Whether the axis is one that `RowOfPixels` knows.
inline Sampling sampling_of(const UpfirdnAxis& axis) {
  if (axis.phases == 1 && axis.count[0] == 4 && axis.step <= 2)
    return axis.step == 1 ? Sampling::same : Sampling::down2;
  const bool up2 = axis.phases == 2 && axis.step == 1 && axis.count[0] == 2 && axis.count[1] == 2;
  return up2 ? Sampling::up2 : Sampling::other;
}

// K vectors of channels beside each other, at all columns of one output row.
template <class T, Sampling sampling, int K, bool streamed = false>
struct RowOfPixels {
  using C = compute_t<T>;
  using V = Lanes<C>;
  static constexpr int64_t kTaps = sampling == Sampling::up2 ? 2 : 4;
  struct Column {
    V v[K];
  };
  const T* rows;  // the first of the kTaps input rows, at the first of the channels
  T* out;
  int64_t row_step, channels, size;
  const C* vertical;

  FASTINV_INLINE Column column(int64_t x) const {
    Column sum{};
    if (x < 0 || x >= size) return sum;
    const T* at = rows + x * channels;
#pragma GCC unroll 4
    for (int64_t k = 0; k < K; ++k) {
      V v = vertical[0] * load_lanes(at + k * kLanes<T>);
#pragma GCC unroll 4
      for (int64_t t = 1; t < kTaps; ++t) v += vertical[t] * load_lanes(at + t * row_step + k * kLanes<T>);
      sum.v[k] = v;
    }
    return sum;
  }
  FASTINV_INLINE void put(int64_t o, int64_t k, V v) const {
    store_lanes<T, streamed>(out + o * channels + k * kLanes<T>, narrowed<T>(v));
  }
  FASTINV_INLINE void four(int64_t o, const C* w, const Column& a, const Column& b, const Column& c,
                           const Column& d) const {
#pragma GCC unroll 4
    for (int64_t k = 0; k < K; ++k) put(o, k, w[0] * a.v[k] + w[1] * b.v[k] + w[2] * c.v[k] + w[3] * d.v[k]);
  }
  FASTINV_INLINE void two(int64_t o, const C* w, const Column& a, const Column& b) const {
#pragma GCC unroll 4
    for (int64_t k = 0; k < K; ++k) put(o, k, w[0] * a.v[k] + w[1] * b.v[k]);
  }

  void run(const UpfirdnAxis& x, const C* weight) const {
    int64_t at = x.first[0], o = 0;
    if constexpr (sampling == Sampling::same) {
      Column a = column(at), b = column(at + 1), c = column(at + 2), d;
      for (; o + 4 <= x.out; o += 4, at += 4) {  // the columns change their names instead of their registers
        four(o, weight, a, b, c, d = column(at + 3));
        four(o + 1, weight, b, c, d, a = column(at + 4));
        four(o + 2, weight, c, d, a, b = column(at + 5));
        four(o + 3, weight, d, a, b, c = column(at + 6));
      }
      for (; o < x.out; ++o, ++at) four(o, weight, column(at), column(at + 1), column(at + 2), column(at + 3));
    } else if constexpr (sampling == Sampling::down2) {
      Column a = column(at), b = column(at + 1), c, d;
      for (; o + 2 <= x.out; o += 2, at += 4) {
        four(o, weight, a, b, c = column(at + 2), d = column(at + 3));
        four(o + 1, weight, c, d, a = column(at + 4), b = column(at + 5));
      }
      if (o < x.out) four(o, weight, a, b, column(at + 2), column(at + 3));
    } else if (x.out == 1) {
      two(0, weight, column(at), column(at + 1));
    } else {
      const C* odd = weight + x.taps;
      const int64_t ahead = x.first[1] - at;  // of the odd outputs: 0 or 1
      Column a = column(at), b = column(at + 1), c;
      for (; o + 2 <= x.out; o += 2, ++at) {
        c = column(at + 2);
        two(o, weight, a, b);
        two(o + 1, odd, ahead ? b : a, ahead ? c : b);
        a = b;
        b = c;
      }
      if (o < x.out) two(o, weight, a, b);
    }
  }
};

// One output row whose taps are all inside of the picture. There are at least as many channels as lanes; the last
// vectors overlap those before them where the channels are no multiple.
template <class T, Sampling sampling, bool streamed>
void row_of_pixels(const UpfirdnParams<T>& p, const T* rows, const compute_t<T>* vertical, T* out) {
  constexpr int wide = kLaneBytes == 64 ? 4 : 2;  // what the registers hold
  const int64_t row_step = p.x.size * p.channels;
  auto run = [&](auto count, int64_t c) {
    RowOfPixels<T, sampling, count, streamed>{rows + c, out + c, row_step, p.channels, p.x.size, vertical}.run(p.x,
                                                                                                               p.row);
    return count * kLanes<T>;
  };
  for (int64_t c = 0; c < p.channels;) {
    const int64_t left = p.channels - c;
    if (left >= wide * kLanes<T>) {
      c += run(std::integral_constant<int, wide>(), c);
    } else if (left >= 2 * kLanes<T>) {
      c += run(std::integral_constant<int, 2>(), c);
    } else {
      c += run(std::integral_constant<int, 1>(), left < kLanes<T> ? p.channels - kLanes<T> : c);
    }
  }
}

template <class V, size_t... lane>
FASTINV_INLINE V even_lanes(V a, V b, std::index_sequence<lane...>) {
  return FASTINV_SHUFFLE(a, b, (2 * lane)...);
}
template <class V, size_t... lane>
FASTINV_INLINE V odd_lanes(V a, V b, std::index_sequence<lane...>) {
  return FASTINV_SHUFFLE(a, b, (2 * lane + 1)...);
}

template <class V, size_t... lane>
FASTINV_INLINE V low_zip(V a, V b, std::index_sequence<lane...>) {
  return FASTINV_SHUFFLE(a, b, (lane % 2 * sizeof...(lane) + lane / 2)...);
}
template <class V, size_t... lane>
FASTINV_INLINE V high_zip(V a, V b, std::index_sequence<lane...>) {
  return FASTINV_SHUFFLE(a, b, (lane % 2 * sizeof...(lane) + lane / 2 + sizeof...(lane) / 2)...);
}

// out[i] = (add ? out[i] : 0) + value
template <bool add, bool streamed, class T, class C>
FASTINV_INLINE void put_lanes(T* out, Lanes<C> value) {
  store_lanes<T, streamed>(out, narrowed<T>(add ? load_lanes(out) + value : value));
}
template <bool add, class T, class C>
FASTINV_INLINE void put_one(T& out, C value) {
  store(out, add ? load(out) + value : value);
}

// out[i] = (add ? out[i] : 0) + sum over 4 taps of weight[t] * in[i + t], along a row of one channel.
template <bool add, bool streamed, class T, class C>
void every_sample(T* out, const C* in, const C* weight, int64_t n) {
  const C w[4] = {weight[0], weight[1], weight[2], weight[3]};
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    const C* at = in + i;
    const Lanes<C> first = w[0] * load_lanes(at) + w[1] * load_lanes(at + 1);
    put_lanes<add, streamed, T, C>(out + i, first + w[2] * load_lanes(at + 2) + w[3] * load_lanes(at + 3));
  }
  for (; i < n; ++i) put_one<add>(out[i], w[0] * in[i] + w[1] * in[i + 1] + w[2] * in[i + 2] + w[3] * in[i + 3]);
}

// The same for in[2 * i + t].
template <bool add, bool streamed, class T, class C>
void every_second(T* out, const C* in, const C* weight, int64_t n) {
  constexpr int64_t lanes = kLanes<T>;
  const std::make_index_sequence<lanes> all;
  const C w[4] = {weight[0], weight[1], weight[2], weight[3]};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const C* at = in + 2 * i;
    const Lanes<C> a = load_lanes(at), b = load_lanes(at + lanes);
    const Lanes<C> c = load_lanes(at + 2), d = load_lanes(at + 2 + lanes);
    const Lanes<C> first = w[0] * even_lanes(a, b, all) + w[1] * odd_lanes(a, b, all);
    put_lanes<add, streamed, T, C>(out + i, first + w[2] * even_lanes(c, d, all) + w[3] * odd_lanes(c, d, all));
  }
  for (; i < n; ++i) {
    const C* at = in + 2 * i;
    put_one<add>(out[i], w[0] * at[0] + w[1] * at[1] + w[2] * at[2] + w[3] * at[3]);
  }
}

// The same for an up-sampling by 2 with two taps in each phase: outputs 2 * i from even[i + t] and 2 * i + 1 from
// odd[i + t], whose weights are `taps` further on.
template <bool add, bool streamed, class T, class C>
void pairs(T* out, const C* even, const C* odd, const C* weight, int64_t taps, int64_t n) {
  constexpr int64_t lanes = kLanes<T>;
  const std::make_index_sequence<lanes> all;
  const C e0 = weight[0], e1 = weight[1], o0 = weight[taps], o1 = weight[taps + 1];
  int64_t i = 0;
  for (; 2 * (i + lanes) <= n; i += lanes) {
    const Lanes<C> a = e0 * load_lanes(even + i) + e1 * load_lanes(even + i + 1);
    const Lanes<C> b = o0 * load_lanes(odd + i) + o1 * load_lanes(odd + i + 1);
    put_lanes<add, streamed, T, C>(out + 2 * i, low_zip(a, b, all));
    put_lanes<add, streamed, T, C>(out + 2 * i + lanes, high_zip(a, b, all));
  }
  for (; 2 * i < n; ++i) {
    put_one<add>(out[2 * i], e0 * even[i] + e1 * even[i + 1]);
    if (2 * i + 1 < n) put_one<add>(out[2 * i + 1], o0 * odd[i] + o1 * odd[i + 1]);
  }
}

}  // namespace
}  // namespace fastinv::FASTINV_ISA
