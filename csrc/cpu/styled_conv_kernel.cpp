#include "activations.h"
#include "styled_conv.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr double kEpsilon = 1e-8;
// What y tells of v is a template argument; the other activations (and gains <= 0) share one loop.
enum class Kind { linear, relu, lrelu, other };

template <class C>
FASTINV_INLINE Jet<C> other(Act act, C v, C alpha) {
  switch (act) {
    case Act::relu:
      return Relu::at(v, alpha);
    case Act::lrelu:
      return LeakyRelu::at(v, alpha);
    case Act::tanh:
      return Tanh::at(v, alpha);
    case Act::sigmoid:
      return Sigmoid::at(v, alpha);
    case Act::elu:
      return Elu::at(v, alpha);
    case Act::selu:
      return Selu::at(v, alpha);
    case Act::softplus:
      return Softplus::at(v, alpha);
    case Act::swish:
      return Swish::at(v, alpha);
    default:
      return Linear::at(v, alpha);
  }
}

// act, gain and clamp of one value, and their derivative, in the compute type C.
template <Kind kind, class C>
struct Activation {
  Act act;
  C alpha, gain, clamp;      // clamp is infinite for none
  C inverse, inverse_below;  // y -> v, above and below zero

  explicit Activation(const Epilogue& p)
      : act(p.act), alpha(C(p.alpha)), gain(C(p.gain)), clamp(p.clamp < 0 ? C(__builtin_inf()) : C(p.clamp)) {
    inverse = C(1 / p.gain);
    // Below zero relu has lost v, but the gradient there is zero too.
    inverse_below = kind == Kind::lrelu && p.alpha != 0 ? C(1 / (p.gain * p.alpha))
                    : kind == Kind::linear              ? inverse
                                                        : C(0);
  }
  FASTINV_INLINE C value(C v) const {
    C y = kind == Kind::linear  ? v
          : kind == Kind::relu  ? (v <= 0 ? C(0) : v)
          : kind == Kind::lrelu ? (v > 0 ? v : v * alpha)
                                : other(act, v, alpha).value;
    y *= gain;
    return y > clamp ? clamp : y < -clamp ? -clamp : y;  // a NaN passes
  }
  FASTINV_INLINE C slope_from_output(C y) const {
    C s = kind == Kind::linear || y > 0 ? gain : kind == Kind::relu ? C(0) : gain * alpha;
    return absolute(y) < clamp ? s : C(0);
  }
  FASTINV_INLINE C input_from_output(C y) const { return y > 0 ? y * inverse : y * inverse_below; }
  FASTINV_INLINE C slope_from_input(C v) const {
    const Jet<C> jet = other(act, v, alpha);
    return absolute(gain * jet.value) < clamp ? gain * jet.first : C(0);
  }
};

template <Kind kind, class T>
void epilogue_kind(const Epilogue& p, const T* u, T* y, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const Activation<kind, C> act(p);
  const Shape& s = p.shape;
  const int64_t blocks = s.blocks();
  const C* bias = static_cast<const C*>(p.bias);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / blocks, first = unit % blocks * kBlock;
    const int64_t last = first + kBlock < s.pixels ? first + kBlock : s.pixels;
    const C* scale = static_cast<const C*>(p.scale) + n * s.c;
    const C* noise = p.noise ? static_cast<const C*>(p.noise) + n * p.noise_stride : nullptr;
    if (s.channels_last) {
      for (int64_t i = first; i < last; ++i) {
        const T* in = u + (n * s.pixels + i) * s.c;
        T* out = y + (n * s.pixels + i) * s.c;
        const C z = noise ? noise[i] : C(0);
#pragma GCC ivdep
        for (int64_t c = 0; c < s.c; ++c) store(out[c], act.value(load(in[c]) * scale[c] + (z + bias[c])));
      }
    } else {
      for (int64_t c = 0; c < s.c; ++c) {
        const T* in = u + (n * s.c + c) * s.pixels;
        T* out = y + (n * s.c + c) * s.pixels;
        const C d = scale[c], b = bias[c];
        if (noise) {
#pragma GCC ivdep
          for (int64_t i = first; i < last; ++i) store(out[i], act.value(load(in[i]) * d + (noise[i] + b)));
        } else {
#pragma GCC ivdep
          for (int64_t i = first; i < last; ++i) store(out[i], act.value(load(in[i]) * d + b));
        }
      }
    }
  }
}

// One element: the gradient of v, and the term of the sum for the gradient of the scale.
template <Kind kind, class C>
struct Element {
  C dv, term;
  FASTINV_INLINE Element(const Activation<kind, C>& act, C dy, C saved, C scale, C offset) {
    if constexpr (kind == Kind::other) {
      dv = dy * act.slope_from_input(saved * scale + offset);
      term = dv * saved;
    } else {
      dv = dy * act.slope_from_output(saved);
      term = dv * (act.input_from_output(saved) - offset);
    }
  }
};

template <Kind kind, class T>
void epilogue_backward_kind(const EpilogueBackward& q, const T* dy, const T* saved, T* du, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const Epilogue& p = q.forward;
  const Activation<kind, C> act(p);
  const Shape& s = p.shape;
  const int64_t blocks = s.blocks();
  const C* bias = static_cast<const C*>(p.bias);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / blocks, first = unit % blocks * kBlock;
    const int64_t last = first + kBlock < s.pixels ? first + kBlock : s.pixels;
    const C* scale = static_cast<const C*>(p.scale) + n * s.c;
    const C* noise = p.noise ? static_cast<const C*>(p.noise) + n * p.noise_stride : nullptr;
    double* pixel_sums = q.pixel_sums ? q.pixel_sums + n * s.pixels : nullptr;
    double* terms = q.sums + unit * 2 * s.c;
    double* totals = terms + s.c;
    for (int64_t c = 0; c < 2 * s.c; ++c) terms[c] = 0;
    if (s.channels_last) {
      C* run_terms = static_cast<C*>(q.scratch);
      C* run_totals = run_terms + s.c;
      for (int64_t run = first; run < last; run += kRun) {
        for (int64_t c = 0; c < 2 * s.c; ++c) run_terms[c] = 0;
        for (int64_t i = run; i < last && i < run + kRun; ++i) {
          const int64_t offset = (n * s.pixels + i) * s.c;
          const T *g = dy + offset, *kept = saved + offset;
          T* out = du + offset;
          const C z = noise ? noise[i] : C(0);
          if (pixel_sums) {
            C sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < s.c; ++c) {
              const Element<kind, C> e(act, load(g[c]), load(kept[c]), scale[c], z + bias[c]);
              run_terms[c] += e.term;
              run_totals[c] += e.dv;
              sum += e.dv;
              store(out[c], e.dv * scale[c]);
            }
            pixel_sums[i] = double(sum);
          } else {
#pragma GCC ivdep
            for (int64_t c = 0; c < s.c; ++c) {
              const Element<kind, C> e(act, load(g[c]), load(kept[c]), scale[c], z + bias[c]);
              run_terms[c] += e.term;
              run_totals[c] += e.dv;
              store(out[c], e.dv * scale[c]);
            }
          }
        }
        for (int64_t c = 0; c < 2 * s.c; ++c) terms[c] += double(run_terms[c]);
      }
    } else {
      if (pixel_sums) {
        for (int64_t i = first; i < last; ++i) pixel_sums[i] = 0;
      }
      C zero[kBlock];
      if (!noise) {
        for (int64_t i = 0; i < kBlock; ++i) zero[i] = 0;
      }
      for (int64_t c = 0; c < s.c; ++c) {
        const int64_t offset = (n * s.c + c) * s.pixels + first;
        const T *g = dy + offset, *kept = saved + offset;
        T* out = du + offset;
        const C* z = noise ? noise + first : zero;
        const C d = scale[c], b = bias[c];
        terms[c] = totals[c] = 0;
        for (int64_t run = 0; run < last - first; run += kRun) {
          const int64_t stop = run + kRun < last - first ? run + kRun : last - first;
          C term = 0, total = 0;
#pragma omp simd reduction(+ : term, total)
          for (int64_t i = run; i < stop; ++i) {
            const Element<kind, C> e(act, load(g[i]), load(kept[i]), d, z[i] + b);
            term += e.term;
            total += e.dv;
            store(out[i], e.dv * d);
          }
          terms[c] += double(term);
          totals[c] += double(total);
        }
        if (pixel_sums) {  // a second look at a block that is still in the first-level cache
          double* row = pixel_sums + first;
#pragma GCC ivdep
          for (int64_t i = 0; i < last - first; ++i)
            row[i] += double(Element<kind, C>(act, load(g[i]), load(kept[i]), d, z[i] + b).dv);
        }
      }
    }
  }
}

template <bool with_sums, bool with_output, class T>
void scale_dot_case(const ScaleDot& p, const T* x, T* out, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const Shape& s = p.shape;
  const int64_t blocks = s.blocks();
  const T* other = static_cast<const T*>(p.other);
  C* run_sums = static_cast<C*>(p.scratch);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / blocks, first = unit % blocks * kBlock;
    const int64_t last = first + kBlock < s.pixels ? first + kBlock : s.pixels;
    const C* scale = with_output ? static_cast<const C*>(p.scale) + n * s.c : nullptr;
    double* sums = with_sums ? p.sums + unit * s.c : nullptr;
    if (s.channels_last) {
      if constexpr (with_sums) {
        for (int64_t c = 0; c < s.c; ++c) sums[c] = 0;
      }
      for (int64_t run = first; run < last; run += kRun) {
        if constexpr (with_sums) {
          for (int64_t c = 0; c < s.c; ++c) run_sums[c] = 0;
        }
        for (int64_t i = run; i < last && i < run + kRun; ++i) {
          const int64_t offset = (n * s.pixels + i) * s.c;
          const T *a = x + offset, *b = other + offset;
          T* y = out + offset;
#pragma GCC ivdep
          for (int64_t c = 0; c < s.c; ++c) {
            const C value = load(a[c]);
            if constexpr (with_sums) run_sums[c] += value * load(b[c]);
            if constexpr (with_output) store(y[c], value * scale[c]);
          }
        }
        if constexpr (with_sums) {
          for (int64_t c = 0; c < s.c; ++c) sums[c] += double(run_sums[c]);
        }
      }
    } else {
      for (int64_t c = 0; c < s.c; ++c) {
        const int64_t offset = (n * s.c + c) * s.pixels + first;
        const T *a = x + offset, *b = other + offset;
        T* y = out + offset;
        const C d = with_output ? scale[c] : C(0);
        if constexpr (with_sums) sums[c] = 0;
        for (int64_t run = 0; run < last - first; run += kRun) {
          const int64_t stop = run + kRun < last - first ? run + kRun : last - first;
          C sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = run; i < stop; ++i) {
            const C value = load(a[i]);
            if constexpr (with_sums) sum += value * load(b[i]);
            if constexpr (with_output) store(y[i], value * d);
          }
          if constexpr (with_sums) sums[c] += double(sum);
        }
      }
    }
  }
}

}  // namespace

template <class T>
void epilogue(const Epilogue& p, const T* u, T* y, int64_t begin, int64_t end) {
  switch (p.act) {
    case Act::linear:
      return epilogue_kind<Kind::linear>(p, u, y, begin, end);
    case Act::relu:
      return epilogue_kind<Kind::relu>(p, u, y, begin, end);
    case Act::lrelu:
      return epilogue_kind<Kind::lrelu>(p, u, y, begin, end);
    default:
      return epilogue_kind<Kind::other>(p, u, y, begin, end);
  }
}

template <class T>
void epilogue_backward(const EpilogueBackward& p, const T* dy, const T* saved, T* du, int64_t begin, int64_t end) {
  if (!p.from_output) return epilogue_backward_kind<Kind::other>(p, dy, saved, du, begin, end);
  switch (p.forward.act) {
    case Act::linear:
      return epilogue_backward_kind<Kind::linear>(p, dy, saved, du, begin, end);
    case Act::relu:
      return epilogue_backward_kind<Kind::relu>(p, dy, saved, du, begin, end);
    default:
      return epilogue_backward_kind<Kind::lrelu>(p, dy, saved, du, begin, end);
  }
}

template <class T>
void scale_dot(const ScaleDot& p, const T* x, T* out, int64_t begin, int64_t end) {
  if (p.sums && p.scale) return scale_dot_case<true, true>(p, x, out, begin, end);
  if (p.sums) return scale_dot_case<true, false>(p, x, out, begin, end);
  return scale_dot_case<false, true>(p, x, out, begin, end);
}

// out[row, column] = sum over taps of weight^2; rows are dense.
template <class T>
void sum_squares(const T* weight, compute_t<T>* out, int64_t rows, int64_t columns, int64_t taps, int64_t column_stride,
                 int64_t tap_stride) {
  using C = compute_t<T>;
  for (int64_t row = 0; row < rows; ++row, weight += columns * taps, out += columns) {
    for (int64_t column = 0; column < columns; ++column) out[column] = 0;
    if (column_stride == 1) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const T* w = weight + tap * tap_stride;
#pragma GCC ivdep
        for (int64_t column = 0; column < columns; ++column) out[column] += load(w[column]) * load(w[column]);
      }
    } else {
      for (int64_t column = 0; column < columns; ++column) {
        const T* w = weight + column * column_stride;
        C sum = 0;
        for (int64_t tap = 0; tap < taps; ++tap) sum += load(w[tap * tap_stride]) * load(w[tap * tap_stride]);
        out[column] = sum;
      }
    }
  }
}

// d[n, o] = 1 / sqrt(sum over i of styles[n, i]^2 * sumsq[o, i] + epsilon), for o in [begin, end).
template <class C>
void demodulate(const C* styles, const C* sumsq, C* d, int64_t n, int64_t in, int64_t out, int64_t begin, int64_t end) {
  for (int64_t o = begin; o < end; ++o) {
    const C* row = sumsq + o * in;
    for (int64_t sample = 0; sample < n; ++sample) {
      const C* s = styles + sample * in;
      C sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < in; ++i) sum += s[i] * s[i] * row[i];
      d[sample * out + o] = C(1) / C(__builtin_sqrt(sum + C(kEpsilon)));
    }
  }
}

// clang-format off
#define FASTINV_INSTANTIATE(T)                                                                                     \
  template void epilogue<T>(const Epilogue&, const T*, T*, int64_t, int64_t);                                      \
  template void epilogue_backward<T>(const EpilogueBackward&, const T*, const T*, T*, int64_t, int64_t);           \
  template void scale_dot<T>(const ScaleDot&, const T*, T*, int64_t, int64_t);                                     \
  template void sum_squares<T>(const T*, compute_t<T>*, int64_t, int64_t, int64_t, int64_t, int64_t);
// clang-format on
FASTINV_INSTANTIATE(float)
FASTINV_INSTANTIATE(double)
FASTINV_INSTANTIATE(bfloat16)
template void demodulate<float>(const float*, const float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t);
template void demodulate<double>(const double*, const double*, double*, int64_t, int64_t, int64_t, int64_t, int64_t);

}  // namespace fastinv::FASTINV_ISA
