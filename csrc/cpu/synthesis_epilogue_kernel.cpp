// The tail (tail.h) holds the formulas; here stand the forms' layouts, the FIR filter on the way to it or from it, the
// up-sampled picture and the sums' tiles.
#include <cstring>

#include "synthesis_epilogue.h"
#include "tail.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr int64_t kSums = 5;

void set_layer(TailLayer& t, const SynthesisLayer& p) {
  t.channels = p.channels, t.height = p.height, t.width = p.width;
  t.d = p.d, t.d_stride = p.d_stride;
  t.noise = p.noise, t.noise_stride = p.noise_stride, t.strength = p.strength;
  t.rgb_weight = p.rgb_weight, t.rgb_styles = p.rgb_styles, t.rgb_stride = p.rgb_stride;
  t.alpha = p.alpha, t.gain = p.gain, t.clamp = p.clamp, t.rgb_clamp = p.rgb_clamp;
}

TailForward tail_of(const SynthesisForward& p) {
  TailForward t{};
  set_layer(t, p);
  t.bias = p.bias, t.rgb_bias = p.rgb_bias;
  t.y = p.y, t.picture = p.picture, t.rgb = p.rgb;
  return t;
}

TailBackward tail_of(const SynthesisBackward& p) {
  TailBackward t{};
  set_layer(t, p);
  t.next_styles = p.next_styles, t.next_stride = p.next_stride;
  t.dimage = p.dimage, t.rgb = p.rgb;
  t.y = p.y, t.y_stride = p.height * p.width * p.channels;
  t.sums = p.sums, t.dnoise = p.dnoise;
  return t;
}

char* aligned(void* scratch) { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64); }

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

// Row `row` of the result before its tail, filtered: into line. work: a line with a margin of one pixel before it and
// two after it, zeros there.
template <class T>
void filtered_row(const SynthesisForward& p, int64_t sample, int64_t row, compute_t<T>* work, compute_t<T>* line) {
  using C = compute_t<T>;
  const int64_t channels = p.channels, width = p.width;
  const C taps[4] = {C(p.taps[0]), C(p.taps[1]), C(p.taps[2]), C(p.taps[3])};
  const T* rows[4];
  C weights[4];
  int64_t count = 0;
  for (int64_t k = 0; k < 4; ++k) {
    const int64_t at = row + k - 1;
    if (at < 0 || at > p.height) continue;
    rows[count] = form_row<T>(p, p.u, sample, at);
    weights[count++] = taps[k];
  }
  if (p.form == Form::transposed) {
    sum_some_rows(work + channels, rows, weights, count, 1, 0, (width + 1) * channels, (width + 1) * channels);
  } else {
    sum_some_rows(work + channels, rows, weights, count, width / 2 + 1, 4 * channels, 2 * channels, channels);
  }
  const C *l0 = work, *l1 = l0 + channels, *l2 = l1 + channels, *l3 = l2 + channels;
#pragma GCC ivdep
  for (int64_t i = 0; i < width * channels; ++i) {
    line[i] = taps[0] * l0[i] + taps[1] * l1[i] + taps[2] * l2[i] + taps[3] * l3[i];
  }
}

// Forms without a filter: the sum tiles [first, last) of the sample, in pieces of rows.
template <class T>
void backward_tiles(const SynthesisBackward& p, const Tail& tail, int64_t sample, int64_t first, int64_t last,
                    char* scratch, T* line) {
  using C = compute_t<T>;
  const int64_t channels = p.channels, width = p.width, pixels = p.height * width, step = sum_tile_pixels(pixels);
  const int64_t tiles = sum_tiles(p.form, p.height, p.width), row_stride = width * channels;
  const T* dnext = static_cast<const T*>(p.dnext);
  for (int64_t tile = first; tile < last; ++tile) {
    tail_begin<T>(tail, sample, scratch);
    const int64_t end = (tile + 1) * step < pixels ? (tile + 1) * step : pixels;
    for (int64_t at = tile * step; at < end;) {
      const int64_t row = at / width, x = at - row * width, left = end - at;
      const bool several = x == 0 && left >= width && p.form == Form::same;
      const int64_t rows = several ? left / width : 1;
      const int64_t columns = left < width - x ? left : width - x;
      T* du = const_cast<T*>(form_row<T>(p, p.du, sample, row));
      const T* values = dnext ? dnext + (sample * pixels + at) * channels : nullptr;
      T* result = p.form == Form::same ? du + x * channels : line;
      tail_places<T, T, T>(
          tail, {sample, row, x, rows, columns, values, row_stride, channels, result, row_stride, channels}, scratch);
      if (p.form == Form::shuffled) {
        for (int64_t i = 0; i < columns; ++i) {
          std::memcpy(du + ((x + i) / 2 * 4 + (x + i) % 2) * channels, line + i * channels, channels * sizeof(T));
        }
      }
      at += rows * columns;
    }
    tail_write<T>(tail, static_cast<C*>(p.sums) + (sample * tiles + tile) * kSums * channels, scratch);
  }
}

// Forms with a filter: output rows [first, last) and the rows of du that begin there (with those after the last row).
// Row t of du is sum_k taps[k] * (row t + 1 - k of dv * d), and likewise its columns. Each tile of columns has a
// scratch.
template <class T>
void backward_band(const SynthesisBackward& p, const Tail& tail, int64_t sample, int64_t first, int64_t last,
                   char* scratch, compute_t<T>* ring, compute_t<T>* line) {
  using C = compute_t<T>;
  const int64_t channels = p.channels, height = p.height, width = p.width;
  const int64_t margin = 2 * channels, ring_row = width * channels, scratch_bytes = tail_scratch<T>(tail);
  const int64_t column_tiles = (width + kSumTileColumns - 1) / kSumTileColumns, tile_rows = sum_tile_rows(height);
  const int64_t tiles = sum_tiles(p.form, height, width);
  const C taps[4] = {C(p.taps[0]), C(p.taps[1]), C(p.taps[2]), C(p.taps[3])};
  const T* dnext = static_cast<const T*>(p.dnext);
  TailBackward others = *tail.backward;  // rows of the neighbouring bands, which make these sums themselves
  others.sums = others.dnoise = nullptr;
  for (int64_t i = 0; i < margin; ++i) line[i] = line[margin + ring_row + i] = C(0);
  for (int64_t column = 0; column < column_tiles; ++column) {
    tail_begin<T>(tail, sample, scratch + column * scratch_bytes);
  }
  const int64_t stop = last == height ? height + 1 : last;  // rows of du
  int64_t made = first > 2 ? first - 2 : 0;                 // next row of dv to be made

  for (int64_t t = first; t < stop; ++t) {
    for (; made <= t + 1 && made < height; ++made) {
      const bool own = made >= first && made < last;
      C* out = ring + made % 4 * ring_row;
      const T* values = dnext ? dnext + (sample * height + made) * ring_row : nullptr;
      for (int64_t column = 0; column < column_tiles; ++column) {
        const int64_t x = column * kSumTileColumns, at = x * channels;
        const int64_t columns = width - x < kSumTileColumns ? width - x : kSumTileColumns;
        tail_places<T, T, C>(own ? tail : Tail{nullptr, &others},
                             {sample, made, x, 1, columns, values ? values + at : nullptr, ring_row, channels, out + at,
                              ring_row, channels},
                             scratch + column * scratch_bytes);
      }
      if (own && (made + 1 == last || (made + 1) % tile_rows == 0)) {
        for (int64_t column = 0; column < column_tiles; ++column) {
          const int64_t tile = sample * tiles + made / tile_rows * column_tiles + column;
          tail_write<T>(tail, static_cast<C*>(p.sums) + tile * kSums * channels, scratch + column * scratch_bytes);
          tail_begin<T>(tail, sample, scratch + column * scratch_bytes);
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
    T* to = const_cast<T*>(form_row<T>(p, p.du, sample, t));
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
        T* row = const_cast<T*>(form_row<T>(p, p.du, sample, height + 1));
        for (int64_t j = 0; j <= width / 2; ++j) {
          for (int64_t c = 0; c < 2 * channels; ++c) store(row[j * 4 * channels + c], C(0));
        }
      }
    }
  }
}

}  // namespace

// Elements of the compute type: the tail's scratch (bytes) and what else there is.
template <class T>
int64_t synthesis_forward_scratch(const SynthesisForward& p) {
  const TailForward forward = tail_of(p);
  const int64_t row = p.width * p.channels, bytes = tail_scratch<T>({&forward, nullptr}) + 64;
  const int64_t lines = filtered(p.form) ? 2 * row + 3 * p.channels : p.form == Form::shuffled ? row : 0;
  return bytes / static_cast<int64_t>(sizeof(compute_t<T>)) + p.width / 2 + 2 + lines;
}

template <class T>
void synthesis_forward(const SynthesisForward& p, int64_t sample, int64_t first_row, int64_t last_row,
                       compute_t<T>* memory) {
  using C = compute_t<T>;
  const int64_t channels = p.channels, height = p.height, width = p.width, pixels = height * width;
  const int64_t row_stride = width * channels;
  const TailForward forward = tail_of(p);
  const Tail tail{&forward, nullptr};
  const C taps[4] = {C(p.taps[0]), C(p.taps[1]), C(p.taps[2]), C(p.taps[3])};
  char* scratch = aligned(memory);
  C* plane_line = reinterpret_cast<C*>(scratch + tail_scratch<T>(tail));
  C* line = plane_line + width / 2 + 2;
  C* work = line + row_stride;
  if (filtered(p.form)) {
    for (int64_t i = 0; i < channels; ++i) work[i] = work[(width + 2) * channels + i] = C(0);
  }
  tail_begin<T>(tail, sample, scratch);
  for (int64_t row = first_row; row < last_row; ++row) {
    for (int64_t k = 0; p.rgb_weight && k < 3; ++k) {
      C* to = static_cast<C*>(p.picture) + (sample * 3 + k) * pixels + row * width;
      if (p.image) {
        upsampled_row(static_cast<const C*>(p.image) + (sample * 3 + k) * (pixels / 4), height / 2, width / 2, row,
                      taps, plane_line, to);
      } else {
        for (int64_t x = 0; x < width; ++x) to[x] = C(0);
      }
    }
    T* y = static_cast<T*>(p.y) + (sample * pixels + row * width) * channels;
    if (filtered(p.form)) {
      filtered_row<T>(p, sample, row, work, line);
      tail_places<T, C, T>(tail, {sample, row, 0, 1, width, line, row_stride, channels, y, row_stride, channels},
                           scratch);
    } else {
      const T* values = form_row<T>(p, p.u, sample, row);
      if (p.form == Form::shuffled) {
        T* row_line = reinterpret_cast<T*>(line);
        for (int64_t x = 0; x < width; x += 2) {
          std::memcpy(row_line + x * channels, values + 2 * x * channels, 2 * channels * sizeof(T));
        }
        values = row_line;
      }
      tail_places<T, T, T>(tail, {sample, row, 0, 1, width, values, row_stride, channels, y, row_stride, channels},
                           scratch);
    }
    if (p.next_styles) {
      const C* styles = static_cast<const C*>(p.next_styles) + sample * p.next_stride;
      for (int64_t x = 0; x < width; ++x) {
        T* next = static_cast<T*>(p.next) + (sample * pixels + row * width + x) * channels;
        const T* from = y + x * channels;
#pragma GCC ivdep
        for (int64_t c = 0; c < channels; ++c) store(next[c], load(from[c]) * styles[c]);
      }
    }
  }
}

template <class T>
int64_t synthesis_backward_scratch(const SynthesisBackward& p) {
  const TailBackward backward = tail_of(p);
  const int64_t column_tiles = filtered(p.form) ? (p.width + kSumTileColumns - 1) / kSumTileColumns : 1;
  const int64_t bytes = column_tiles * tail_scratch<T>({nullptr, &backward}) + 64;
  const int64_t lines = filtered(p.form) ? 5 * p.width + 4 : p.form == Form::shuffled ? p.width : 0;
  return bytes / static_cast<int64_t>(sizeof(compute_t<T>)) + lines * p.channels;
}

// [first, last): output rows for the forms with a filter, sum tiles for the others.
template <class T>
void synthesis_backward(const SynthesisBackward& p, int64_t sample, int64_t first, int64_t last, compute_t<T>* memory) {
  using C = compute_t<T>;
  const TailBackward backward = tail_of(p);
  const Tail tail{nullptr, &backward};
  char* scratch = aligned(memory);
  if (filtered(p.form)) {
    const int64_t column_tiles = (p.width + kSumTileColumns - 1) / kSumTileColumns;
    C* ring = reinterpret_cast<C*>(scratch + column_tiles * tail_scratch<T>(tail));
    backward_band<T>(p, tail, sample, first, last, scratch, ring, ring + 4 * p.width * p.channels);
  } else {
    backward_tiles<T>(p, tail, sample, first, last, scratch, reinterpret_cast<T*>(scratch + tail_scratch<T>(tail)));
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
