// The ends of LPIPS's stages, window of 2x2 pixels by window, so that the second look at the features finds them in the
// first-level cache.
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

// h of a window, from u where there is a bias, and its squared lengths.
template <class T>
void activate(const PerceptualStageParams<T>& p, const Window& window, compute_t<T> (&squares)[4]) {
  using C = compute_t<T>;
  const int64_t channels = p.channels;
  const C* bias = p.bias;
  for (int i = 0; i < 4; ++i) {
    const T* u = p.u + window.pixel[i] * channels;
    T* h = p.h + window.pixel[i] * channels;
    C sum = 0;
    if (bias == nullptr) {
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < channels; ++c) sum += load(h[c]) * load(h[c]);
      squares[i] = sum;
      continue;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < channels; ++c) {
      const C value = load(u[c]) + bias[c];
      store(h[c], value < C(0) ? C(0) : value);  // a NaN stays one
      sum += load(h[c]) * load(h[c]);
    }
    squares[i] = sum;
  }
}

// The larger one, or the NaN if there is one.
template <class C>
C larger(C a, C b) {
  return b > a || b != b ? b : a;
}

template <class T>
void pool(const PerceptualStageParams<T>& p, const Window& window) {
  const int64_t channels = p.channels;
  const T *a = p.h + window.pixel[0] * channels, *b = p.h + window.pixel[1] * channels;
  const T *c = p.h + window.pixel[2] * channels, *d = p.h + window.pixel[3] * channels;
  T* out = p.pooled + window.pooled * channels;
#pragma omp simd
  for (int64_t i = 0; i < channels; ++i) {
    store(out[i], larger(larger(larger(load(a[i]), load(b[i])), load(c[i])), load(d[i])));
  }
}

// The weighted distance of a pixel; sets its slope.
template <class T>
compute_t<T> distance(const PerceptualStageParams<T>& p, int64_t pixel, compute_t<T> norm, compute_t<T> inverse) {
  using C = compute_t<T>;
  const int64_t channels = p.channels;
  const T *h = p.h + pixel * channels, *target = p.target + pixel * channels;
  const C* head = p.head;
  const C ratio = p.target_inverse[pixel] / inverse;  // 1 for the target itself, which is then at distance 0 exactly
  C sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t c = 0; c < channels; ++c) {
    const C difference = (load(h[c]) - load(target[c]) * ratio) * inverse;
    sum += head[c] * difference * difference;
    dot += head[c] * difference * load(h[c]);
  }
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
void pixel_backward(const PerceptualStageParams<T>& p, const Window& window, compute_t<T> grad_value) {
  using C = compute_t<T>;
  constexpr int x = i == 0 ? 1 : 0, y = i <= 1 ? 2 : 1, z = i <= 2 ? 3 : 2;  // the other pixels, in order
  const int64_t pixel = window.pixel[i], channels = p.channels;
  const C factor = p.pixel_weight == nullptr ? grad_value : grad_value * p.pixel_weight[pixel];
  const C inverse = p.inverse[pixel], ratio = p.target_inverse[pixel] / inverse;
  const C direct = C(2) * inverse * factor, slope = p.slope[pixel] * factor;
  const T *h = p.h + pixel * channels, *target = p.target + pixel * channels;
  const T *hx = p.h + window.pixel[x] * channels, *hy = p.h + window.pixel[y] * channels;
  const T* hz = p.h + window.pixel[z] * channels;
  const T* from_pool = pooled ? p.grad_pooled + window.pooled * channels : h;
  const C* head = p.head;
  T* grad = p.grad + pixel * channels;
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const C value = load(h[c]), difference = (value - load(target[c]) * ratio) * inverse;
    C sum = head[c] * difference * direct - value * slope;
    if constexpr (pooled) {
      C share = load(from_pool[c]);
      share = (x < i ? value > load(hx[c]) : value >= load(hx[c])) ? share : C(0);
      share = (y < i ? value > load(hy[c]) : value >= load(hy[c])) ? share : C(0);
      share = (z < i ? value > load(hz[c]) : value >= load(hz[c])) ? share : C(0);
      sum += share;
    }
    store(grad[c], value <= C(0) ? C(0) : sum);
  }
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
