// Kind "up": u = conv_transpose2d(x * styles, W, stride 2), the separable 4-tap FIR filter on u, and the tail.
//
// u has four phases, each an ordinary convolution of x with the taps of W that meet its places: 4 for (even row, even
// column), 2, 2 and 1. Row m of x, packed as pixels of `inner` channels, makes rows 2 m ("even") and 2 m + 1 ("odd") of
// u; the two are kept in planes of their own, so that pixel n of every row is `run` pixels after that of the row before
// in x, and `run` pairs of pixels in a plane: one product makes several rows. A packed row ends in a zero, which is
// also the one before the next row; u is zero there, as the filter wants it.
#include <cstring>

#include "frozen_conv.h"
#include "lanes.h"
#include "matrix.h"

namespace fastinv::FASTINV_ISA {
namespace {

// Taps of W in the order in which they are packed: phase after phase.
constexpr int64_t kTaps = 9;
constexpr int64_t kTapRow[kTaps] = {2, 2, 0, 0, 2, 0, 1, 1, 1};
constexpr int64_t kTapColumn[kTaps] = {2, 0, 2, 0, 1, 1, 2, 0, 1};
struct Phase {
  int64_t row, column, first_tap, taps;
};
constexpr Phase kPhases[4] = {{0, 0, 0, 4}, {0, 1, 4, 2}, {1, 0, 6, 2}, {1, 1, 8, 1}};

FASTINV_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTINV_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTINV_INLINE int64_t quotient(int64_t a, int64_t b) { return (a + b - 1) / b; }  // rounded up
FASTINV_INLINE int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// How a layer is cut; by its shape alone.
struct Plan {
  bool together;            // all threads share the weights of one group of samples; else each has bands of its own
  int64_t samples;          // at a time, together
  int64_t strips, strip;    // of columns of x; results of a strip stay in L2
  int64_t lead;             // columns before a strip that are computed, too; without strips the zero serves
  int64_t run;              // pixels of a packed row
  int64_t group;            // rows of x at a time
  int64_t slots;            // rows of the planes
  int64_t inner, panels;    // of packed x; of the weights
  int64_t pixel, channels;  // elements from pixel to pixel: of packed x; of u
  int64_t piece;            // columns of the result that are filtered at a time
  int64_t x_bytes, plane_bytes, piece_bytes;
};

constexpr int64_t kTogether = 256;    // pixels of x
constexpr int64_t kProductRows = 16;  // a product takes about as long as one with its rows rounded up to this

template <class T>
Plan plan_of(const FrozenConv& p, const Tail& tail) {
  Plan s{};
  const int64_t h = p.height, w = p.width;
  s.inner = matrix_inner<T>(p.inputs);
  s.panels = quotient(p.outputs, matrix_columns());
  // Pixels that begin a power of two apart would compete for the same places of the first-level cache.
  const int64_t line = 64 / int64_t(sizeof(T));
  s.pixel = s.inner + (s.inner % (16 * line) == 0 ? line : 0);
  s.channels = s.panels * matrix_columns();
  s.channels += s.channels % 256 == 0 ? 16 : 0;
  s.together = h * w <= kTogether;
  s.strips = 1, s.strip = w, s.run = w + 1, s.group = h + 1;
  if (s.together) {
    s.samples = larger(1, smaller(p.samples, 4 * kTogether / larger(1, h * w)));
    s.slots = s.samples * (h + 1);
  } else {
    // The sums of a band (backward) must not be interrupted by another strip.
    const int64_t most_strips = tail.backward ? 1 : quotient(w, 32);
    const int64_t most_rows = larger(280, 19200 / s.channels);  // rings of 600 kB where channels are few
    double best = 0;
    for (int64_t group = 2; group <= 8; group *= 2) {
      for (int64_t strips = 1; strips <= most_strips; ++strips) {
        const int64_t strip = quotient(w, strips), run = strips > 1 ? strip + 2 : w + 1, rows = group * run;
        const double cost = double(strips * quotient(rows, kProductRows) * kProductRows) / double(group);
        if (best > 0 && (rows > most_rows || cost >= best)) continue;
        best = rows > most_rows ? 1e30 : cost;
        s.strips = strips, s.strip = strip, s.run = run, s.group = group;
      }
    }
    s.lead = s.strips > 1 ? 1 : 0;
    s.slots = 2 * s.group;
  }
  s.piece = smaller(2 * w, larger(8, 2048 / s.channels));
  // A pixel and, in the plane of odd rows and together also in x, a row of zeros come before the first row.
  s.x_bytes = aligned(((s.together ? s.slots + 1 : s.group + 1) * s.run + 1) * s.pixel * int64_t(sizeof(T)));
  s.plane_bytes = aligned(((s.slots + 1) * 2 * s.run + 1) * s.channels * 4);
  s.piece_bytes = aligned(2 * s.piece * s.channels * 4);
  return s;
}

// Pixels of x times the styles, zeros put after the channels; the pixels at `coming` (or null) are wanted next.
template <class T>
void pack_pixels(const T* x, const T* coming, const float* styles, int64_t pixels, int64_t inputs, const Plan& s,
                 T* out) {
  const bool unit = sizeof(T) == 2 && bfloat16_unit() != Bfloat16Unit::none;
  const int64_t whole = inputs / kLanes<T> * kLanes<T>;
  for (int64_t i = 0; i < pixels; ++i, x += inputs, out += s.pixel) {
    if (coming) {
      for (int64_t c = 0; c < inputs; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(coming + i * inputs + c, 0, 2);
    }
    if (styles) {
      for (int64_t c = 0; c < whole; c += kLanes<T>) {
        store_stored<T>(out + c, rounded<T>(unit, load_lanes(x + c) * load_lanes(styles + c)));
      }
      for (int64_t c = whole; c < inputs; ++c) store(out[c], load(x[c]) * styles[c]);
    } else {
      std::memcpy(out, x, inputs * sizeof(T));
    }
    if (s.inner > inputs) std::memset(out + inputs, 0, (s.inner - inputs) * sizeof(T));
  }
}

// Row m of x from column `first` on, zeros outside of it.
template <class T>
void pack_row(const FrozenConv& p, const Plan& s, int64_t sample, int64_t m, int64_t first, int64_t run, T* out) {
  if (m < 0 || m >= p.height) {
    std::memset(out, 0, run * s.pixel * sizeof(T));
    return;
  }
  const int64_t before = first < 0 ? -first : 0, pixels = smaller(p.width, first + run) - (first + before);
  const T* x = static_cast<const T*>(p.x) + sample * p.x_stride + (m * p.width + first + before) * p.inputs;
  const T* coming = m + s.group < p.height ? x + s.group * p.width * p.inputs : nullptr;
  std::memset(out, 0, before * s.pixel * sizeof(T));
  pack_pixels(x, coming, p.styles ? p.styles + sample * p.styles_stride : nullptr, pixels, p.inputs, s,
              out + before * s.pixel);
  std::memset(out + (before + pixels) * s.pixel, 0, (run - before - pixels) * s.pixel * sizeof(T));
}

// Some phases of rows of u, for one panel of channels. x: row 0 of even; odd begins odd_before rows earlier.
template <class T>
void multiply(const FrozenConv& p, const Plan& s, int64_t run, const T* x, float* even, int64_t even_rows, float* odd,
              int64_t odd_before, int64_t odd_rows, int64_t panel, int64_t first_phase, int64_t last_phase) {
  const int64_t tap_size = s.inner * matrix_columns();
  int64_t offsets[kTaps];
  for (int64_t t = 0; t < kTaps; ++t) {
    offsets[t] = (kTapRow[t] == 2 ? -run * s.pixel : 0) + (kTapColumn[t] == 2 ? -s.pixel : 0);
  }
  for (int64_t i = first_phase; i < last_phase; ++i) {
    const Phase& phase = kPhases[i];
    MatrixProduct q{};
    q.a = phase.row ? x - odd_before * run * s.pixel : x;
    q.a_stride = s.pixel, q.inner = s.inner;
    q.offsets = offsets + phase.first_tap, q.taps = phase.taps;
    q.b = static_cast<const T*>(p.packed) + (panel * kTaps + phase.first_tap) * tap_size;
    q.c = (phase.row ? odd : even) + phase.column * s.channels + panel * matrix_columns();
    q.c_stride = 2 * s.channels;
    q.rows = (phase.row ? odd_rows : even_rows) * run;
    q.first_panel = 0, q.last_panel = 1;
    matrix_multiply<T>(q);
  }
}

struct Five {
  const float* rows[5];
};

// Two rows of the result from five rows of u, each from the column before the first on.
void filter_rows(const float* const* rows, const float* taps, int64_t columns, int64_t channels, int64_t pixel,
                 float* out, int64_t out_stride) {
  const float t0 = taps[0], t1 = taps[1], t2 = taps[2], t3 = taps[3];
  using V = Lanes<float>;
  for (int64_t c = 0; c < channels; c += kLanes<float>) {
    const float* u[5];
    for (int i = 0; i < 5; ++i) u[i] = rows[i] + c;
    V a[4], b[4];  // vertical sums of the columns at hand, for the upper and the lower row
    const auto column = [&](int64_t j, V& upper, V& lower) __attribute__((always_inline)) {
      V v[5];
      for (int i = 0; i < 5; ++i) v[i] = load_lanes(u[i] + j * pixel);
      upper = v[0] * t0 + v[1] * t1 + v[2] * t2 + v[3] * t3;
      lower = v[1] * t0 + v[2] * t1 + v[3] * t2 + v[4] * t3;
    };
    for (int64_t j = 0; j < 3; ++j) column(j, a[j], b[j]);
    float* to = out + c;
    for (int64_t j = 0; j < columns; ++j, to += pixel) {
      column(j + 3, a[3], b[3]);
      store_stored<float>(to, a[0] * t0 + a[1] * t1 + a[2] * t2 + a[3] * t3);
      store_stored<float>(to + out_stride, b[0] * t0 + b[1] * t1 + b[2] * t2 + b[3] * t3);
      for (int i = 0; i < 3; ++i) a[i] = a[i + 1], b[i] = b[i + 1];
    }
  }
}

// Filter and tail of rows [2 first_row, 2 last_row) and columns [first, last) of the result. rows_of(m) are the rows
// 2 m - 1 to 2 m + 3 of u, from column `first` on. Pieces of columns first: most rows of a piece are wanted twice.
template <class T, class RowsOf>
void finish_rows(const FrozenConv& p, const Tail& tail, const Plan& s, const RowsOf& rows_of, int64_t sample,
                 int64_t first_row, int64_t last_row, int64_t first, int64_t last, float* values, void* scratch) {
  for (int64_t column = first; column < last; column += s.piece) {
    const int64_t columns = smaller(s.piece, last - column);
    for (int64_t m = first_row; m < last_row; ++m) {
      Five u = rows_of(m);
      for (const float*& row : u.rows) row += (column - first - 1) * s.channels;
      filter_rows(u.rows, p.taps, columns, s.panels * matrix_columns(), s.channels, values, columns * s.channels);
      tail_block<T>(tail, {sample, 2 * m, column, 2, columns, values, columns * s.channels, s.channels}, scratch);
    }
  }
}

// Few pixels, many weights: the threads share the panels, so that each weight is read once, then the bands.
template <class T>
void run_together(const FrozenConv& p, const Tail& tail, const Plan& s, char* work, const Parallel& parallel) {
  const int64_t h = p.height, w = p.width, run = s.run, result_rows = 2 * h;
  const int64_t band = band_rows(result_rows, 2 * w), bands = band_count(result_rows, 2 * w);
  const int64_t pair = 2 * run * s.channels;  // a row of a plane
  T* zero_row = reinterpret_cast<T*>(work);
  T* x = zero_row + (1 + run) * s.pixel;
  float* even = reinterpret_cast<float*>(work + s.x_bytes) + s.channels;
  float* odd = reinterpret_cast<float*>(work + s.x_bytes + s.plane_bytes) + s.channels + pair;
  char* own = work + s.x_bytes + 2 * s.plane_bytes;
  const int64_t own_bytes = s.piece_bytes + aligned(tail_scratch<T>(tail));
  std::memset(zero_row, 0, (1 + run) * s.pixel * sizeof(T));
  std::memset(even - s.channels, 0, s.channels * sizeof(float));
  std::memset(odd - pair - s.channels, 0, (pair + s.channels) * sizeof(float));

  for (int64_t first = 0; first < p.samples; first += s.samples) {
    const int64_t samples = smaller(s.samples, p.samples - first), rows = samples * (h + 1);
    parallel(rows, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) {
        pack_row(p, s, first + i / (h + 1), i % (h + 1), 0, run, x + i * run * s.pixel);
      }
    });
    // Of each panel the four taps of one phase, then the five of the others. The last odd row is below the map.
    parallel(2 * s.panels, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) {
        multiply(p, s, run, x, even, rows, odd, 0, rows - 1, i / 2, i % 2, i % 2 ? 4 : 1);
      }
    });
    std::memset(odd + (rows - 1) * pair, 0, pair * sizeof(float));
    parallel(samples * bands, [&](int64_t begin, int64_t end, int64_t slot) {
      float* values = reinterpret_cast<float*>(own + slot * own_bytes);
      char* scratch = own + slot * own_bytes + s.piece_bytes;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t sample = first + i / bands, last_row = smaller(result_rows, (i % bands + 1) * band);
        tail_begin<T>(tail, sample, scratch);
        const auto rows_of = [&](int64_t m) {
          const int64_t at = (i / bands * (h + 1) + m) * pair;
          return Five{{odd + at - pair, even + at, odd + at, even + at + pair, odd + at + pair}};
        };
        finish_rows<T>(p, tail, s, rows_of, sample, i % bands * band / 2, last_row / 2, 0, 2 * w, values, scratch);
        tail_end<T>(tail, sample, i % bands, scratch);
      }
    });
  }
}

// One thread's rings.
template <class T>
struct Rings {
  T* x;  // row 0: that before the rows at hand
  float *even, *odd;
  float* values;
  char* scratch;
};

// Rows [2 first, 2 last) of the result, in columns [2 left, 2 right).
template <class T>
void run_strip(const FrozenConv& p, const Tail& tail, const Plan& s, const Rings<T>& rings, int64_t sample,
               int64_t first, int64_t last, int64_t left, int64_t right) {
  const int64_t band = band_rows(2 * p.height, 2 * p.width);
  const int64_t run = s.lead ? right - left + 2 : s.run, pair = 2 * run * s.channels;
  const auto slot = [&](int64_t m) { return (m - first - 1 + s.slots) % s.slots * pair; };  // m >= first - 1
  const auto rows_of = [&](int64_t m) {
    const float *even = rings.even + 2 * s.lead * s.channels, *odd = rings.odd + 2 * s.lead * s.channels;
    return Five{{odd + slot(m - 1), even + slot(m), odd + slot(m), even + slot(m + 1), odd + slot(m + 1)}};
  };
  if (!s.lead) {  // the column after the last, which is that before the first of the next row
    for (int64_t i = 0; i <= s.slots; ++i) {
      std::memset(rings.even + i * pair - s.channels, 0, s.channels * sizeof(float));
      std::memset(rings.odd + i * pair - s.channels, 0, s.channels * sizeof(float));
    }
  }
  std::memset(rings.x - s.pixel, 0, s.pixel * sizeof(T));
  // Rows m0, ... of x, the first of them only with its odd rows and the row before.
  int64_t next = first + 1;  // row of x
  for (int64_t m0 = first - 1; m0 <= last; m0 = next, next = smaller(last, m0 + s.group - 1) + 1) {
    const bool start = m0 < first;
    if (start) pack_row(p, s, sample, m0, left - s.lead, run, rings.x);
    const int64_t even_first = start ? first : m0, count = next - even_first;
    for (int64_t i = 0; i < count; ++i) {
      pack_row(p, s, sample, even_first + i, left - s.lead, run, rings.x + (i + 1) * run * s.pixel);
    }
    const int64_t odd_first = m0 < 0 ? 0 : m0, odd_last = smaller(next, p.height);
    for (int64_t panel = 0; panel < s.panels; ++panel) {
      multiply(p, s, run, rings.x + run * s.pixel, rings.even + slot(even_first), count, rings.odd + slot(odd_first),
               even_first - odd_first, odd_last - odd_first, panel, 0, 4);
    }
    if (m0 < 0) std::memset(rings.odd + slot(m0), 0, pair * sizeof(float));
    if (next > p.height) std::memset(rings.odd + slot(p.height), 0, pair * sizeof(float));
    std::memmove(rings.x, rings.x + count * run * s.pixel, run * s.pixel * sizeof(T));
    for (int64_t m = start ? first : m0 - 1, stop; m < next - 1; m = stop) {
      stop = smaller(next - 1, (2 * m / band + 1) * band / 2);
      if (2 * m % band == 0) tail_begin<T>(tail, sample, rings.scratch);
      finish_rows<T>(p, tail, s, rows_of, sample, m, stop, 2 * left, 2 * right, rings.values, rings.scratch);
      if (2 * stop % band == 0 || stop == p.height) tail_end<T>(tail, sample, 2 * m / band, rings.scratch);
    }
  }
}

template <class T>
int64_t rings_bytes(const Plan& s, const Tail& tail) {
  return s.x_bytes + 2 * s.plane_bytes + s.piece_bytes + aligned(tail_scratch<T>(tail));
}

// Many pixels: each thread runs through bands of its own.
template <class T>
void run_apart(const FrozenConv& p, const Tail& tail, const Plan& s, char* work, const Parallel& parallel) {
  const int64_t band = band_rows(2 * p.height, 2 * p.width), bands = band_count(2 * p.height, 2 * p.width);
  // Whoever begins in the middle of a map computes a row of u that another has, too: at least 64 rows of x at a time.
  const int64_t all = p.samples * bands, threads = parallel.threads;
  const int64_t units = smaller(all, larger(threads, smaller(8 * threads, p.samples * p.height / 64)));
  parallel(units, [&](int64_t begin, int64_t end, int64_t slot) {
    char* at = work + slot * rings_bytes<T>(s, tail);
    Rings<T> rings;
    rings.x = reinterpret_cast<T*>(at) + s.pixel;
    rings.even = reinterpret_cast<float*>(at + s.x_bytes) + s.channels;
    rings.odd = reinterpret_cast<float*>(at + s.x_bytes + s.plane_bytes) + s.channels;
    rings.values = reinterpret_cast<float*>(at + s.x_bytes + 2 * s.plane_bytes);
    rings.scratch = at + s.x_bytes + 2 * s.plane_bytes + s.piece_bytes;
    const int64_t last = all * end / units;
    for (int64_t first = all * begin / units; first < last;) {
      const int64_t sample = first / bands, stop = smaller(last, (sample + 1) * bands);
      const int64_t first_row = first % bands * band, last_row = smaller(2 * p.height, (stop - sample * bands) * band);
      for (int64_t left = 0; left < p.width; left += s.strip) {
        run_strip<T>(p, tail, s, rings, sample, first_row / 2, last_row / 2, left, smaller(p.width, left + s.strip));
      }
      first = stop;
    }
  });
}

}  // namespace

template <class T>
int64_t up_packed_size(int64_t inputs, int64_t outputs) {
  return quotient(outputs, matrix_columns()) * kTaps * matrix_packed_size<T>(1, inputs, matrix_columns()) *
         int64_t(sizeof(T));
}

// Panel after panel, in each the taps in our order: some neighbouring taps of one panel are a packed matrix, too.
template <class T>
void up_pack(const float* weight, int64_t inputs, int64_t outputs, void* packed) {
  T* out = static_cast<T*>(packed);
  for (int64_t first = 0; first < outputs; first += matrix_columns()) {
    const int64_t columns = smaller(matrix_columns(), outputs - first);
    for (int64_t t = 0; t < kTaps; ++t, out += matrix_packed_size<T>(1, inputs, matrix_columns())) {
      const float* source = weight + first * inputs * kTaps + kTapRow[t] * 3 + kTapColumn[t];
      matrix_pack<T>(source, 0, kTaps, inputs * kTaps, 1, inputs, columns, out);
    }
  }
}

template <class T>
int64_t up_work(const FrozenConv& p, const Tail& tail, int64_t threads) {
  const Plan s = plan_of<T>(p, tail);
  if (!s.together) return threads * rings_bytes<T>(s, tail);
  return s.x_bytes + 2 * s.plane_bytes + threads * (s.piece_bytes + aligned(tail_scratch<T>(tail)));
}

template <class T>
void up_run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel) {
  const Plan s = plan_of<T>(p, tail);
  if (s.together) {
    run_together<T>(p, tail, s, work, parallel);
  } else {
    run_apart<T>(p, tail, s, work, parallel);
  }
}

#define INSTANTIATE(T)                                                  \
  template int64_t up_packed_size<T>(int64_t, int64_t);                 \
  template void up_pack<T>(const float*, int64_t, int64_t, void*);      \
  template int64_t up_work<T>(const FrozenConv&, const Tail&, int64_t); \
  template void up_run<T>(const FrozenConv&, const Tail&, char*, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(bfloat16)

}  // namespace fastinv::FASTINV_ISA
