// upfirdn2d, one output row at a time: the vertical taps first, from whole input rows into a line of scratch
// (contiguous whatever the layout), then the horizontal taps from that line. Separable filters cost taps_y + taps_x
// products instead of taps_y * taps_x. The line carries its own margin of zeros, so no loop has a border case. Short
// rows go several at a time, so that what was just stored is not at once loaded again at another offset (a
// store-forwarding stall).
#include "upfirdn2d.h"
#include "upfirdn2d_lanes.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr int64_t kUnrolled = 4;  // taps summed in one pass over memory; longer filters take several passes
constexpr int64_t kFewChannels = 8;

// out[i] = (add ? out[i] : 0) + sum over N taps of weight[t] * in[i * in_step + t * tap_step]
template <int N, bool add, class Out, class C>
inline void pass(Out* __restrict out, int64_t out_step, const C* __restrict in, int64_t in_step, int64_t tap_step,
                 const C* weight, int64_t n) {
  C w[N];
  for (int t = 0; t < N; ++t) w[t] = weight[t];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    C sum = w[0] * in[i * in_step];
    for (int t = 1; t < N; ++t) sum += w[t] * in[i * in_step + t * tap_step];
    if constexpr (add) sum += load(out[i * out_step]);
    store(out[i * out_step], sum);
  }
}

// The same for any number of taps. Steps are passed as constants where it matters, for the compiler to see.
template <bool add, class Out, class C>
inline void filter(Out* out, int64_t out_step, const C* in, int64_t in_step, int64_t tap_step, const C* weight,
                   int64_t taps, int64_t n) {
  switch (taps) {
    case 0:
      if constexpr (!add) {
        for (int64_t i = 0; i < n; ++i) store(out[i * out_step], C(0));
      }
      return;
    case 1:
      return pass<1, add>(out, out_step, in, in_step, tap_step, weight, n);
    case 2:
      return pass<2, add>(out, out_step, in, in_step, tap_step, weight, n);
    case 3:
      return pass<3, add>(out, out_step, in, in_step, tap_step, weight, n);
    case 4:
      return pass<4, add>(out, out_step, in, in_step, tap_step, weight, n);
  }
  pass<kUnrolled, add>(out, out_step, in, in_step, tap_step, weight, n);
  for (int64_t t = kUnrolled; t < taps;) {
    int64_t left = taps - t;
    const C* from = in + t * tap_step;
    if (left >= kUnrolled) {
      pass<kUnrolled, true>(out, out_step, from, in_step, tap_step, weight + t, n);
    } else {
      for (int64_t s = 0; s < left; ++s)
        pass<1, true>(out, out_step, from + s * tap_step, in_step, 0, weight + t + s, n);
    }
    t += kUnrolled;
  }
}

// line[i] = sum over N rows of weight[t] * rows[t * row_step + i], converted to the computing type
template <int N, bool add, class T, class C>
inline void sum_rows(C* __restrict line, const T* __restrict rows, int64_t row_step, const C* weight, int64_t n) {
  C w[N];
  for (int t = 0; t < N; ++t) w[t] = weight[t];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    C sum = add ? line[i] : C(0);
    for (int t = 0; t < N; ++t) sum += w[t] * load(rows[t * row_step + i]);
    line[i] = sum;
  }
}

template <class T, class C>
inline void vertical(C* line, const T* rows, int64_t row_step, const C* weight, int64_t taps, int64_t n) {
  switch (taps) {
    case 0:
      for (int64_t i = 0; i < n; ++i) line[i] = C(0);
      return;
    case 1:
      return sum_rows<1, false>(line, rows, row_step, weight, n);
    case 2:
      return sum_rows<2, false>(line, rows, row_step, weight, n);
    case 3:
      return sum_rows<3, false>(line, rows, row_step, weight, n);
    default:
      sum_rows<4, false>(line, rows, row_step, weight, n);
  }
  int64_t t = 4;
  for (; t + 4 <= taps; t += 4) sum_rows<4, true>(line, rows + t * row_step, row_step, weight + t, n);
  for (; t < taps; ++t) sum_rows<1, true>(line, rows + t * row_step, row_step, weight + t, n);
}

// One row of outputs from a line whose element 0 is sample `column_begin`.
template <bool add, bool streamed = false, class Out, class C>
inline void horizontal(Out* out, const C* line, int64_t column_begin, const UpfirdnAxis& x, const C* weight,
                       int64_t channels, C* one_phase) {
  if (channels == 1 && sampling_of(x) != Sampling::other) {  // the usual filters of one channel
    const C* from = line + x.first[0] - column_begin;
    if (x.phases == 2) {
      return pairs<add, streamed>(out, from, line + x.first[1] - column_begin, weight, x.taps, x.out);
    }
    return x.step == 1 ? every_sample<add, streamed>(out, from, weight, x.out)
                       : every_second<add, streamed>(out, from, weight, x.out);
  }
  if (x.phases == 1 && x.step == 1) {  // layout does not matter: tap t lies t * channels further on, for all
    filter<add>(out, 1, line + (x.first[0] - column_begin) * channels, 1, channels, weight, x.count[0],
                x.out * channels);
    return;
  }
  if (channels == 1) {  // vectors along the row
    for (int64_t phase = 0; phase < x.phases; ++phase) {
      const int64_t n = (x.out - phase + x.phases - 1) / x.phases;
      const C* from = line + x.first[phase] - column_begin;
      if (x.phases == 1 && x.step == 2) {
        filter<add>(out, 1, from, 2, 1, weight, x.count[0], n);
      } else {
        filter<add>(out + phase, x.phases, from, x.step, 1, weight + phase * x.taps, x.count[phase], n);
      }
    }
    return;
  }
  if (channels < kFewChannels && x.step == 1) {  // vectors along the row, a phase at a time, then interleaved
    for (int64_t phase = 0; phase < x.phases; ++phase) {
      const int64_t n = (x.out - phase + x.phases - 1) / x.phases;
      filter<false>(one_phase, 1, line + (x.first[phase] - column_begin) * channels, 1, channels,
                    weight + phase * x.taps, x.count[phase], n * channels);
      Out* to = out + phase * channels;
      for (int64_t m = 0; m < n; ++m, to += x.phases * channels) {
        for (int64_t c = 0; c < channels; ++c) {
          store(to[c], add ? load(to[c]) + one_phase[m * channels + c] : one_phase[m * channels + c]);
        }
      }
    }
    return;
  }
  for (int64_t o = 0, phase = 0, shift = 0; o < x.out; ++o) {  // vectors along the channels
    filter<add>(out + o * channels, 1, line + (x.first[phase] + shift - column_begin) * channels, 1, channels,
                weight + phase * x.taps, x.count[phase], channels);
    if (++phase == x.phases) {
      phase = 0;
      shift += x.step;
    }
  }
}

// The input rows that one output row needs: `taps` of them from `first` on, and where their weights begin.
struct RowSpan {
  int64_t image, first, taps, weights;
};

inline RowSpan span_of(const UpfirdnAxis& y, int64_t index) {
  const int64_t image = index / y.out, o = index - image * y.out;
  const int64_t phase = o % y.phases;
  int64_t first = y.first[phase] + o / y.phases * y.step;
  int64_t tap = 0, taps = y.count[phase];
  if (first < 0) {
    tap = -first < taps ? -first : taps;
    first += tap;
    taps -= tap;
  }
  if (first + taps > y.size) taps = y.size > first ? y.size - first : 0;
  return {image, taps > 0 ? first : 0, taps, phase * y.taps + tap};
}

template <class T, bool streamed>
inline void rows(const UpfirdnParams<T>& p, int64_t begin, int64_t end, compute_t<T>* scratch) {
  using C = compute_t<T>;
  const int64_t channels = p.channels;
  const int64_t line_size = (p.column_end - p.column_begin) * channels;
  const int64_t out_size = p.x.out * channels;
  C* one_phase = scratch;
  C* sums = one_phase + out_size;
  C* lines = sums + out_size;
  for (int64_t i = 0; i < p.lines * line_size; ++i) lines[i] = C(0);

  // The part of a line that the samples fill; the rest stays zero.
  const int64_t from = p.column_begin > 0 ? p.column_begin : 0;
  const int64_t to = p.column_end < p.x.size ? p.column_end : p.x.size;
  const int64_t n = to > from ? (to - from) * channels : 0;
  const int64_t margin = (from - p.column_begin) * channels;
  const int64_t row_size = p.x.size * channels;
  auto source = [&](const RowSpan& span) {
    return p.input + (span.image * p.y.size + span.first) * row_size + from * channels;
  };

  if (p.separable) {
    for (int64_t index = begin; index < end; index += p.lines) {
      const int64_t count = end - index < p.lines ? end - index : p.lines;
      for (int64_t i = 0; i < count; ++i) {
        const RowSpan span = span_of(p.y, index + i);
        vertical(lines + i * line_size + margin, source(span), row_size, p.column + span.weights, span.taps, n);
      }
      for (int64_t i = 0; i < count; ++i) {
        T* out = p.output + (index + i) * out_size;
        if (p.x.taps <= kUnrolled) {
          horizontal<false, streamed>(out, lines + i * line_size, p.column_begin, p.x, p.row, channels, one_phase);
          continue;
        }
        // Several passes over the output: in the computing type, rounded once at the end.
        horizontal<false>(sums, lines + i * line_size, p.column_begin, p.x, p.row, channels, one_phase);
        for (int64_t j = 0; j < out_size; ++j) store(out[j], sums[j]);
      }
    }
    return;
  }
  const int64_t row_weights = p.x.phases * p.x.taps;
  const C one = C(1);
  for (int64_t index = begin; index < end; ++index) {
    const RowSpan span = span_of(p.y, index);
    T* out = p.output + index * out_size;
    for (int64_t i = 0; i < out_size; ++i) sums[i] = C(0);
    for (int64_t t = 0; t < span.taps; ++t) {
      vertical(lines + margin, source(span) + t * row_size, row_size, &one, 1, n);
      horizontal<true>(sums, lines, p.column_begin, p.x, p.row + (span.weights + t) * row_weights, channels, one_phase);
    }
    for (int64_t i = 0; i < out_size; ++i) store(out[i], sums[i]);
  }
}

// The same by `row_of_pixels`, but for the rows at the upper and lower border.
template <class T, Sampling sampling, bool streamed>
void rows_of_pixels(const UpfirdnParams<T>& p, int64_t begin, int64_t end, compute_t<T>* scratch) {
  const int64_t row_size = p.x.size * p.channels;
  for (int64_t index = begin; index < end; ++index) {
    const RowSpan span = span_of(p.y, index);
    if (span.taps < RowOfPixels<T, sampling, 1>::kTaps) {
      rows<T, streamed>(p, index, index + 1, scratch);
      continue;
    }
    row_of_pixels<T, sampling, streamed>(p, p.input + (span.image * p.y.size + span.first) * row_size,
                                         p.column + span.weights, p.output + index * p.x.out * p.channels);
  }
}

template <class T, bool streamed>
void rows_of_any(const UpfirdnParams<T>& p, int64_t begin, int64_t end, compute_t<T>* scratch) {
  if (p.separable && p.channels >= kLanes<T>) {
    const Sampling x = sampling_of(p.x), y = sampling_of(p.y);
    if (x == y && x == Sampling::same) return rows_of_pixels<T, Sampling::same, streamed>(p, begin, end, scratch);
    if (x == y && x == Sampling::up2) return rows_of_pixels<T, Sampling::up2, streamed>(p, begin, end, scratch);
    if (x == y && x == Sampling::down2) return rows_of_pixels<T, Sampling::down2, streamed>(p, begin, end, scratch);
  }
  rows<T, streamed>(p, begin, end, scratch);
}

template <class T>
void rows_of_any(const UpfirdnParams<T>& p, int64_t begin, int64_t end, compute_t<T>* scratch) {
  if (!p.streamed) return rows_of_any<T, false>(p, begin, end, scratch);
  rows_of_any<T, true>(p, begin, end, scratch);
  end_of_stream();
}

}  // namespace

void upfirdn2d_rows(const UpfirdnParams<float>& p, int64_t begin, int64_t end, float* scratch) {
  rows_of_any(p, begin, end, scratch);
}
void upfirdn2d_rows(const UpfirdnParams<double>& p, int64_t begin, int64_t end, double* scratch) {
  rows_of_any(p, begin, end, scratch);
}
void upfirdn2d_rows(const UpfirdnParams<bfloat16>& p, int64_t begin, int64_t end, float* scratch) {
  rows_of_any(p, begin, end, scratch);
}

}  // namespace fastinv::FASTINV_ISA
