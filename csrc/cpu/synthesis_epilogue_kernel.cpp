#include "synthesis_epilogue.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr int64_t kSumPixels = 32;  // summed in the compute type before going to a double
constexpr int64_t kSums = 5;

template <class C>
FASTINV_INLINE const C* row_of(const void* base, int64_t stride, int64_t sample) {
  return base ? static_cast<const C*>(base) + sample * stride : nullptr;
}

// line = sum over N rows of weight * row, in pieces of n elements every `step` elements of a row.
template <int N, class T, class C>
void sum_rows(C* __restrict line, const T* const* rows, const C* weight, int64_t pieces, int64_t step, int64_t n,
              int64_t last_n) {
  C w[N];
  const T* r[N];
  for (int t = 0; t < N; ++t) w[t] = weight[t], r[t] = rows[t];
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t count = piece + 1 < pieces ? n : last_n;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      C sum = w[0] * load(r[0][i]);
      for (int t = 1; t < N; ++t) sum += w[t] * load(r[t][i]);
      line[i] = sum;
    }
    line += n;
    for (int t = 0; t < N; ++t) r[t] += step;
  }
}

template <class T, class C>
void sum_some_rows(C* line, const T* const* rows, const C* weight, int64_t count, int64_t pieces, int64_t step,
                   int64_t n, int64_t last_n) {
  switch (count) {
    case 1:
      return sum_rows<1>(line, rows, weight, pieces, step, n, last_n);
    case 2:
      return sum_rows<2>(line, rows, weight, pieces, step, n, last_n);
    case 3:
      return sum_rows<3>(line, rows, weight, pieces, step, n, last_n);
    case 4:
      return sum_rows<4>(line, rows, weight, pieces, step, n, last_n);
    default:
      for (int64_t i = 0; i < (pieces - 1) * n + last_n; ++i) line[i] = C(0);
  }
}

// Row `row` of what the convolution left, as [columns, C] when phases are put in place.
template <class T>
const T* form_row(const SynthesisLayer& p, const void* u, int64_t sample, int64_t row) {
  const int64_t c = p.channels, h = p.height, w = p.width;
  const T* from = static_cast<const T*>(u);
  switch (p.form) {
    case Form::same:
      return from + (sample * h + row) * w * c;
    case Form::transposed:
      return from + (sample * (h + 1) + row) * (w + 1) * c;
    case Form::phases:
      return from + ((sample * (h / 2 + 1) + row / 2) * (w / 2 + 1) * 4 + row % 2 * 2) * c;
    default:
      return from + ((sample * (h / 2) + row / 2) * (w / 2) * 4 + row % 2 * 2) * c;
  }
}

// The 2x up-sampled row of a plane [h, w]: out[x] for the even and odd columns of the doubled width.
template <class C>
void upsampled_row(const C* plane, int64_t h, int64_t w, int64_t row, const C* taps, C* line, C* out) {
  // Row m - 1 + odd meets taps 0 or 1, row m + odd taps 2 or 3.
  const int64_t odd = row & 1, first = row / 2 - 1 + odd;
  for (int64_t x = 0; x < w + 2; ++x) line[x] = C(0);
  for (int64_t k = 0; k < 2; ++k) {
    if (first + k < 0 || first + k >= h) continue;
    const C weight = taps[odd + 2 * k];
    const C* from = plane + (first + k) * w;
    for (int64_t x = 0; x < w; ++x) line[x + 1] += weight * from[x];
  }
  for (int64_t x = 0; x < w; ++x) {
    out[2 * x] = taps[0] * line[x] + taps[2] * line[x + 1];
    out[2 * x + 1] = taps[1] * line[x + 1] + taps[3] * line[x + 2];
  }
}

template <bool filter, class T>
void forward_rows(const SynthesisForward& p, int64_t sample, int64_t first_row, int64_t last_row,
                  compute_t<T>* scratch) {
  using C = compute_t<T>;
  const int64_t channels = p.channels, height = p.height, width = p.width, pixels = height * width;
  const C* d = row_of<C>(p.d, p.d_stride, sample);
  const C* bias = static_cast<const C*>(p.bias);
  const C* noise = row_of<C>(p.noise, p.noise_stride, sample);
  const C* styles = row_of<C>(p.next_styles, p.next_stride, sample);
  const C* rgb_styles = row_of<C>(p.rgb_styles, p.rgb_stride, sample);
  const C alpha = C(p.alpha), gain = C(p.gain), strength = C(p.strength);
  const C clamp = p.clamp < 0 ? C(__builtin_inf()) : C(p.clamp);
  const C taps[4] = {C(p.taps[0]), C(p.taps[1]), C(p.taps[2]), C(p.taps[3])};
  C* rgb_weight = scratch;  // times the styles
  C* planes = rgb_weight + 3 * channels;
  C* plane_line = planes + 3 * width;
  C* line = plane_line + width / 2 + 2;  // with a margin of one pixel before and two after
  if (p.rgb_weight) {
    for (int64_t i = 0; i < 3 * channels; ++i) {
      rgb_weight[i] = static_cast<const C*>(p.rgb_weight)[i] * rgb_styles[i % channels];
    }
  }
  if constexpr (filter) {
    for (int64_t i = 0; i < channels; ++i) line[i] = line[(width + 2) * channels + i] = C(0);
  }

  for (int64_t row = first_row; row < last_row; ++row) {
    const C* filtered_line = nullptr;
    if constexpr (filter) {
      const T* rows[4];
      C weights[4];
      int64_t count = 0;
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t at = row + k - 1;
        if (at < 0 || at > height) continue;
        rows[count] = form_row<T>(p, p.u, sample, at);
        weights[count++] = taps[k];
      }
      if (p.form == Form::transposed) {
        sum_some_rows(line + channels, rows, weights, count, 1, 0, (width + 1) * channels, (width + 1) * channels);
      } else {
        sum_some_rows(line + channels, rows, weights, count, width / 2 + 1, 4 * channels, 2 * channels, channels);
      }
      filtered_line = line;
    }
    const T* direct = filter ? nullptr : form_row<T>(p, p.u, sample, row);
    const int64_t first_pixel = sample * pixels + row * width;
    if (p.rgb_weight) {
      for (int64_t k = 0; k < 3; ++k) {
        C* plane = planes + k * width;
        if (p.image) {
          upsampled_row(static_cast<const C*>(p.image) + (sample * 3 + k) * (pixels / 4), height / 2, width / 2, row,
                        taps, plane_line, plane);
        } else {
          for (int64_t x = 0; x < width; ++x) plane[x] = C(0);
        }
      }
    }
    for (int64_t x = 0; x < width; ++x) {
      T* y = static_cast<T*>(p.y) + (first_pixel + x) * channels;
      const C z = noise ? noise[row * width + x] * strength : C(0);
      if constexpr (filter) {
        const C *l0 = filtered_line + x * channels, *l1 = l0 + channels, *l2 = l1 + channels, *l3 = l2 + channels;
#pragma GCC ivdep
        for (int64_t c = 0; c < channels; ++c) {
          const C u = taps[0] * l0[c] + taps[1] * l1[c] + taps[2] * l2[c] + taps[3] * l3[c];
          const C v = u * d[c] + (z + bias[c]);
          const C a = (v > 0 ? v : v * alpha) * gain;
          store(y[c], a > clamp ? clamp : a < -clamp ? -clamp : a);
        }
      } else {
        const int64_t at = p.form == Form::same ? x : (x / 2 * 4 + x % 2);
        const T* u = direct + at * channels;
#pragma GCC ivdep
        for (int64_t c = 0; c < channels; ++c) {
          const C v = load(u[c]) * d[c] + (z + bias[c]);
          const C a = (v > 0 ? v : v * alpha) * gain;
          store(y[c], a > clamp ? clamp : a < -clamp ? -clamp : a);
        }
      }
      if (styles) {
        T* next = static_cast<T*>(p.next) + (first_pixel + x) * channels;
#pragma GCC ivdep
        for (int64_t c = 0; c < channels; ++c) store(next[c], load(y[c]) * styles[c]);
      }
      if (p.rgb_weight) {
        C r = 0, g = 0, b = 0;
#pragma omp simd reduction(+ : r, g, b)
        for (int64_t c = 0; c < channels; ++c) {
          const C a = load(y[c]);
          r += a * rgb_weight[c];
          g += a * rgb_weight[channels + c];
          b += a * rgb_weight[2 * channels + c];
        }
        const C values[3] = {r, g, b};
        for (int64_t k = 0; k < 3; ++k) {
          const int64_t at = (sample * 3 + k) * pixels + row * width + x;
          C value = values[k] + static_cast<const C*>(p.rgb_bias)[k];
          if (p.rgb_clamp >= 0) {
            const C bound = C(p.rgb_clamp);
            value = value > bound ? bound : value < -bound ? -bound : value;
            static_cast<C*>(p.rgb)[at] = value;
          }
          static_cast<C*>(p.picture)[at] = value + planes[k * width + x];
        }
      }
    }
  }
}

// What the backward pass of one sample keeps at hand.
template <class T>
struct Backward {
  using C = compute_t<T>;
  const SynthesisBackward& p;
  const C *d, *noise, *styles, *rgb_styles, *rgb_weight;
  const C *ones, *zeros;  // [C]; the zeros stand for a pixel of T as well
  C alpha, gain, clamp, strength;
  int64_t sample, pixels;
};

// One pixel: dv * d into `out` (of type Out), products into the five sums. Returns the sum of dv over the channels.
template <bool with_rgb, bool with_total, class Out, class T>
FASTINV_INLINE compute_t<T> pixel(const Backward<T>& b, int64_t at, compute_t<T>* sums, Out* out) {
  using C = compute_t<T>;
  const SynthesisBackward& p = b.p;
  const int64_t channels = p.channels, offset = (b.sample * b.pixels + at) * channels;
  const T* kept = static_cast<const T*>(p.y) + offset;
  const T* dnext = p.dnext ? static_cast<const T*>(p.dnext) + offset : reinterpret_cast<const T*>(b.zeros);
  const C* styles = b.styles ? b.styles : b.ones;
  const C z = b.noise ? b.noise[at] * b.strength : C(0);
  C image[3] = {};
  if constexpr (with_rgb) {
    for (int64_t k = 0; k < 3; ++k) {
      const int64_t place = (b.sample * 3 + k) * b.pixels + at;
      const bool open = p.rgb_clamp < 0 || __builtin_fabs(double(static_cast<const C*>(p.rgb)[place])) < p.rgb_clamp;
      image[k] = open ? static_cast<const C*>(p.dimage)[place] : C(0);
    }
  }
  const C *red = b.rgb_weight, *green = red + channels, *blue = green + channels;
  C *s0 = sums, *s1 = s0 + channels, *s2 = s1 + channels, *s3 = s2 + channels, *s4 = s3 + channels;
  C total = 0;
  const auto element = [&](int64_t c) {
    const C a = load(kept[c]), g = load(dnext[c]);
    s0[c] += g * a;
    C dy = g * styles[c];
    if constexpr (with_rgb) {
      const C q = image[0] * red[c] + image[1] * green[c] + image[2] * blue[c];
      s1[c] += q * a;
      dy += q * b.rgb_styles[c];
    }
    dy = (a < 0 ? -a : a) < b.clamp ? dy : C(0);
    s2[c] += dy * a;
    const C dv = (a > 0 ? dy : dy * b.alpha) * b.gain;
    s3[c] += dv * z;
    s4[c] += dv;
    store(out[c], dv * b.d[c]);
    return dv;
  };
  if constexpr (with_total) {
#pragma omp simd reduction(+ : total)
    for (int64_t c = 0; c < channels; ++c) total += element(c);
  } else {
#pragma GCC ivdep
    for (int64_t c = 0; c < channels; ++c) element(c);
  }
  return total;
}

template <class Out, class T>
void any_pixel(const Backward<T>& b, int64_t at, compute_t<T>* sums, Out* out, bool own) {
  compute_t<T>* dnoise = own && b.p.dnoise ? static_cast<compute_t<T>*>(b.p.dnoise) + b.sample * b.pixels : nullptr;
  if (b.p.dimage) {
    if (dnoise) {
      dnoise[at] = pixel<true, true>(b, at, sums, out) * b.strength;
    } else {
      pixel<true, false>(b, at, sums, out);
    }
  } else if (dnoise) {
    dnoise[at] = pixel<false, true>(b, at, sums, out) * b.strength;
  } else {
    pixel<false, false>(b, at, sums, out);
  }
}

// Sums of a tile: some pixels at a time in the compute type, all of them in double.
template <class C>
struct Sums {
  C* run;         // [5, C]
  double* total;  // [5, C]
  int64_t size, pending;

  void clear() {
    for (int64_t i = 0; i < size; ++i) run[i] = C(0), total[i] = 0;
    pending = 0;
  }
  void flush() {
    for (int64_t i = 0; i < size; ++i) total[i] += double(run[i]), run[i] = C(0);
    pending = 0;
  }
  void next_pixel() {
    if (++pending == kSumPixels) flush();
  }
  void write(void* sums, int64_t tile) {
    flush();
    C* out = static_cast<C*>(sums) + tile * size;
    for (int64_t i = 0; i < size; ++i) out[i] = C(total[i]);
  }
};

// Forms without a filter: tiles [first, last) of the sample.
template <class T>
void backward_tiles(const Backward<T>& b, Sums<compute_t<T>>& sums, int64_t first, int64_t last) {
  const SynthesisBackward& p = b.p;
  const int64_t step = sum_tile_pixels(b.pixels), tiles = sum_tiles(p.form, p.height, p.width);
  for (int64_t tile = first; tile < last; ++tile) {
    sums.clear();
    const int64_t end = (tile + 1) * step < b.pixels ? (tile + 1) * step : b.pixels;
    for (int64_t at = tile * step; at < end; ++at) {
      const int64_t row = at / p.width, x = at - row * p.width;
      T* to = const_cast<T*>(form_row<T>(p, p.du, b.sample, row));
      any_pixel(b, at, sums.run, to + (p.form == Form::same ? x : x / 2 * 4 + x % 2) * p.channels, true);
      sums.next_pixel();
    }
    sums.write(p.sums, b.sample * tiles + tile);
  }
}

// Forms with a filter: output rows [first, last) and the rows of du that begin there (with those after the last row).
// Row t of du is sum_k taps[k] * (row t + 1 - k of dv * d), and likewise its columns.
template <class T>
void backward_band(const Backward<T>& b, Sums<compute_t<T>>* sums, compute_t<T>* discarded, int64_t first, int64_t last,
                   compute_t<T>* ring, compute_t<T>* line) {
  using C = compute_t<T>;
  const SynthesisBackward& p = b.p;
  const int64_t channels = p.channels, height = p.height, width = p.width;
  const int64_t margin = 2 * channels, ring_row = width * channels;
  const int64_t column_tiles = (width + kSumTileColumns - 1) / kSumTileColumns, tile_rows = sum_tile_rows(height);
  const int64_t tiles = sum_tiles(p.form, height, width);
  const C taps[4] = {C(p.taps[0]), C(p.taps[1]), C(p.taps[2]), C(p.taps[3])};
  for (int64_t i = 0; i < margin; ++i) line[i] = line[margin + ring_row + i] = C(0);
  const int64_t stop = last == height ? height + 1 : last;  // rows of du
  int64_t made = first > 2 ? first - 2 : 0;                 // next row of dv to be made

  for (int64_t t = first; t < stop; ++t) {
    for (; made <= t + 1 && made < height; ++made) {
      const bool own = made >= first && made < last;
      C* out = ring + made % 4 * ring_row;
      for (int64_t x = 0; x < width; ++x) {
        Sums<C>& tile = sums[x / kSumTileColumns];
        any_pixel(b, made * width + x, own ? tile.run : discarded, out + x * channels, own);
        if (own) tile.next_pixel();
      }
      if (own && (made + 1 == last || (made + 1) % tile_rows == 0)) {
        for (int64_t column = 0; column < column_tiles; ++column) {
          sums[column].write(p.sums, b.sample * tiles + made / tile_rows * column_tiles + column);
          sums[column].clear();
        }
      }
    }
    const C* rows[4];
    C weights[4];
    int64_t count = 0;
    for (int64_t k = 0; k < 4; ++k) {
      const int64_t row = t + 1 - k;
      if (row < 0 || row >= height) continue;
      rows[count] = ring + row % 4 * ring_row;
      weights[count++] = taps[k];
    }
    sum_some_rows(line + margin, rows, weights, count, 1, 0, ring_row, ring_row);
    T* to = const_cast<T*>(form_row<T>(p, p.du, b.sample, t));
    for (int64_t x = 0; x <= width; ++x) {  // line + margin + (x + 1 - k) pixels
      T* out = to + (p.form == Form::transposed ? x : x / 2 * 4 + x % 2) * channels;
      const C *l0 = line + (x + 3) * channels, *l1 = l0 - channels, *l2 = l1 - channels, *l3 = l2 - channels;
#pragma GCC ivdep
      for (int64_t c = 0; c < channels; ++c) {
        store(out[c], taps[0] * l0[c] + taps[1] * l1[c] + taps[2] * l2[c] + taps[3] * l3[c]);
      }
    }
    if (p.form == Form::phases) {  // beyond the transposed convolution's last column, and last row
      T* beyond = to + (width / 2 * 4 + 1) * channels;
      for (int64_t c = 0; c < channels; ++c) store(beyond[c], C(0));
      if (t == height) {
        T* row = const_cast<T*>(form_row<T>(p, p.du, b.sample, height + 1));
        for (int64_t j = 0; j <= width / 2; ++j) {
          for (int64_t c = 0; c < 2 * channels; ++c) store(row[j * 4 * channels + c], C(0));
        }
      }
    }
  }
}

}  // namespace

template <class T>
int64_t synthesis_forward_scratch(const SynthesisForward& p) {
  return 3 * p.channels + 3 * p.width + p.width / 2 + 2 + (filtered(p.form) ? (p.width + 3) * p.channels : 0);
}

template <class T>
void synthesis_forward(const SynthesisForward& p, int64_t sample, int64_t first_row, int64_t last_row,
                       compute_t<T>* scratch) {
  if (filtered(p.form)) {
    forward_rows<true, T>(p, sample, first_row, last_row, scratch);
  } else {
    forward_rows<false, T>(p, sample, first_row, last_row, scratch);
  }
}

template <class T>
int64_t synthesis_backward_scratch(const SynthesisBackward& p) {
  const int64_t column_tiles = filtered(p.form) ? (p.width + kSumTileColumns - 1) / kSumTileColumns : 1;
  const int64_t doubles = column_tiles * kSums * p.channels * 2;  // in floats, two to a double
  const int64_t ring = filtered(p.form) ? (4 * p.width + p.width + 4) * p.channels : 0;
  return doubles + (column_tiles + 1) * kSums * p.channels + 2 * p.channels + ring + column_tiles * 8 + 8;
}

// [first, last): output rows for the forms with a filter, sum tiles for the others.
template <class T>
void synthesis_backward(const SynthesisBackward& p, int64_t sample, int64_t first, int64_t last,
                        compute_t<T>* scratch) {
  using C = compute_t<T>;
  const int64_t channels = p.channels, size = kSums * channels;
  const int64_t column_tiles = filtered(p.form) ? (p.width + kSumTileColumns - 1) / kSumTileColumns : 1;
  double* totals = reinterpret_cast<double*>(scratch);
  C* runs = scratch + column_tiles * size * 2;
  C* discarded = runs + column_tiles * size;
  C* zeros = discarded + size;
  C* ones = zeros + channels;
  C* ring = ones + channels;
  Sums<C> sums[64];
  for (int64_t column = 0; column < column_tiles; ++column) {
    sums[column] = {runs + column * size, totals + column * size, size, 0};
    sums[column].clear();
  }
  for (int64_t c = 0; c < channels; ++c) zeros[c] = C(0), ones[c] = C(1);
  for (int64_t i = 0; i < size; ++i) discarded[i] = C(0);
  const Backward<T> b{p,
                      row_of<C>(p.d, p.d_stride, sample),
                      row_of<C>(p.noise, p.noise_stride, sample),
                      row_of<C>(p.next_styles, p.next_stride, sample),
                      row_of<C>(p.rgb_styles, p.rgb_stride, sample),
                      p.rgb_weight ? static_cast<const C*>(p.rgb_weight) : ones,
                      ones,
                      zeros,
                      C(p.alpha),
                      C(p.gain),
                      p.clamp < 0 ? C(__builtin_inf()) : C(p.clamp),
                      C(p.strength),
                      sample,
                      p.height * p.width};
  if (filtered(p.form)) {
    backward_band(b, sums, discarded, first, last, ring, ring + 4 * p.width * channels);
  } else {
    backward_tiles(b, sums[0], first, last);
  }
}

// clang-format off
#define FASTINV_INSTANTIATE(T)                                                                                  \
  template int64_t synthesis_forward_scratch<T>(const SynthesisForward&);                                       \
  template void synthesis_forward<T>(const SynthesisForward&, int64_t, int64_t, int64_t, compute_t<T>*);        \
  template int64_t synthesis_backward_scratch<T>(const SynthesisBackward&);                                     \
  template void synthesis_backward<T>(const SynthesisBackward&, int64_t, int64_t, int64_t, compute_t<T>*);
// clang-format on
FASTINV_INSTANTIATE(float)
FASTINV_INSTANTIATE(double)
FASTINV_INSTANTIATE(bfloat16)

}  // namespace fastinv::FASTINV_ISA
