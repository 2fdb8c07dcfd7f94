// The direct 3x3 convolution: nine shifted products on packed rows, whose sums go through the tail while they are in
// the cache.
//
// Packed rows: the input times the styles, zeros around it, `inner` values a pixel. Where a row is packed in its whole
// width one pixel of zeros between two rows serves both, so that pixel (i, j) is i * (width + 1) + j + 1.
//
// Schedules, chosen by shape alone: large maps in tiles of some columns of one band, each a matter of one thread. Small
// maps all threads together, samples side by side: pack, then panels of columns of the weight, each of which is read
// once, then the tail. The order of the sums is the same in both.
#include <algorithm>

#include "frozen_conv.h"
#include "matrix.h"

namespace fastinv::FASTINV_ISA {
namespace {

FASTINV_INLINE int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// The weight is cut into units, some taps by some input channels, such that what one panel of columns takes of a unit
// stays in the first-level cache while all pixels of a tile are multiplied with it.
template <class T>
struct Units {
  static constexpr int64_t kTerms = 512 / sizeof(T);
  int64_t inputs, outputs, channels, blocks, taps, tap_groups;

  Units(int64_t inputs, int64_t outputs) : inputs(inputs), outputs(outputs) {
    const int64_t inner = matrix_inner<T>(inputs), wanted = (inner + kTerms - 1) / kTerms;
    channels = round_up((inner + wanted - 1) / wanted, 32);
    blocks = (inner + channels - 1) / channels;
    taps = blocks > 1 || inner * 3 > kTerms ? 1 : inner * 9 > kTerms ? 3 : 9;
    tap_groups = 9 / taps;
  }
  int64_t count() const { return blocks * tap_groups; }
  int64_t first_channel(int64_t unit) const { return unit % blocks * channels; }
  int64_t channel_count(int64_t unit) const { return std::min(inputs - first_channel(unit), channels); }
  int64_t first_tap(int64_t unit) const { return unit / blocks * taps; }
  int64_t size(int64_t unit) const { return matrix_packed_size<T>(taps, channel_count(unit), outputs); }
  int64_t size() const {
    int64_t sum = 0;
    for (int64_t unit = 0; unit < count(); ++unit) sum += size(unit);
    return sum;
  }
};

template <class T>
struct Plan {
  const FrozenConv& p;
  int64_t inner, panels, columns;  // values of a pixel, packed and of the sums
  int64_t band, bands;             // rows of a band, bands of a sample
  bool together;
  int64_t tile, pitch;   // pixels of a tile's row, and from row to row of packed rows
  int64_t packed, sums;  // bytes

  explicit Plan(const FrozenConv& p) : p(p) {
    const int64_t width = matrix_columns();
    inner = matrix_inner<T>(p.inputs);
    panels = (p.outputs + width - 1) / width;
    columns = panels * width;
    band = std::min(band_rows(p.height, p.width), p.height), bands = band_count(p.height, p.width);
    together = bands * p.samples <= 8 && p.samples * p.height * p.width <= 2048;
    tile = p.width;
    if (!together) {
      const int64_t bytes = inner * static_cast<int64_t>(sizeof(T)) * (band + 2) + columns * 4 * band;
      const int64_t count = (p.width + wanted(bytes) - 1) / wanted(bytes);
      tile = round_up((p.width + count - 1) / count, 32);
    }
    if (tile > p.width) tile = p.width;
    pitch = tile < p.width ? tile + 2 : p.width + 1;
    const int64_t rows = together ? p.samples * (p.height + 1) + 1 : band + 2;
    packed = round_up((rows * pitch + 1) * inner * sizeof(T), 64);
    sums = round_up((together ? run(p.samples * (p.height + 1) - 1) : run(band)) * columns * 4, 64);
  }
  static int64_t wanted(int64_t bytes_a_column) {
    const int64_t fitting = 384 * 1024 / bytes_a_column / 32 * 32;
    return fitting > 32 ? fitting : 32;
  }
  // Pixels from the first to the last one of some rows, with those between the rows.
  int64_t run(int64_t rows) const { return (rows - 1) * pitch + tile; }
};

// Packs `count` pixels from x on.
template <class T>
void pack_pixels(const T* x, const float* styles, int64_t count, int64_t inputs, int64_t inner, T* out) {
  if (!styles && inner == inputs) {
    std::memcpy(out, x, count * inner * sizeof(T));
    return;
  }
  for (int64_t j = 0; j < count; ++j, x += inputs, out += inner) {
    if (styles) {
      for (int64_t c = 0; c < inputs; ++c) store(out[c], load(x[c]) * styles[c]);
    } else {
      std::memcpy(out, x, inputs * sizeof(T));
    }
    for (int64_t c = inputs; c < inner; ++c) store(out[c], 0.0f);
  }
}

// Columns first to last of a row, with zeros where there is nothing. `last` may be beyond the row.
template <class T>
void pack_row(const FrozenConv& p, int64_t sample, int64_t row, int64_t first, int64_t last, int64_t inner, T* out) {
  const int64_t begin = row < 0 || row >= p.height ? last : std::max<int64_t>(first, 0);
  const int64_t end = std::max(begin, std::min(last, p.width));
  std::memset(out, 0, (begin - first) * inner * sizeof(T));
  std::memset(out + (end - first) * inner, 0, (last - end) * inner * sizeof(T));
  if (begin == end) return;
  const T* x = static_cast<const T*>(p.x) + sample * p.x_stride + (row * p.width + begin) * p.inputs;
  const float* styles = p.styles ? p.styles + sample * p.styles_stride : nullptr;
  pack_pixels(x, styles, end - begin, p.inputs, inner, out + (begin - first) * inner);
}

// Pixels first to last of a run whose packed neighbour above and to the left is at `a`.
template <class T>
void multiply(const Plan<T>& plan, const Units<T>& units, const T* a, float* c, int64_t first, int64_t last,
              int64_t panel) {
  int64_t offsets[9];
  const T* weight = static_cast<const T*>(plan.p.packed);
  for (int64_t unit = 0; unit < units.count(); weight += units.size(unit), ++unit) {
    for (int64_t t = 0; t < units.taps; ++t) {
      const int64_t tap = units.first_tap(unit) + t;
      offsets[t] = (tap / 3 * plan.pitch + tap % 3) * plan.inner + units.first_channel(unit);
    }
    MatrixProduct product{};
    product.a = a + first * plan.inner, product.a_stride = plan.inner;
    product.offsets = offsets, product.taps = units.taps;
    product.inner = matrix_inner<T>(units.channel_count(unit));
    product.b = weight;
    product.c = c + first * plan.columns, product.c_stride = plan.columns;
    product.rows = last - first;
    product.first_panel = panel, product.last_panel = panel + 1;
    product.add = unit > 0;
    matrix_multiply<T>(product);
  }
}

template <class T>
void run_bands(const Plan<T>& plan, const Tail& tail, char* work, const Parallel& parallel) {
  const FrozenConv& p = plan.p;
  const Units<T> units(p.inputs, p.outputs);
  const int64_t bytes = plan.packed + plan.sums + round_up(tail_scratch<T>(tail), 64);
  parallel(p.samples * plan.bands, [&](int64_t begin, int64_t end, int64_t slot) {
    T* a = reinterpret_cast<T*>(work + slot * bytes);
    float* c = reinterpret_cast<float*>(work + slot * bytes + plan.packed);
    void* scratch = work + slot * bytes + plan.packed + plan.sums;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t sample = unit / plan.bands, band = unit % plan.bands, row = band * plan.band;
      const int64_t rows = std::min(plan.band, p.height - row);
      tail_begin<T>(tail, sample, scratch);
      for (int64_t column = 0; column < p.width; column += plan.tile) {
        for (int64_t i = 0; i < rows + 2; ++i) {
          pack_row(p, sample, row + i - 1, column - 1, column - 1 + plan.pitch, plan.inner,
                   a + i * plan.pitch * plan.inner);
        }
        std::memset(a + (rows + 2) * plan.pitch * plan.inner, 0, plan.inner * sizeof(T));
        for (int64_t panel = 0; panel < plan.panels; ++panel) multiply(plan, units, a, c, 0, plan.run(rows), panel);
        const int64_t width = std::min(plan.tile, p.width - column);
        tail_block<T>(tail, {sample, row, column, rows, width, c, plan.pitch * plan.columns, plan.columns}, scratch);
      }
      tail_end<T>(tail, sample, band, scratch);
    }
  });
}

template <class T>
void run_together(const Plan<T>& plan, const Tail& tail, char* work, const Parallel& parallel) {
  const FrozenConv& p = plan.p;
  const Units<T> units(p.inputs, p.outputs);
  const int64_t line = p.height + 1, rows = p.samples * line;  // a row of zeros before each sample
  T* a = reinterpret_cast<T*>(work);
  float* c = reinterpret_cast<float*>(work + plan.packed);
  parallel(rows + 1, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = std::min(i / line, p.samples - 1), row = i - sample * line - 1;
      const int64_t last = i == rows ? plan.pitch : plan.pitch - 1;  // one more pixel after the last row
      pack_row(p, sample, row, -1, last, plan.inner, a + i * plan.pitch * plan.inner);
    }
  });
  const int64_t pixels = plan.run(rows - 1), pieces = (pixels + 255) / 256;
  const int64_t piece = round_up((pixels + pieces - 1) / pieces, 32);
  parallel(plan.panels * pieces, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % pieces * piece, last = std::min(first + piece, pixels);
      if (first < last) multiply(plan, units, a, c, first, last, item / pieces);
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
  return Units<T>(inputs, outputs).size() * static_cast<int64_t>(sizeof(T));
}

template <class T>
void direct_pack(const float* weight, int64_t inputs, int64_t outputs, void* packed) {
  const Units<T> units(inputs, outputs);
  T* out = static_cast<T*>(packed);
  for (int64_t unit = 0; unit < units.count(); out += units.size(unit), ++unit) {
    const float* source = weight + units.first_channel(unit) * 9 + units.first_tap(unit);
    matrix_pack<T>(source, 1, 9, inputs * 9, units.taps, units.channel_count(unit), outputs, out);
  }
}

template <class T>
int64_t direct_work(const FrozenConv& p, const Tail& tail, int64_t threads) {
  if (p.samples * p.height * p.width == 0) return 0;
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
