// The direct 3x3 convolution: nine shifted products on packed rows, whose sums go through the tail while they are in
// the cache.
//
// Packed rows: the input times the styles with zeros around it. Where rows are packed in their whole width one pixel of
// zeros between two of them serves both: pixel (i, j) is i * (width + 1) + j + 1. Input channels are multiplied in
// blocks (all taps of a block, then the next block), so that the pixels that neighbouring taps share are still in L1.
//
// Schedules, chosen by shape alone: large maps by bands, each a matter of one thread, which keeps the two rows that the
// next band needs, too. Small maps all threads together, samples side by side: pack, then panels of columns of the
// weight, each of which is read once, then the tail. The order of the sums is the same in both.
#include <algorithm>

#include "frozen_conv.h"
#include "lanes.h"
#include "matrix.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr int64_t kBlock = 128;       // input channels
constexpr int64_t kPacked = 1 << 20;  // bytes of packed rows
constexpr int64_t kSums = 1 << 18;    // bytes of sums

FASTINV_INLINE int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Blocks of input channels of equal size.
template <class T>
struct Blocks {
  int64_t inner, count;  // channels of a block, padded
  explicit Blocks(int64_t inputs) {
    const int64_t all = matrix_inner<T>(inputs);
    count = (all + kBlock - 1) / kBlock;
    inner = count > 1 ? round_up((all + count - 1) / count, 32) : all;
  }
};

template <class T>
struct Plan {
  const FrozenConv& p;
  Blocks<T> blocks;
  int64_t pixel, panels, columns;  // values of a pixel packed; panels and values of a pixel of sums
  int64_t band, bands;             // rows of a band, bands of a sample
  bool together;
  int64_t strip, pitch;  // pixels of a row that are packed at a time; from row to row
  int64_t tile;          // pixels of a row that are multiplied at a time
  int64_t packed, sums;  // bytes

  explicit Plan(const FrozenConv& p) : p(p), blocks(p.inputs) {
    pixel = blocks.inner * blocks.count;
    panels = (p.outputs + matrix_columns() - 1) / matrix_columns();
    columns = panels * matrix_columns();
    band = std::min(band_rows(p.height, p.width), p.height), bands = band_count(p.height, p.width);
    together = bands * p.samples <= 8 && p.samples * p.height * p.width <= 2048;
    strip = together ? p.width : part(p.width, kPacked / ((band + 2) * pixel * static_cast<int64_t>(sizeof(T))));
    tile = together ? p.width : part(strip, std::max<int64_t>(128, kSums / (band * columns * 4)));
    pitch = strip < p.width ? strip + 2 : p.width + 1;
    const int64_t rows = together ? p.samples * (p.height + 1) + 1 : band + 2;
    packed = round_up((rows * pitch + 1) * pixel * sizeof(T), 64);
    sums = round_up((together ? run(p.samples * (p.height + 1) - 1) : run(band)) * columns * 4, 64);
  }
  // All of a row, or equal parts of not much more than `wanted` pixels.
  static int64_t part(int64_t all, int64_t wanted) {
    const int64_t count = std::max<int64_t>(1, all / std::max<int64_t>(wanted, 32));
    return count > 1 ? round_up((all + count - 1) / count, 32) : all;
  }
  // From row to row of the sums; pixels from the first to the last one of some rows.
  int64_t line() const { return tile < strip ? tile : pitch; }
  int64_t run(int64_t rows) const { return (rows - 1) * line() + tile; }
};

template <int64_t N>
struct Count {
  static constexpr int64_t value = N;
};

// Packs `count` pixels from x on, times the styles; some registers of channels at a time, whose styles stay there.
template <class T>
void pack_pixels(const Plan<T>& plan, const T* x, const float* styles, int64_t count, T* out) {
  const int64_t inputs = plan.p.inputs, pixel = plan.pixel;
  if (!styles && pixel == inputs) {
    std::memcpy(out, x, count * inputs * sizeof(T));
    return;
  }
  constexpr int64_t kStep = kLanes<T>, kGroup = 4;
  const bool unit = bfloat16_unit() != Bfloat16Unit::none;
  int64_t c = 0;
  const auto pack = [&](auto size) {
    constexpr int64_t kSize = decltype(size)::value;
    Lanes<float> style[kSize];
    for (int64_t i = 0; i < kSize; ++i)
      style[i] = styles ? load_lanes<float>(styles + c + i * kStep) : 1.0f - Lanes<float>{};
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t i = 0; i < kSize; ++i) {
        const Lanes<T> packed = rounded<T>(unit, load_lanes<T>(x + j * inputs + c + i * kStep) * style[i]);
        std::memcpy(out + j * pixel + c + i * kStep, &packed, sizeof packed);
      }
    }
    c += kSize * kStep;
  };
  while (c + kGroup * kStep <= inputs) pack(Count<kGroup>());
  while (c + kStep <= inputs) pack(Count<1>());
  for (int64_t j = 0; c < pixel && j < count; ++j) {
    for (int64_t i = c; i < pixel; ++i) {
      store(out[j * pixel + i], i < inputs ? load(x[j * inputs + i]) * (styles ? styles[i] : 1.0f) : 0.0f);
    }
  }
}

// Columns first to last of a row, with zeros where there is nothing. `last` may be beyond the row.
template <class T>
void pack_row(const Plan<T>& plan, int64_t sample, int64_t row, int64_t first, int64_t last, T* out) {
  const FrozenConv& p = plan.p;
  const int64_t begin = row < 0 || row >= p.height ? last : std::max<int64_t>(first, 0);
  const int64_t end = std::max(begin, std::min(last, p.width));
  std::memset(out, 0, (begin - first) * plan.pixel * sizeof(T));
  std::memset(out + (end - first) * plan.pixel, 0, (last - end) * plan.pixel * sizeof(T));
  if (begin == end) return;
  const T* x = static_cast<const T*>(p.x) + sample * p.x_stride + (row * p.width + begin) * p.inputs;
  const float* styles = p.styles ? p.styles + sample * p.styles_stride : nullptr;
  pack_pixels(plan, x, styles, end - begin, out + (begin - first) * plan.pixel);
}

// Some panels of columns for `rows` pixels in a run, of which the first one's neighbour above and to the left is at
// `a`.
template <class T>
void multiply(const Plan<T>& plan, const T* a, float* c, int64_t rows, int64_t first_panel, int64_t last_panel) {
  const int64_t inner = plan.blocks.inner, count = plan.blocks.count;
  const int64_t block_size = matrix_packed_size<T>(9, inner, 1), panel_size = count * block_size;
  const T* weight = static_cast<const T*>(plan.p.packed);
  int64_t offsets[9];
  for (int64_t t = 0; t < 9; ++t) offsets[t] = (t / 3 * plan.pitch + t % 3) * plan.pixel;
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int64_t block = 0; block < count; ++block) {
      matrix_multiply<T>({a + block * inner, plan.pixel, offsets, 9, inner,
                          weight + panel * panel_size + block * block_size, c + panel * matrix_columns(), plan.columns,
                          rows, 0, 1, block > 0});
    }
  }
}

template <class T>
void run_bands(const Plan<T>& plan, const Tail& tail, char* work, const Parallel& parallel) {
  const FrozenConv& p = plan.p;
  const int64_t bytes = plan.packed + plan.sums + round_up(tail_scratch<T>(tail), 64);
  const int64_t row_size = plan.pitch * plan.pixel;
  parallel(p.samples * plan.bands, [&](int64_t begin, int64_t end, int64_t slot) {
    T* a = reinterpret_cast<T*>(work + slot * bytes);
    float* c = reinterpret_cast<float*>(work + slot * bytes + plan.packed);
    void* scratch = work + slot * bytes + plan.packed + plan.sums;
    std::memset(a + (plan.band + 2) * row_size, 0, plan.pixel * sizeof(T));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t sample = unit / plan.bands, band = unit % plan.bands, row = band * plan.band;
      const int64_t rows = std::min(plan.band, p.height - row);
      const int64_t kept = plan.strip == p.width && unit > begin && band > 0 ? 2 : 0;
      if (kept) std::memcpy(a, a + plan.band * row_size, 2 * row_size * sizeof(T));
      tail_begin<T>(tail, sample, scratch);
      for (int64_t strip = 0; strip < p.width; strip += plan.strip) {
        for (int64_t i = kept; i < plan.band + 2; ++i) {
          pack_row(plan, sample, row + i - 1, strip - 1, strip - 1 + plan.pitch, a + i * row_size);
        }
        const int64_t width = std::min(plan.strip, p.width - strip);
        for (int64_t column = 0; column < width; column += plan.tile) {
          const T* first = a + column * plan.pixel;
          const int64_t count = std::min(plan.tile, width - column);
          if (plan.tile == plan.strip) {
            multiply(plan, first, c, plan.run(rows), 0, plan.panels);
          } else {
            for (int64_t i = 0; i < rows; ++i) {
              multiply(plan, first + i * row_size, c + i * plan.tile * plan.columns, count, 0, plan.panels);
            }
          }
          tail_block<T>(tail, {sample, row, strip + column, rows, count, c, plan.line() * plan.columns, plan.columns},
                        scratch);
        }
      }
      tail_end<T>(tail, sample, band, scratch);
    }
  });
}

template <class T>
void run_together(const Plan<T>& plan, const Tail& tail, char* work, const Parallel& parallel) {
  const FrozenConv& p = plan.p;
  const int64_t line = p.height + 1, rows = p.samples * line;  // a row of zeros before each sample
  T* a = reinterpret_cast<T*>(work);
  float* c = reinterpret_cast<float*>(work + plan.packed);
  parallel(rows + 1, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = std::min(i / line, p.samples - 1), row = i - sample * line - 1;
      const int64_t last = i == rows ? plan.pitch : plan.pitch - 1;  // one more pixel after the last row
      pack_row(plan, sample, row, -1, last, a + i * plan.pitch * plan.pixel);
    }
  });
  const int64_t pixels = plan.run(rows - 1), pieces = (pixels + 255) / 256;
  const int64_t piece = round_up((pixels + pieces - 1) / pieces, 32);
  parallel(plan.panels * pieces, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % pieces * piece, last = std::min(first + piece, pixels);
      const int64_t panel = item / pieces;
      if (first < last) {
        multiply(plan, a + first * plan.pixel, c + first * plan.columns, last - first, panel, panel + 1);
      }
    }
  });
  const int64_t bytes = round_up(tail_scratch<T>(tail), 64);
  parallel(p.samples * plan.bands, [&](int64_t begin, int64_t end, int64_t slot) {
    void* scratch = work + plan.packed + plan.sums + slot * bytes;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t sample = unit / plan.bands, band = unit % plan.bands, row = band * plan.band;
      const float* values = c + (sample * line + row) * plan.pitch * plan.columns;
      const int64_t count = std::min(plan.band, p.height - row);
      tail_begin<T>(tail, sample, scratch);
      tail_block<T>(tail, {sample, row, 0, count, p.width, values, plan.pitch * plan.columns, plan.columns}, scratch);
      tail_end<T>(tail, sample, band, scratch);
    }
  });
}

}  // namespace

template <class T>
int64_t direct_packed_size(int64_t inputs, int64_t outputs) {
  const Blocks<T> blocks(inputs);
  return matrix_packed_size<T>(9 * blocks.count, blocks.inner, outputs) * static_cast<int64_t>(sizeof(T));
}

template <class T>
void direct_pack(const float* weight, int64_t inputs, int64_t outputs, void* packed) {
  const Blocks<T> blocks(inputs);
  const int64_t channels = blocks.inner * blocks.count;
  float* ordered = new float[9 * channels * outputs];  // [block][tap][channel][output]
  for (int64_t i = 0; i < 9 * channels; ++i) {
    const int64_t c = i / (9 * blocks.inner) * blocks.inner + i % blocks.inner, tap = i / blocks.inner % 9;
    for (int64_t o = 0; o < outputs; ++o)
      ordered[i * outputs + o] = c < inputs ? weight[(o * inputs + c) * 9 + tap] : 0;
  }
  matrix_pack<T>(ordered, blocks.inner * outputs, outputs, 1, 9 * blocks.count, blocks.inner, outputs, packed);
  delete[] ordered;
}

template <class T>
int64_t direct_work(const FrozenConv& p, const Tail& tail, int64_t threads) {
  const Plan<T> plan(p);
  const int64_t scratch = round_up(tail_scratch<T>(tail), 64), own = plan.packed + plan.sums;
  return plan.together ? own + threads * scratch : threads * (own + scratch);
}

template <class T>
void direct_run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel) {
  const Plan<T> plan(p);
  plan.together ? run_together(plan, tail, work, parallel) : run_bands(plan, tail, work, parallel);
}

#define INSTANTIATE(T)                                                      \
  template int64_t direct_packed_size<T>(int64_t, int64_t);                 \
  template void direct_pack<T>(const float*, int64_t, int64_t, void*);      \
  template int64_t direct_work<T>(const FrozenConv&, const Tail&, int64_t); \
  template void direct_run<T>(const FrozenConv&, const Tail&, char*, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(bfloat16)

}  // namespace fastinv::FASTINV_ISA
