// Kind "down", the adjoint of "up": g = adjoint of the FIR filter on x, conv2d(g, W, stride 2), and the tail.
//
// g of a block of the result is laid out for one product of all its rows: three copies, one for each column of taps, of
// the pixels of g that it meets, and the even rows of g apart from the odd ones. Pixel n of the block then begins
// `inner` elements after pixel n - 1 in each of them, also from one row to the next.
#include <cstring>

#include "frozen_conv.h"
#include "lanes.h"
#include "matrix.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr int64_t kTaps = 9;
constexpr int64_t kTogether = 256;  // pixels of the result

FASTINV_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTINV_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTINV_INLINE int64_t quotient(int64_t a, int64_t b) { return (a + b - 1) / b; }  // rounded up
FASTINV_INLINE int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// How a layer is cut; by its shape alone.
struct Plan {
  int64_t height, width, band, bands;  // of the result
  bool together;                       // all threads share the weights of some samples; else each has its own bands
  int64_t samples;                     // at a time, together
  int64_t rows, columns;               // of a block of the result
  int64_t pixels;                      // of a product; its part of g and of the weights stays in L2
  int64_t inner, panels, channels;     // of g; of the weights; of the result in whole panels
  int64_t pixel;                       // elements from pixel to pixel of g
  int64_t g_bytes, c_bytes;            // of a block

  FASTINV_INLINE int64_t even_size() const { return (rows + 1) * columns * pixel; }
  FASTINV_INLINE int64_t odd_size() const { return rows * columns * pixel; }
};

template <class T>
Plan plan_of(const FrozenConv& p) {
  Plan s{};
  s.height = p.height / 2, s.width = p.width / 2;
  s.band = band_rows(s.height, s.width), s.bands = band_count(s.height, s.width);
  s.inner = matrix_inner<T>(p.inputs);
  // Pixels that begin a power of two apart would compete for the same places of the first-level cache.
  const int64_t line = 64 / int64_t(sizeof(T));
  s.pixel = s.inner + (s.inner % (16 * line) == 0 ? line : 0);
  s.panels = quotient(p.outputs, matrix_columns());
  s.channels = s.panels * matrix_columns();
  s.together = s.height * s.width <= kTogether;
  s.pixels = larger(64, smaller(128, 130000 / (s.inner * int64_t(sizeof(T)))));
  s.samples = larger(1, smaller(p.samples, 4 * kTogether / larger(1, s.height * s.width)));
  s.rows = s.together ? s.height : smaller(s.height, s.band);
  s.columns = s.width;
  if (!s.together) {
    const int64_t strips = quotient(s.width, larger(8, s.pixels / s.rows));
    s.columns = quotient(s.width, strips);
    s.pixels = s.rows * s.columns;
  }
  s.g_bytes = aligned(3 * (s.even_size() + s.odd_size()) * int64_t(sizeof(T)));
  s.c_bytes = aligned(s.rows * s.columns * s.channels * 4);
  return s;
}

// Rows 2 i and, if odd is set, 2 i + 1 of g, in the columns that the block [first, first + columns) of the result
// meets. x: rows 2 i - 2 to 2 i + 2, null outside of the map. even, odd: where row i of the first copy begins.
template <bool with_odd, class T>
void filter_rows(const T* const* x, const T* coming, const float* taps, int64_t width, int64_t inputs, int64_t pixel,
                 int64_t first, int64_t columns, T* even, int64_t even_size, T* odd, int64_t odd_size) {
  const float t0 = taps[3], t1 = taps[2], t2 = taps[1], t3 = taps[0];
  using V = Lanes<float>;
  const bool unit = sizeof(T) == 2 && bfloat16_unit() != Bfloat16Unit::none;
  bool all = true;
  for (int i = 0; i < 4 + with_odd; ++i) all = all && x[i];
  const auto channels = [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    const bool new_line = coming && c * int64_t(sizeof(T)) % 64 == 0;
    const auto column = [&](int64_t at, V& upper, V& lower) __attribute__((always_inline)) {
      V v[5] = {};
      if (at >= 0 && at < width) {
        if (all) {
          for (int i = 0; i < 4 + with_odd; ++i) v[i] = load_lanes(x[i] + at * inputs + c, count);
        } else {
          for (int i = 0; i < 4 + with_odd; ++i) {
            if (x[i]) v[i] = load_lanes(x[i] + at * inputs + c, count);
          }
        }
        if (new_line) {
          __builtin_prefetch(coming + at * inputs + c, 0, 2);
          __builtin_prefetch(coming + (width + at) * inputs + c, 0, 2);
        }
      }
      upper = v[0] * t0 + v[1] * t1 + v[2] * t2 + v[3] * t3;
      if constexpr (with_odd) lower = v[1] * t0 + v[2] * t1 + v[3] * t2 + v[4] * t3;
    };
    const auto sum = [&](const V* v) __attribute__((always_inline)) {
      return rounded<T>(unit, v[0] * t0 + v[1] * t1 + v[2] * t2 + v[3] * t3);
    };
    V a[5], b[5];  // vertical sums of five neighbouring columns, for the upper and the lower row
    for (int64_t j = 0; j < 3; ++j) column(2 * first + j - 2, a[j], b[j]);
    T *to_even = even + c, *to_odd = odd + c;
    for (int64_t n = 0; n <= columns; ++n, to_even += pixel, to_odd += pixel) {
      column(2 * (first + n) + 1, a[3], b[3]);
      const Lanes<T> upper = sum(a), lower = with_odd ? sum(b) : Lanes<T>{};
      if (n > 0) {
        store_stored<T>(to_even + 2 * even_size - pixel, upper, count);
        if constexpr (with_odd) store_stored<T>(to_odd + 2 * odd_size - pixel, lower, count);
      }
      if (n == columns) break;
      store_stored<T>(to_even, upper, count);
      if constexpr (with_odd) store_stored<T>(to_odd, lower, count);
      column(2 * (first + n) + 2, a[4], b[4]);
      store_stored<T>(to_even + even_size, sum(a + 1), count);
      if constexpr (with_odd) store_stored<T>(to_odd + odd_size, sum(b + 1), count);
      for (int i = 0; i < 3; ++i) a[i] = a[i + 2], b[i] = b[i + 2];
    }
  };
  int64_t c = 0;
  for (; c + kLanes<T> <= inputs; c += kLanes<T>) channels(c, kLanes<T>);
  if (c < inputs) channels(c, inputs - c);
}

// Row pairs [begin, end) of g for a block of the result that begins at (row, column); pair s.rows has no odd row.
template <class T>
void filter_block(const FrozenConv& p, const Plan& s, int64_t sample, int64_t row, int64_t column, int64_t begin,
                  int64_t end, T* g) {
  const T* from = static_cast<const T*>(p.x) + sample * p.x_stride;
  const int64_t step = s.columns * s.pixel;                                 // a row of a copy
  const int64_t piece = larger(8, 3200 / (p.inputs * int64_t(sizeof(T))));  // columns whose rows of x stay in L1
  for (int64_t i = begin; i < end; ++i) {
    const T* x[5];
    for (int64_t j = 0; j < 5; ++j) {
      const int64_t at = 2 * (row + i) + j - 2;
      x[j] = at >= 0 && at < p.height ? from + at * p.width * p.inputs : nullptr;
    }
    T *even = g + i * step, *odd = g + 3 * s.even_size() + i * step;
    if (s.inner > p.inputs) {
      for (int64_t copy = 0; copy < 3; ++copy) {
        std::memset(even + copy * s.even_size(), 0, step * sizeof(T));
        if (i < s.rows) std::memset(odd + copy * s.odd_size(), 0, step * sizeof(T));
      }
    }
    const int64_t next = 2 * (row + i) + 3;
    const T* coming = i < s.rows && next + 1 < p.height ? from + next * p.width * p.inputs : nullptr;
    for (int64_t first = 0; first < s.columns; first += piece) {
      const int64_t columns = smaller(piece, s.columns - first), at = first * s.pixel;
      if (i < s.rows) {
        filter_rows<true>(x, coming, p.taps, p.width, p.inputs, s.pixel, column + first, columns, even + at,
                          s.even_size(), odd + at, s.odd_size());
      } else {
        filter_rows<false>(x, coming, p.taps, p.width, p.inputs, s.pixel, column + first, columns, even + at,
                           s.even_size(), odd + at, s.odd_size());
      }
    }
  }
}

// Pixels [begin, end) of a block.
template <class T>
void multiply(const FrozenConv& p, const Plan& s, const T* g, float* c, int64_t begin, int64_t end, int64_t first_panel,
              int64_t last_panel) {
  int64_t offsets[kTaps];
  for (int64_t x = 0; x < 3; ++x) {
    offsets[x] = x * s.even_size();
    offsets[3 + x] = 3 * s.even_size() + x * s.odd_size();
    offsets[6 + x] = offsets[x] + s.columns * s.pixel;
  }
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    MatrixProduct q{};
    q.a = g + begin * s.pixel;
    q.a_stride = s.pixel, q.inner = s.inner;
    q.offsets = offsets, q.taps = kTaps;
    q.b = p.packed;
    q.c = c + begin * s.channels, q.c_stride = s.channels;
    q.rows = end - begin;
    q.first_panel = panel, q.last_panel = panel + 1;
    matrix_multiply<T>(q);
  }
}

// Few pixels, many weights: the threads share the panels, so that each weight is read by one of them, then the bands.
template <class T>
void run_together(const FrozenConv& p, const Tail& tail, const Plan& s, char* work, const Parallel& parallel) {
  T* g = reinterpret_cast<T*>(work);
  float* c = reinterpret_cast<float*>(work + s.samples * s.g_bytes);
  char* scratch = work + s.samples * (s.g_bytes + s.c_bytes);
  const int64_t g_size = s.g_bytes / int64_t(sizeof(T)), c_size = s.c_bytes / 4, all = s.rows * s.columns;
  for (int64_t first = 0; first < p.samples; first += s.samples) {
    const int64_t samples = smaller(s.samples, p.samples - first);
    parallel(samples * (s.rows + 1), [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t sample = i / (s.rows + 1), pair = i % (s.rows + 1);
        filter_block<T>(p, s, first + sample, 0, 0, pair, pair + 1, g + sample * g_size);
      }
    });
    parallel(s.panels, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t sample = 0; sample < samples; ++sample) {
        for (int64_t pixel = 0; pixel < all; pixel += s.pixels) {
          multiply<T>(p, s, g + sample * g_size, c + sample * c_size, pixel, smaller(all, pixel + s.pixels), begin,
                      end);
        }
      }
    });
    parallel(samples * s.bands, [&](int64_t begin, int64_t end, int64_t slot) {
      char* own = scratch + slot * aligned(tail_scratch<T>(tail));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t sample = i / s.bands, band = i % s.bands, row = band * s.band;
        const float* values = c + sample * c_size + row * s.columns * s.channels;
        tail_begin<T>(tail, first + sample, own);
        tail_block<T>(tail,
                      {first + sample, row, 0, smaller(s.band, s.height - row), s.columns, values,
                       s.columns * s.channels, s.channels},
                      own);
        tail_end<T>(tail, first + sample, band, own);
      }
    });
  }
}

// Many pixels: each thread has bands of its own.
template <class T>
void run_apart(const FrozenConv& p, const Tail& tail, const Plan& plan, char* work, const Parallel& parallel) {
  const int64_t own_bytes = plan.g_bytes + plan.c_bytes + aligned(tail_scratch<T>(tail));
  parallel(p.samples * plan.bands, [&](int64_t begin, int64_t end, int64_t slot) {
    T* g = reinterpret_cast<T*>(work + slot * own_bytes);
    float* c = reinterpret_cast<float*>(work + slot * own_bytes + plan.g_bytes);
    char* scratch = work + slot * own_bytes + plan.g_bytes + plan.c_bytes;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / plan.bands, band = i % plan.bands, row = band * plan.band;
      Plan s = plan;  // of a block, which may be smaller at the edges
      s.rows = smaller(plan.rows, s.height - row);
      tail_begin<T>(tail, sample, scratch);
      for (int64_t column = 0; column < s.width; column += plan.columns) {
        s.columns = smaller(plan.columns, s.width - column);
        filter_block<T>(p, s, sample, row, column, 0, s.rows + 1, g);
        multiply<T>(p, s, g, c, 0, s.rows * s.columns, 0, s.panels);
        tail_block<T>(tail, {sample, row, column, s.rows, s.columns, c, s.columns * s.channels, s.channels}, scratch);
      }
      tail_end<T>(tail, sample, band, scratch);
    }
  });
}

}  // namespace

template <class T>
int64_t down_packed_size(int64_t inputs, int64_t outputs) {
  return matrix_packed_size<T>(kTaps, inputs, outputs) * int64_t(sizeof(T));
}

template <class T>
void down_pack(const float* weight, int64_t inputs, int64_t outputs, void* packed) {
  matrix_pack<T>(weight, 1, kTaps, inputs * kTaps, kTaps, inputs, outputs, packed);
}

template <class T>
int64_t down_work(const FrozenConv& p, const Tail& tail, int64_t threads) {
  const Plan s = plan_of<T>(p);
  const int64_t blocks = s.together ? s.samples : threads;
  return blocks * (s.g_bytes + s.c_bytes) + threads * aligned(tail_scratch<T>(tail));
}

template <class T>
void down_run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel) {
  const Plan s = plan_of<T>(p);
  if (s.together) {
    run_together<T>(p, tail, s, work, parallel);
  } else {
    run_apart<T>(p, tail, s, work, parallel);
  }
}

#define INSTANTIATE(T)                                                    \
  template int64_t down_packed_size<T>(int64_t, int64_t);                 \
  template void down_pack<T>(const float*, int64_t, int64_t, void*);      \
  template int64_t down_work<T>(const FrozenConv&, const Tail&, int64_t); \
  template void down_run<T>(const FrozenConv&, const Tail&, char*, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(bfloat16)

}  // namespace fastinv::FASTINV_ISA
