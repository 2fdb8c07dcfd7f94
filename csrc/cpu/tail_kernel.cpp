// The end of a frozen layer on blocks of pixels, see tail.h. Channels run in vectors. Forward, a few pixels share the
// channels' operands and hold their parts of the picture in registers; backward, a vector of channels holds its
// operands and its five sums in registers over a run of at most kRun pixels, then adds the sums to those of the band in
// double.
#include "lanes.h"
#include "tail.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr int64_t kRun = 32;   // pixels summed in the compute type
constexpr int64_t kGroup = 4;  // pixels that share the loads of their operands, forward
constexpr int64_t kSums = 5;

// The operands of a sample as tail_begin lays them out, rows of whole vectors: zeros stand after the last channel.
template <class T>
struct Operands {
  using C = compute_t<T>;
  int64_t row;  // elements
  C *d, *bias, *next_styles, *rgb_styles, *rgb_weight;
  double* totals;  // [5, row], where sums are wanted

  Operands(const Tail& tail, void* scratch)
      : row((tail.layer().channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        d(static_cast<C*>(scratch)),
        bias(d + row),
        next_styles(bias),
        rgb_styles(d + 2 * row),
        rgb_weight(d + 3 * row),
        totals(reinterpret_cast<double*>(d + 6 * row)) {}

  static int64_t bytes(const Tail& tail) {
    const Operands o(tail, nullptr);
    return 6 * o.row * sizeof(C) + (tail.backward ? kSums * o.row * sizeof(double) : 0);
  }
};

template <class C>
void set_row(C* row, int64_t size, const void* from, int64_t count, C otherwise) {
  for (int64_t i = 0; i < count; ++i) row[i] = from ? static_cast<const C*>(from)[i] : otherwise;
  for (int64_t i = count; i < size; ++i) row[i] = C(0);
}

template <class C>
const C* sample_row(const void* base, int64_t stride, int64_t sample) {
  return base ? static_cast<const C*>(base) + sample * stride : nullptr;
}

template <class C>
struct Shape {  // of the activation, in the compute type
  C above, below, clamp;

  explicit Shape(const TailLayer& p)
      : above(C(p.gain)), below(C(p.alpha * p.gain)), clamp(p.clamp < 0 ? C(__builtin_inf()) : C(p.clamp)) {}
};

// A vector of some pixels whose channels end within it: moved to where whole vectors may be read and written.
template <class T>
void gather(T* to, const T* from, int64_t pixel_stride, int64_t pixels, int64_t channels) {
  for (int64_t i = 0; i < pixels; ++i) {
    std::memset(to + i * kLanes<T>, 0, kLanes<T> * sizeof(T));
    std::memcpy(to + i * kLanes<T>, from + i * pixel_stride, channels * sizeof(T));
  }
}
template <class T>
void scatter(T* to, int64_t pixel_stride, const T* from, int64_t pixels, int64_t channels) {
  for (int64_t i = 0; i < pixels; ++i) std::memcpy(to + i * pixel_stride, from + i * kLanes<T>, channels * sizeof(T));
}

// P neighbouring pixels; their sums over the channels, the parts of the picture's colours, go to colours[3].
template <bool unit, bool with_rgb, int P, class V, class T>
FASTINV_INLINE void forward_pixels(const Operands<T>& o, const Shape<compute_t<T>>& shape, int64_t channels,
                                   const V* values, int64_t pixel_stride, const compute_t<T>* z, T* y, int64_t y_stride,
                                   Four<compute_t<T>>* colours) {
  using C = compute_t<T>;
  using L = Lanes<C>;
  constexpr int64_t lanes = kLanes<T>;
  const L above = lanes_of(shape.above), below = lanes_of(shape.below);
  const L highest = lanes_of(shape.clamp), lowest = -highest;
  L sums[3][4] = {};
  V some_values[P * lanes];
  T some_y[P * lanes];
  for (int64_t c = 0; c < channels; c += lanes) {
    const bool whole = c + lanes <= channels;
    const V* from = values + c;
    T* to = y + c;
    int64_t from_stride = pixel_stride, to_stride = y_stride;
    if (__builtin_expect(!whole, 0)) {
      gather(some_values, from, pixel_stride, P, channels - c);
      from = some_values, to = some_y, from_stride = to_stride = lanes;
    }
    const L d = load_lanes(o.d + c), bias = load_lanes(o.bias + c);
    L weight[3];
    if constexpr (with_rgb) {
      for (int k = 0; k < 3; ++k) weight[k] = load_lanes(o.rgb_weight + k * o.row + c);
    }
    for (int p = 0; p < P; ++p) {
      __builtin_prefetch(from + (p + 4) * from_stride, 1);
      const L v = load_lanes(from + p * from_stride) * d + (bias + z[p]);
      L a = v * (v > 0 ? above : below);
      a = highest < a ? highest : a;
      a = lowest > a ? lowest : a;
      const Lanes<T> stored = narrowed<T, unit>(a);
      store_stored(to + p * to_stride, stored);
      if constexpr (with_rgb) {
        if constexpr (sizeof(T) == 2) a = widened(stored);
        for (int k = 0; k < 3; ++k) sums[k][p] += a * weight[k];
      }
    }
    if (__builtin_expect(!whole, 0)) scatter(y + c, y_stride, some_y, P, channels - c);
  }
  if constexpr (with_rgb) {
    for (int k = 0; k < 3; ++k) sums_of_lanes<C>(sums[k], colours[k]);
  }
}

template <bool unit, bool with_rgb, class V, class T>
void forward_block(const TailForward& p, const Operands<T>& o, const TailPlaces<V, T>& b) {
  using C = compute_t<T>;
  const Shape<C> shape(p);
  const C strength = C(p.strength), rgb_clamp = C(p.rgb_clamp);
  const int64_t plane = p.height * p.width;
  const C* noise = sample_row<C>(p.noise, p.noise_stride, b.sample);
  for (int64_t i = 0; i < b.rows; ++i) {
    const int64_t first = (b.row + i) * p.width + b.column;
    for (int64_t j = 0; j < b.columns;) {
      const V* values = b.values + i * b.row_stride + j * b.pixel_stride;
      T* y = b.result + i * b.result_row_stride + j * b.result_pixel_stride;
      const bool whole = b.columns - j >= kGroup;
      C z[kGroup] = {};
      Four<C> colours[3];
      if (whole) {
        if (noise) {
          for (int64_t at = 0; at < kGroup; ++at) z[at] = noise[first + j + at] * strength;
        }
        forward_pixels<unit, with_rgb, kGroup>(o, shape, p.channels, values, b.pixel_stride, z, y,
                                               b.result_pixel_stride, colours);
      } else {
        if (noise) z[0] = noise[first + j] * strength;
        forward_pixels<unit, with_rgb, 1>(o, shape, p.channels, values, b.pixel_stride, z, y, b.result_pixel_stride,
                                          colours);
      }
      if constexpr (with_rgb) {
        for (int64_t k = 0; k < 3; ++k) {
          const int64_t to = (b.sample * 3 + k) * plane + first + j;
          const int64_t size = whole ? sizeof(Four<C>) : sizeof(C);
          C* picture = static_cast<C*>(p.picture) + to;
          Four<C> value = colours[k] + static_cast<const C*>(p.rgb_bias)[k];
          if (p.rgb_clamp >= 0) {
            value = value > rgb_clamp ? Four<C>{} + rgb_clamp : value;
            value = value < -rgb_clamp ? Four<C>{} - rgb_clamp : value;
            std::memcpy(static_cast<C*>(p.rgb) + to, &value, size);
          }
          if (whole) {
            Four<C> sum;
            std::memcpy(&sum, picture, sizeof sum);
            sum += value;
            std::memcpy(picture, &sum, sizeof sum);
          } else {
            *picture += value[0];
          }
        }
      }
      j += whole ? kGroup : 1;
    }
  }
}

// At most kRun pixels, backward.
template <class V, class O, class T>
struct Run {
  using C = compute_t<T>;
  int64_t rows, columns;
  const V* values;
  int64_t row_stride, pixel_stride;
  const T* y;
  int64_t y_row_stride, y_pixel_stride;
  O* du;  // or null
  int64_t du_row_stride, du_pixel_stride;
  const C* noise;  // read at row * noise_row + column * noise_step
  int64_t noise_row, noise_step;
  const C* image[3];  // read at row * image_row + column
  int64_t image_row;
  Lanes<C>* dnoise;  // or null; is added to
};

// `count` vectors of channels from c on, or, if `whole` is not set, the last channels of all, fewer than a vector.
template <bool unit, bool with_values, bool with_rgb, bool with_sums, bool whole, int count, class V, class O, class T>
FASTINV_INLINE void backward_channels(const Operands<T>& o, const Shape<compute_t<T>>& shape, int64_t channels,
                                      const Run<V, O, T>& r, int64_t c) {
  using C = compute_t<T>;
  using L = Lanes<C>;
  constexpr int64_t lanes = kLanes<T>;
  const L above = lanes_of(shape.above), below = lanes_of(shape.below), clamp = lanes_of(shape.clamp);
  constexpr int64_t copied = whole ? 1 : kRun * lanes;
  V some_values[copied];
  T some_y[copied];
  O some_du[copied];
  const V* values = with_values ? r.values + c : nullptr;
  const T* y = r.y + c;
  O* du = r.du ? r.du + c : nullptr;
  int64_t v_row = r.row_stride, v_pixel = r.pixel_stride, y_row = r.y_row_stride, y_pixel = r.y_pixel_stride;
  int64_t du_row = r.du_row_stride, du_pixel = r.du_pixel_stride;
  if constexpr (!whole) {
    const int64_t row = r.columns * lanes;
    for (int64_t i = 0; i < r.rows; ++i) {
      if (with_values) gather(some_values + i * row, values + i * v_row, v_pixel, r.columns, channels - c);
      gather(some_y + i * row, y + i * y_row, y_pixel, r.columns, channels - c);
    }
    values = some_values, y = some_y, du = du ? some_du : nullptr;
    v_row = y_row = du_row = row, v_pixel = y_pixel = du_pixel = lanes;
  }
  L d[count], next_styles[count], rgb_styles[count], weight[3][count], sums[count][kSums] = {};
  for (int g = 0; g < count; ++g) {
    const int64_t at = c + g * lanes;
    d[g] = load_lanes(o.d + at), next_styles[g] = load_lanes(o.next_styles + at);
    rgb_styles[g] = load_lanes(o.rgb_styles + at);
    for (int k = 0; k < 3; ++k) weight[k][g] = load_lanes(o.rgb_weight + k * o.row + at);
  }
  L* noise_sum = r.dnoise;
  const int64_t ahead = r.columns;
  for (int64_t i = 0; i < r.rows; ++i) {
    const V* from = values + i * v_row;
    const T* kept = y + i * y_row;
    O* to = du + i * du_row;
    const C* noise = r.noise + i * r.noise_row;
    for (int64_t j = 0; j < r.columns; ++j) {
#pragma GCC unroll 4
      for (int g = 0; g < count; ++g) {
        const L a = load_lanes(kept + g * lanes);
        __builtin_prefetch(kept + ahead * y_pixel + g * lanes);
        if (with_values) __builtin_prefetch(from + ahead * v_pixel + g * lanes);
        __builtin_prefetch(to + ahead * du_pixel + g * lanes, 1);
        L dy = {};
        if constexpr (with_values) {
          const L gradient = load_lanes(from + g * lanes);
          if constexpr (with_sums) sums[g][0] += gradient * a;
          dy = gradient * next_styles[g];
        }
        if constexpr (with_rgb) {
          const int64_t at = i * r.image_row + j;
          const L q = weight[0][g] * r.image[0][at] + weight[1][g] * r.image[1][at] + weight[2][g] * r.image[2][at];
          if constexpr (with_sums) sums[g][1] += q * a;
          dy += q * rgb_styles[g];
        }
        dy = magnitude(a) < clamp ? dy : L{};
        const L dv = dy * (a > 0 ? above : below);
        if constexpr (with_sums) {
          sums[g][2] += dy * a;
          sums[g][3] += dv * *noise;
          sums[g][4] += dv;
        }
        if (noise_sum) *noise_sum += dv;
        if (du) store_stored(to + g * lanes, narrowed<O, unit>(dv * d[g]));
      }
      if (noise_sum) ++noise_sum;
      from += v_pixel, kept += y_pixel, to += du_pixel, noise += r.noise_step;
    }
  }
  if constexpr (with_sums) {
    for (int g = 0; g < count; ++g) {
      for (int k = 0; k < kSums; ++k) add_lanes(o.totals + k * o.row + c + g * lanes, sums[g][k]);
    }
  }
  if constexpr (!whole) {
    if (!r.du) return;
    for (int64_t i = 0; i < r.rows; ++i) {
      scatter(r.du + c + i * r.du_row_stride, r.du_pixel_stride, some_du + i * du_row, r.columns, channels - c);
    }
  }
}

template <bool unit, bool with_values, bool with_rgb, bool with_sums, class V, class O, class T>
FASTINV_INLINE void backward_run(const Operands<T>& o, const Shape<compute_t<T>>& shape, int64_t channels,
                                 const Run<V, O, T>& r) {
  constexpr int64_t lanes = kLanes<T>;
  // Neighbouring lines of memory together, as many as there are registers for their sums.
  constexpr int together = kLaneBytes < 64 ? 1 : with_rgb ? 2 : 4;
  int64_t c = 0;
  for (; c + together * lanes <= channels; c += together * lanes) {
    backward_channels<unit, with_values, with_rgb, with_sums, true, together>(o, shape, channels, r, c);
  }
  for (; c + lanes <= channels; c += lanes) {
    backward_channels<unit, with_values, with_rgb, with_sums, true, 1>(o, shape, channels, r, c);
  }
  if (c < channels) backward_channels<unit, with_values, with_rgb, with_sums, false, 1>(o, shape, channels, r, c);
}

template <bool unit, bool with_values, bool with_rgb, class V, class O, class T>
void backward_block(const TailBackward& p, const Operands<T>& o, const TailPlaces<V, O>& b) {
  using C = compute_t<T>;
  const Shape<C> shape(p);
  const int64_t plane = p.height * p.width;
  const C* noise = sample_row<C>(p.noise, p.noise_stride, b.sample);
  const T* y = static_cast<const T*>(p.y) + b.sample * p.y_stride;
  const C zero = 0;
  C visible[3][kRun];
  Lanes<C> dnoise[kRun];
  const int64_t rows = b.rows * b.columns <= kRun ? b.rows : 1, columns = b.columns < kRun ? b.columns : kRun;
  for (int64_t i = 0; i < b.rows; i += rows) {
    for (int64_t j = 0; j < b.columns; j += columns) {
      const int64_t place = (b.row + i) * p.width + b.column + j;
      Run<V, O, T> r;
      r.rows = rows, r.columns = b.columns - j < columns ? b.columns - j : columns;
      r.values = with_values ? b.values + i * b.row_stride + j * b.pixel_stride : nullptr;
      r.row_stride = b.row_stride, r.pixel_stride = b.pixel_stride;
      r.y = y + place * p.channels, r.y_row_stride = p.width * p.channels, r.y_pixel_stride = p.channels;
      r.du = b.result ? b.result + i * b.result_row_stride + j * b.result_pixel_stride : nullptr;
      r.du_row_stride = b.result_row_stride, r.du_pixel_stride = b.result_pixel_stride;
      r.noise = noise ? noise + place : &zero, r.noise_row = noise ? p.width : 0, r.noise_step = noise ? 1 : 0;
      r.dnoise = p.dnoise ? dnoise : nullptr;
      if constexpr (with_rgb) {
        r.image_row = p.rgb_clamp < 0 ? p.width : r.columns;
        for (int64_t k = 0; k < 3; ++k) {
          const int64_t first = (b.sample * 3 + k) * plane + place;
          const C* image = static_cast<const C*>(p.dimage) + first;
          r.image[k] = p.rgb_clamp < 0 ? image : visible[k];
          for (int64_t at = 0; p.rgb_clamp >= 0 && at < r.rows * r.columns; ++at) {
            const int64_t from = at / r.columns * p.width + at % r.columns;
            const C part = static_cast<const C*>(p.rgb)[first + from];
            visible[k][at] = (part < 0 ? -part : part) < C(p.rgb_clamp) ? image[from] : C(0);
          }
        }
      }
      for (int64_t at = 0; p.dnoise && at < r.rows * r.columns; ++at) dnoise[at] = Lanes<C>{};
      if (p.sums) {
        backward_run<unit, with_values, with_rgb, true>(o, shape, p.channels, r);
      } else {
        backward_run<unit, with_values, with_rgb, false>(o, shape, p.channels, r);
      }
      for (int64_t at = 0; p.dnoise && at < r.rows * r.columns; ++at) {
        const int64_t to = b.sample * plane + place + at / r.columns * p.width + at % r.columns;
        static_cast<C*>(p.dnoise)[to] = sum_of_lanes<C>(dnoise[at]) * C(p.strength);
      }
    }
  }
}

// Backward without a layer before: the values themselves.
template <class V, class O>
void store_block(int64_t channels, const TailPlaces<V, O>& b) {
  for (int64_t i = 0; i < b.rows; ++i) {
    for (int64_t j = 0; j < b.columns; ++j) {
      O* to = b.result + i * b.result_row_stride + j * b.result_pixel_stride;
      if (!b.values) {
        for (int64_t c = 0; c < channels; ++c) store(to[c], compute_t<O>(0));
        continue;
      }
      const V* from = b.values + i * b.row_stride + j * b.pixel_stride;
      for (int64_t c = 0; c < channels; ++c) store(to[c], load(from[c]));
    }
  }
}

template <bool unit, class V, class O, class T>
void any_block(const Tail& tail, const Operands<T>& o, const TailPlaces<V, O>& b) {
  if (tail.forward) {
    if constexpr (sizeof(T) == sizeof(O)) {
      if (tail.forward->rgb_weight) {
        forward_block<unit, true>(*tail.forward, o, b);
      } else {
        forward_block<unit, false>(*tail.forward, o, b);
      }
    }
    return;
  }
  const TailBackward& p = *tail.backward;
  if (!p.y) {
    store_block(p.channels, b);
  } else if (b.values) {
    p.dimage ? backward_block<unit, true, true>(p, o, b) : backward_block<unit, true, false>(p, o, b);
  } else {
    p.dimage ? backward_block<unit, false, true>(p, o, b) : backward_block<unit, false, false>(p, o, b);
  }
}

}  // namespace

template <class T>
int64_t tail_scratch(const Tail& tail) {
  return (Operands<T>::bytes(tail) + 63) / 64 * 64;
}

template <class T>
void tail_begin(const Tail& tail, int64_t sample, void* scratch) {
  using C = compute_t<T>;
  const TailLayer& p = tail.layer();
  const Operands<T> o(tail, scratch);
  set_row(o.d, o.row, sample_row<C>(p.d, p.d_stride, sample), p.channels, C(1));
  const C* rgb_styles = sample_row<C>(p.rgb_styles, p.rgb_stride, sample);
  set_row(o.rgb_styles, o.row, rgb_styles, p.channels, C(0));
  for (int64_t k = 0; k < 3; ++k) {
    set_row(o.rgb_weight + k * o.row, o.row, sample_row<C>(p.rgb_weight, p.channels, k), p.channels, C(0));
  }
  if (tail.forward) {
    set_row(o.bias, o.row, tail.forward->bias, p.channels, C(0));
    for (int64_t k = 0; k < 3; ++k) {
      for (int64_t c = 0; c < p.channels; ++c) o.rgb_weight[k * o.row + c] *= o.rgb_styles[c];
    }
  } else {
    const TailBackward& back = *tail.backward;
    set_row(o.next_styles, o.row, sample_row<C>(back.next_styles, back.next_stride, sample), p.channels, C(1));
    for (int64_t i = 0; i < kSums * o.row; ++i) o.totals[i] = 0;
  }
}

template <class T, class V, class O>
void tail_places(const Tail& tail, const TailPlaces<V, O>& b, void* scratch) {
  if (b.rows <= 0 || b.columns <= 0) return;
  const Operands<T> o(tail, scratch);
  if constexpr (sizeof(T) == 2) {
    if (bfloat16_unit() != Bfloat16Unit::none) return any_block<true>(tail, o, b);
  }
  any_block<false>(tail, o, b);
}

template <class T>
void tail_block(const Tail& tail, const TailBlock<T>& b, void* scratch) {
  const TailLayer& p = tail.layer();
  const int64_t row_stride = p.width * p.channels;
  void* result = tail.forward ? tail.forward->y : tail.backward->du;
  TailPlaces<compute_t<T>, T> places{b.sample,     b.row,          b.column, b.rows,     b.columns, b.values,
                                     b.row_stride, b.pixel_stride, nullptr,  row_stride, p.channels};
  if (result) {
    places.result = static_cast<T*>(result) + ((b.sample * p.height + b.row) * p.width + b.column) * p.channels;
  }
  tail_places<T>(tail, places, scratch);
}

template <class T>
void tail_write(const Tail& tail, void* sums, void* scratch) {
  using C = compute_t<T>;
  const int64_t channels = tail.layer().channels;
  const Operands<T> o(tail, scratch);
  for (int64_t k = 0; k < kSums; ++k) {
    const double factor = k == 3 ? tail.layer().strength : 1;  // backward_run leaves it out
    for (int64_t c = 0; c < channels; ++c) {
      static_cast<C*>(sums)[k * channels + c] = C(o.totals[k * o.row + c] * factor);
    }
  }
}

template <class T>
void tail_end(const Tail& tail, int64_t sample, int64_t band, void* scratch) {
  if (tail.forward || !tail.backward->sums) return;
  const TailBackward& p = *tail.backward;
  const int64_t at = sample * band_count(p.height, p.width) + band;
  tail_write<T>(tail, static_cast<compute_t<T>*>(p.sums) + at * kSums * p.channels, scratch);
}

// clang-format off
#define FASTINV_INSTANTIATE(T)                                                                   \
  template int64_t tail_scratch<T>(const Tail&);                                                 \
  template void tail_begin<T>(const Tail&, int64_t, void*);                                      \
  template void tail_block<T>(const Tail&, const TailBlock<T>&, void*);                          \
  template void tail_end<T>(const Tail&, int64_t, int64_t, void*);                               \
  template void tail_write<T>(const Tail&, void*, void*);                                        \
  template void tail_places<T, T, T>(const Tail&, const TailPlaces<T, T>&, void*);
// clang-format on
FASTINV_INSTANTIATE(float)
FASTINV_INSTANTIATE(double)
FASTINV_INSTANTIATE(bfloat16)
template void tail_places<bfloat16, float, bfloat16>(const Tail&, const TailPlaces<float, bfloat16>&, void*);
template void tail_places<bfloat16, bfloat16, float>(const Tail&, const TailPlaces<bfloat16, float>&, void*);

}  // namespace fastinv::FASTINV_ISA
