// bias_act and its derivatives: one pass over memory, sums of gradients taken from the values that have just been
// written.
#include "activations.h"
#include "bias_act.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr int64_t kChunk = 2048;      // elements that are summed while they are still in the first-level cache
constexpr int64_t kTilesPerSum = 32;  // values summed in the computing type before the sum goes to double

// n elements from `at` on, with one bias for all (bias[0]) or one each.
template <class Function, Order order, bool one_bias, class T>
void elements(const BiasActParams<T>& p, int64_t at, int64_t n, const compute_t<T>* __restrict bias) {
  using C = compute_t<T>;
  const T* __restrict x = p.x + at;
  const T* __restrict dy = order == Order::forward ? x : p.dy + at;
  const T* __restrict grad = order == Order::second ? p.grad + at : x;
  T* __restrict out = p.out + at;
  const C alpha = p.alpha, gain = p.gain, clamp = p.clamp, single = bias[0];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Jet<C> jet = Function::at(load(x[i]) + (one_bias ? single : bias[i]), alpha);
    C y = gain * jet.value;
    if constexpr (order == Order::forward) {
      y = y > clamp ? clamp : y;
      store(out[i], y < -clamp ? -clamp : y);
    } else {
      C slope = gain * (order == Order::first ? jet.first : jet.second) * load(dy[i]);
      if constexpr (order == Order::second) slope *= load(grad[i]);
      store(out[i], absolute(y) > clamp ? C(0) : slope);
    }
  }
}

// First derivative of linear, relu and lrelu from their output y = p.x: its sign is that of x + b times that of the
// gain.
template <class T>
void elements_from_output(const BiasActParams<T>& p, int64_t at, int64_t n, const compute_t<T>*) {
  using C = compute_t<T>;
  const T* __restrict y = p.x + at;
  const T* __restrict dy = p.dy + at;
  T* __restrict out = p.out + at;
  const C clamp = p.clamp, sign = p.gain < C(0) ? C(-1) : C(1);
  const C low = p.activation == Activation::linear ? p.gain
                : p.activation == Activation::relu ? C(0)
                                                   : p.gain * p.alpha;
  const C high = p.gain;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    C value = load(y[i]);
    C slope = value * sign > C(0) ? high : low;
    slope = absolute(value) >= clamp ? C(0) : slope;
    store(out[i], slope * load(dy[i]));
  }
}

template <class T>
using Elements = void (*)(const BiasActParams<T>&, int64_t at, int64_t n, const compute_t<T>* bias);

// The loop for one activation and order. A pointer, so that each loop exists once and not once per walk over memory.
template <bool one_bias, class T>
Elements<T> choose(const BiasActParams<T>& p) {
#define FASTINV_SMOOTH(name, Function)                                                  \
  case Activation::name:                                                                \
    return p.order == Order::forward ? &elements<Function, Order::forward, one_bias, T> \
           : p.order == Order::first ? &elements<Function, Order::first, one_bias, T>   \
                                     : &elements<Function, Order::second, one_bias, T>;
#define FASTINV_PIECEWISE(name, Function) \
  case Activation::name:                  \
    return p.order == Order::forward ? &elements<Function, Order::forward, one_bias, T> : &elements_from_output<T>;
  switch (p.activation) {
    FASTINV_PIECEWISE(linear, Linear)
    FASTINV_PIECEWISE(relu, Relu)
    FASTINV_PIECEWISE(lrelu, LeakyRelu)
    FASTINV_SMOOTH(tanh, Tanh)
    FASTINV_SMOOTH(sigmoid, Sigmoid)
    FASTINV_SMOOTH(elu, Elu)
    FASTINV_SMOOTH(selu, Selu)
    FASTINV_SMOOTH(softplus, Softplus)
    FASTINV_SMOOTH(swish, Swish)
  }
#undef FASTINV_SMOOTH
#undef FASTINV_PIECEWISE
  return nullptr;
}

template <class T>
void range(const BiasActParams<T>& p, int64_t begin, int64_t end) {
  if (p.inner == 1) {
    const Elements<T> run = choose<false>(p);
    for (int64_t at = begin; at < end; at += p.tile) run(p, at, end - at < p.tile ? end - at : p.tile, p.bias);
    return;
  }
  const Elements<T> run = choose<true>(p);
  const int64_t row = begin / p.inner;
  int64_t channel = row % p.size, left = (row + 1) * p.inner - begin;
  for (int64_t at = begin; at < end;) {
    const int64_t n = end - at < left ? end - at : left;
    run(p, at, n, p.bias + channel);
    at += n;
    left = p.inner;
    if (++channel == p.size) channel = 0;
  }
}

template <class T>
void tiles(const BiasActParams<T>& p, int64_t begin, int64_t end, compute_t<T>* __restrict sums, double* db) {
  using C = compute_t<T>;
  const Elements<T> run = choose<false>(p);
  for (int64_t at = begin; at < end;) {
    const int64_t last = end - at < kTilesPerSum * p.tile ? end : at + kTilesPerSum * p.tile;
    for (int64_t i = 0; i < p.tile; ++i) sums[i] = C(0);
    for (; at < last; at += p.tile) {
      const int64_t n = last - at < p.tile ? last - at : p.tile;
      run(p, at, n, p.bias);
      const T* __restrict out = p.out + at;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) sums[i] += load(out[i]);
    }
    at = last;
    for (int64_t i = 0; i < p.tile; i += p.size) {
      for (int64_t c = 0; c < p.size; ++c) db[c] += sums[i + c];
    }
  }
}

template <class T>
void channels(const BiasActParams<T>& p, int64_t begin, int64_t end, double* db) {
  const Elements<T> run = choose<true>(p);
  for (int64_t channel = begin; channel < end; ++channel) {
    double total = 0;
    for (int64_t o = 0; o < p.outer; ++o) {
      const int64_t start = (o * p.size + channel) * p.inner;
      for (int64_t done = 0; done < p.inner; done += kChunk) {
        const int64_t n = p.inner - done < kChunk ? p.inner - done : kChunk;
        run(p, start + done, n, p.bias + channel);
        const T* __restrict out = p.out + start + done;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < n; ++i) total += load(out[i]);
      }
    }
    db[channel] = total;
  }
}

}  // namespace

#define FASTINV_BIAS_ACT(T)                                                                                       \
  void bias_act_range(const BiasActParams<T>& p, int64_t begin, int64_t end) { range(p, begin, end); }            \
  void bias_act_tiles(const BiasActParams<T>& p, int64_t begin, int64_t end, compute_t<T>* scratch, double* db) { \
    tiles(p, begin, end, scratch, db);                                                                            \
  }                                                                                                               \
  void bias_act_channels(const BiasActParams<T>& p, int64_t begin, int64_t end, double* db) {                     \
    channels(p, begin, end, db);                                                                                  \
  }
FASTINV_BIAS_ACT(float)
FASTINV_BIAS_ACT(double)
FASTINV_BIAS_ACT(bfloat16)

}  // namespace fastinv::FASTINV_ISA
