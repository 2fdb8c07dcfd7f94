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
struct Shape {  // numbers of the layer in the compute type
  C alpha, gain, clamp, strength;
  bool rgb_clamped;
  C rgb_clamp;

  explicit Shape(const TailLayer& p)
      : alpha(C(p.alpha)),
        gain(C(p.gain)),
        clamp(p.clamp < 0 ? C(__builtin_inf()) : C(p.clamp)),
        strength(C(p.strength)),
        rgb_clamped(p.rgb_clamp >= 0),
        rgb_clamp(C(p.rgb_clamp)) {}
};

// P neighbouring pixels; picture[k * P + p] is their sum over the channels for colour k.
template <bool with_rgb, int P, class V, class T>
FASTINV_INLINE void forward_pixels(const Operands<T>& o, const Shape<compute_t<T>>& shape, int64_t channels,
                                   const V* values, int64_t pixel_stride, const compute_t<T>* z, T* y, int64_t y_stride,
                                   compute_t<T>* picture) {
  using C = compute_t<T>;
  using L = Lanes<C>;
  constexpr int64_t lanes = kLanes<T>;
  const L above = lanes_of(shape.gain), below = lanes_of(shape.alpha * shape.gain);
  const L highest = lanes_of(shape.clamp), lowest = -highest;
  L sums[3][P] = {};
  const auto step = [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    const L d = load_lanes(o.d + c), bias = load_lanes(o.bias + c);
    L weight[3];
    if constexpr (with_rgb) {
      for (int k = 0; k < 3; ++k) weight[k] = load_lanes(o.rgb_weight + k * o.row + c);
    }
    for (int p = 0; p < P; ++p) {
      const L v = load_lanes(values + p * pixel_stride + c, count) * d + (bias + z[p]);
      L a = v * (v > 0 ? above : below);
      a = highest < a ? highest : a;
      a = lowest > a ? lowest : a;
      const Lanes<T> stored = narrowed<T>(a);
      store_stored(y + p * y_stride + c, stored, count);
      if constexpr (with_rgb) {
        if constexpr (sizeof(T) == 2) a = widened(stored);
        for (int k = 0; k < 3; ++k) sums[k][p] += a * weight[k];
      }
    }
  };
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) step(c, lanes);
  if (c < channels) step(c, channels - c);
  if constexpr (with_rgb) {
    for (int k = 0; k < 3; ++k) {
      for (int p = 0; p < P; ++p) picture[k * P + p] = sum_of_lanes<C>(sums[k][p]);
    }
  }
}

template <bool with_rgb, class V, class T>
void forward_block(const TailForward& p, const Operands<T>& o, const TailPlaces<V, T>& b) {
  using C = compute_t<T>;
  const Shape<C> shape(p);
  const int64_t plane = p.height * p.width;
  const C* noise = sample_row<C>(p.noise, p.noise_stride, b.sample);
  for (int64_t i = 0; i < b.rows; ++i) {
    const int64_t first = (b.row + i) * p.width + b.column;
    for (int64_t j = 0; j < b.columns;) {
      const V* values = b.values + i * b.row_stride + j * b.pixel_stride;
      T* y = b.result + i * b.result_row_stride + j * b.result_pixel_stride;
      const int64_t count = b.columns - j < kGroup ? 1 : kGroup;
      C z[kGroup] = {}, sums[3 * kGroup];
      for (int64_t at = 0; noise && at < count; ++at) z[at] = noise[first + j + at] * shape.strength;
      if (count == kGroup) {
        forward_pixels<with_rgb, kGroup>(o, shape, p.channels, values, b.pixel_stride, z, y, b.result_pixel_stride,
                                         sums);
      } else {
        forward_pixels<with_rgb, 1>(o, shape, p.channels, values, b.pixel_stride, z, y, b.result_pixel_stride, sums);
      }
      if constexpr (with_rgb) {
        for (int64_t k = 0; k < 3; ++k) {
          const C bias = static_cast<const C*>(p.rgb_bias)[k];
          const int64_t to = (b.sample * 3 + k) * plane + first + j;
          for (int64_t at = 0; at < count; ++at) {
            C value = sums[k * count + at] + bias;
            if (shape.rgb_clamped) {
              value = value > shape.rgb_clamp ? shape.rgb_clamp : value < -shape.rgb_clamp ? -shape.rgb_clamp : value;
              static_cast<C*>(p.rgb)[to + at] = value;
            }
            static_cast<C*>(p.picture)[to + at] += value;
          }
        }
      }
      j += count;
    }
  }
}

// What a run of pixels has for each of them.
template <class C>
struct Pixel {
  C z, image[3];
};

// At most kRun pixels. du, dnoise (of kRun vectors, added to) and totals may be null.
template <bool with_values, bool with_rgb, bool with_sums, class V, class O, class T>
FASTINV_INLINE void backward_run(const Operands<T>& o, const Shape<compute_t<T>>& shape, int64_t channels,
                                 const TailPlaces<V, O>& b, const T* y, int64_t y_row_stride,
                                 const Pixel<compute_t<T>>* pixels, Lanes<compute_t<T>>* dnoise) {
  using C = compute_t<T>;
  using L = Lanes<C>;
  constexpr int64_t lanes = kLanes<T>;
  const L above = lanes_of(shape.gain), below = lanes_of(shape.alpha * shape.gain), clamp = lanes_of(shape.clamp);
  const auto step = [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    const L d = load_lanes(o.d + c), next_styles = load_lanes(o.next_styles + c);
    const L rgb_styles = load_lanes(o.rgb_styles + c);
    L weight[3], sums[kSums] = {};
    for (int k = 0; k < 3; ++k) weight[k] = load_lanes(o.rgb_weight + k * o.row + c);
    const Pixel<C>* pixel = pixels;
    L* noise_sum = dnoise;
    for (int64_t i = 0; i < b.rows; ++i) {
      for (int64_t j = 0; j < b.columns; ++j, ++pixel) {
        const L a = load_lanes(y + i * y_row_stride + j * channels + c, count);
        L dy = {};
        if constexpr (with_values) {
          const L g = load_lanes(b.values + i * b.row_stride + j * b.pixel_stride + c, count);
          if constexpr (with_sums) sums[0] += g * a;
          dy = g * next_styles;
        }
        if constexpr (with_rgb) {
          const L q = weight[0] * pixel->image[0] + weight[1] * pixel->image[1] + weight[2] * pixel->image[2];
          if constexpr (with_sums) sums[1] += q * a;
          dy += q * rgb_styles;
        }
        dy = (a < 0 ? -a : a) < clamp ? dy : L{};
        const L dv = dy * (a > 0 ? above : below);
        if constexpr (with_sums) {
          sums[2] += dy * a;
          sums[3] += dv * pixel->z;
          sums[4] += dv;
        }
        if (noise_sum) *noise_sum++ += dv;
        if (b.result) {
          O* to = b.result + i * b.result_row_stride + j * b.result_pixel_stride + c;
          store_stored(to, narrowed<O>(dv * d), count);
        }
      }
    }
    if constexpr (with_sums) {
      for (int k = 0; k < kSums; ++k) {
        C parts[lanes];
        std::memcpy(parts, &sums[k], sizeof sums[k]);
        for (int64_t i = 0; i < lanes; ++i) o.totals[k * o.row + c + i] += double(parts[i]);
      }
    }
  };
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) step(c, lanes);
  if (c < channels) step(c, channels - c);
}

template <bool with_values, bool with_rgb, class V, class O, class T>
void backward_block(const TailBackward& p, const Operands<T>& o, const TailPlaces<V, O>& b) {
  using C = compute_t<T>;
  const Shape<C> shape(p);
  const int64_t plane = p.height * p.width;
  const C* noise = sample_row<C>(p.noise, p.noise_stride, b.sample);
  Pixel<C> pixels[kRun] = {};
  Lanes<C> dnoise[kRun];
  const int64_t columns = b.columns < kRun ? b.columns : kRun, rows = kRun / columns;
  for (int64_t i = 0; i < b.rows; i += rows) {
    for (int64_t j = 0; j < b.columns; j += columns) {
      TailPlaces<V, O> run = b;
      run.rows = b.rows - i < rows ? b.rows - i : rows;
      run.columns = b.columns - j < columns ? b.columns - j : columns;
      run.row += i, run.column += j;
      if (with_values) run.values += i * b.row_stride + j * b.pixel_stride;
      if (b.result) run.result += i * b.result_row_stride + j * b.result_pixel_stride;
      const auto each = [&](const auto& body) {
        int64_t at = 0;
        for (int64_t r = 0; r < run.rows; ++r) {
          for (int64_t x = 0; x < run.columns; ++x) body((run.row + r) * p.width + run.column + x, at++);
        }
      };
      if (noise) {
        each([&](int64_t place, int64_t at) { pixels[at].z = noise[place] * shape.strength; });
      }
      if constexpr (with_rgb) {
        each([&](int64_t place, int64_t at) {
          for (int64_t k = 0; k < 3; ++k) {
            const int64_t from = (b.sample * 3 + k) * plane + place;
            C value = static_cast<const C*>(p.dimage)[from];
            if (shape.rgb_clamped) {
              const C part = static_cast<const C*>(p.rgb)[from];
              value = (part < 0 ? -part : part) < shape.rgb_clamp ? value : C(0);
            }
            pixels[at].image[k] = value;
          }
        });
      }
      if (p.dnoise) {
        for (int64_t at = 0; at < run.rows * run.columns; ++at) dnoise[at] = Lanes<C>{};
      }
      const T* y = static_cast<const T*>(p.y) + b.sample * p.y_stride + (run.row * p.width + run.column) * p.channels;
      if (p.sums) {
        backward_run<with_values, with_rgb, true>(o, shape, p.channels, run, y, p.width * p.channels, pixels,
                                                  p.dnoise ? dnoise : nullptr);
      } else {
        backward_run<with_values, with_rgb, false>(o, shape, p.channels, run, y, p.width * p.channels, pixels,
                                                   p.dnoise ? dnoise : nullptr);
      }
      if (p.dnoise) {
        each([&](int64_t place, int64_t at) {
          static_cast<C*>(p.dnoise)[b.sample * plane + place] = sum_of_lanes<C>(dnoise[at]) * shape.strength;
        });
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
  if (tail.forward) {
    if constexpr (sizeof(T) == sizeof(O)) {
      if (tail.forward->rgb_weight) {
        forward_block<true>(*tail.forward, o, b);
      } else {
        forward_block<false>(*tail.forward, o, b);
      }
    }
    return;
  }
  const TailBackward& p = *tail.backward;
  if (!p.y) {
    store_block(p.channels, b);
  } else if (b.values) {
    p.dimage ? backward_block<true, true>(p, o, b) : backward_block<true, false>(p, o, b);
  } else {
    p.dimage ? backward_block<false, true>(p, o, b) : backward_block<false, false>(p, o, b);
  }
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
    for (int64_t c = 0; c < channels; ++c) static_cast<C*>(sums)[k * channels + c] = C(o.totals[k * o.row + c]);
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
