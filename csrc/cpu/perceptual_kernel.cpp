// The ends of LPIPS's stages, window of 2x2 pixels by window, so that the second look at the features finds them in the
// first-level cache.
#include <type_traits>

#include "lanes.h"
#include "perceptual.h"

namespace fastinv::FASTINV_ISA {
namespace {

// The four pixels of a window in row order. Those beyond the edge are moved onto it: they are computed twice, with the
// same result.
struct Window {
  int64_t pixel[4];  // of all samples
  bool inside[4];
  int64_t pooled;
  bool complete;
};

Window window_at(int64_t sample, int64_t row, int64_t column, int64_t height, int64_t width) {
  Window window;
  for (int i = 0; i < 4; ++i) {
    const int64_t y = 2 * row + i / 2, x = 2 * column + i % 2;
    window.inside[i] = y < height && x < width;
    window.pixel[i] = (sample * height + (y < height ? y : height - 1)) * width + (x < width ? x : width - 1);
  }
  window.complete = window.inside[3];
  window.pooled = (sample * (height / 2) + row) * (width / 2) + column;
  return window;
}

// body(c, count) for the channels, as many as there are lanes at a time.
template <class T, class Body>
FASTINV_INLINE void over_channels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) body(c, std::integral_constant<int64_t, kLanes<T>>());
  if (c < channels) body(c, channels - c);
}

// h of a window, from u where there is a bias, and its squared lengths.
template <class T>
FASTINV_INLINE void activate(const PerceptualStageParams<T>& p, const Window& window, compute_t<T> (&squares)[4]) {
  using C = compute_t<T>;
  for (int i = 0; i < 4; ++i) {
    const T* u = p.u + window.pixel[i] * p.channels;
    T* h = p.h + window.pixel[i] * p.channels;
    Lanes<C> sum{};
    over_channels<T>(p.channels, [&](int64_t c, auto count) {
      if (p.bias != nullptr) {
        const Lanes<C> value = load_lanes(u + c, count) + load_lanes(p.bias + c, count);
        store_stored(h + c, narrowed<T>(value < C(0) ? Lanes<C>{} : value), count);  // a NaN stays one
      }
      const Lanes<C> value = load_lanes(h + c, count);
      sum += value * value;
    });
    squares[i] = sum_of_lanes<C>(sum);
  }
}

// The larger ones, or the NaN if there is one.
template <class V>
FASTINV_INLINE V larger(V a, V b) {
  return (b > a) | (b != b) ? b : a;
}

template <class T>
FASTINV_INLINE void pool(const PerceptualStageParams<T>& p, const Window& window) {
  const T *a = p.h + window.pixel[0] * p.channels, *b = p.h + window.pixel[1] * p.channels;
  const T *c = p.h + window.pixel[2] * p.channels, *d = p.h + window.pixel[3] * p.channels;
  T* out = p.pooled + window.pooled * p.channels;
  over_channels<T>(p.channels, [&](int64_t i, auto count) {
    const auto first = larger(load_lanes(a + i, count), load_lanes(b + i, count));
    const auto most = larger(larger(first, load_lanes(c + i, count)), load_lanes(d + i, count));
    store_stored(out + i, narrowed<T>(most), count);
  });
}

// The weighted distance of a pixel; sets its slope.
template <class T>
FASTINV_INLINE compute_t<T> distance(const PerceptualStageParams<T>& p, int64_t pixel, compute_t<T> norm,
                                     compute_t<T> inverse) {
  using C = compute_t<T>;
  const T *h = p.h + pixel * p.channels, *target = p.target + pixel * p.channels;
  const C ratio = p.target_inverse[pixel] / inverse;  // 1 for the target itself, which is then at distance 0 exactly
  Lanes<C> sums{}, dots{};
  over_channels<T>(p.channels, [&](int64_t c, auto count) {
    const Lanes<C> value = load_lanes(h + c, count);
    const Lanes<C> difference = (value - load_lanes(target + c, count) * ratio) * inverse;
    const Lanes<C> weighted = load_lanes(p.head + c, count) * difference;
    sums += weighted * difference;
    dots += weighted * value;
  });
  const C sum = sum_of_lanes<C>(sums), dot = sum_of_lanes<C>(dots);
  p.slope[pixel] = norm == C(0) ? C(0) : C(2) * dot * inverse * inverse / norm;
  return p.pixel_weight == nullptr ? sum : sum * p.pixel_weight[pixel];
}

template <class T>
void stage(const PerceptualStageParams<T>& p, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const int64_t rows = (p.height + 1) / 2, columns = (p.width + 1) / 2;
  for (int64_t at = begin; at < end; ++at) {
    double total = 0;
    for (int64_t column = 0; column < columns; ++column) {
      const Window window = window_at(at / rows, at % rows, column, p.height, p.width);
      C squares[4];
      activate(p, window, squares);
      if (p.pooled != nullptr && window.complete) pool(p, window);
      for (int i = 0; i < 4; ++i) {
        if (!window.inside[i]) continue;
        const C norm = C(__builtin_sqrt(squares[i])), inverse = C(1) / (norm + C(1e-10));
        p.inverse[window.pixel[i]] = inverse;
        if (p.target != nullptr) total += distance(p, window.pixel[i], norm, inverse);
      }
    }
    if (p.target != nullptr) p.partial[at] = static_cast<C>(total / (p.height * p.width));
  }
}

// The gradient of pixel i of a window. With `pooled` it takes the pooling's gradient where it is above the pixels
// before it and not below those behind it.
template <int i, bool pooled, class T>
FASTINV_INLINE void pixel_backward(const PerceptualStageParams<T>& p, const Window& window, compute_t<T> grad_value) {
  using C = compute_t<T>;
  constexpr int x = i == 0 ? 1 : 0, y = i <= 1 ? 2 : 1, z = i <= 2 ? 3 : 2;  // the other pixels, in order
  const int64_t pixel = window.pixel[i], channels = p.channels;
  const C factor = p.pixel_weight == nullptr ? grad_value : grad_value * p.pixel_weight[pixel];
  const C inverse = p.inverse[pixel], ratio = p.target_inverse[pixel] / inverse;
  const C direct = C(2) * inverse * factor, slope = p.slope[pixel] * factor;
  const T *h = p.h + pixel * channels, *target = p.target + pixel * channels;
  const T *hx = p.h + window.pixel[x] * channels, *hy = p.h + window.pixel[y] * channels;
  const T* hz = p.h + window.pixel[z] * channels;
  T* grad = p.grad + pixel * channels;
  over_channels<T>(channels, [&](int64_t c, auto count) {
    const Lanes<C> none{}, value = load_lanes(h + c, count);
    const Lanes<C> difference = (value - load_lanes(target + c, count) * ratio) * inverse;
    Lanes<C> sum = load_lanes(p.head + c, count) * difference * direct - value * slope;
    if constexpr (pooled) {
      const Lanes<C> a = load_lanes(hx + c, count), b = load_lanes(hy + c, count), d = load_lanes(hz + c, count);
      const auto above = (x < i ? value > a : value >= a) & (y < i ? value > b : value >= b);
      const auto largest = above & (z < i ? value > d : value >= d);
      sum += largest ? load_lanes(p.grad_pooled + window.pooled * channels + c, count) : none;
    }
    store_stored(grad + c, narrowed<T>(value <= C(0) ? none : sum), count);
  });
}

template <bool pooled, class T>
void window_backward(const PerceptualStageParams<T>& p, const Window& window, compute_t<T> grad_value) {
  pixel_backward<0, pooled>(p, window, grad_value);
  pixel_backward<1, pooled>(p, window, grad_value);
  pixel_backward<2, pooled>(p, window, grad_value);
  pixel_backward<3, pooled>(p, window, grad_value);
}

template <class T>
void stage_backward(const PerceptualStageParams<T>& p, int64_t begin, int64_t end) {
  const int64_t rows = (p.height + 1) / 2, columns = (p.width + 1) / 2;
  for (int64_t at = begin; at < end; ++at) {
    const compute_t<T> grad_value = p.grad_value[at / rows] / (p.height * p.width);
    for (int64_t column = 0; column < columns; ++column) {
      const Window window = window_at(at / rows, at % rows, column, p.height, p.width);
      if (p.grad_pooled != nullptr && window.complete) {
        window_backward<true>(p, window, grad_value);
      } else {
        window_backward<false>(p, window, grad_value);
      }
    }
  }
}

}  // namespace

#define FASTINV_PERCEPTUAL(T)                                                                                    \
  void perceptual_stage(const PerceptualStageParams<T>& p, int64_t begin, int64_t end) { stage(p, begin, end); } \
  void perceptual_stage_backward(const PerceptualStageParams<T>& p, int64_t begin, int64_t end) {                \
    stage_backward(p, begin, end);                                                                               \
  }
FASTINV_PERCEPTUAL(float)
FASTINV_PERCEPTUAL(double)
FASTINV_PERCEPTUAL(bfloat16)

}  // namespace fastinv::FASTINV_ISA
