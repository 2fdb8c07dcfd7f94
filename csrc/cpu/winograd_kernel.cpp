// Winograd's convolution F(4x4, 3x3) with frozen weights, in float32 whatever the maps are. A tile of 4x4 results needs
// 6x6 inputs; both it and the 3x3 taps are evaluated, along both axes, at the six points 0, +-a, +-b, infinity,
// multiplied point by point and summed over the input channels (36 matrix products), and the results are interpolated:
// 36 multiplications where the direct form has 144.
//
// With g the taps and d the inputs of one axis, Y = A^T ((G g) * (B^T d)), where (Toom-Cook, transposed)
//   A^T[i][p] = p^i,  G[p][j] = p^j / prod_{q != p} (p - q),  B^T[p] = coefficients of prod_{q != p} (x - q)
// over the five finite points; at infinity A^T and G pick the last row and B^T is the product over all five. The
// denominators are in the weights, which are transformed once, in float64. a = 5/8 and b = 3/2 have exact squares and
// cubes, and an error close to that of the direct form: 1.3e-6 against 1.2e-6 at 512 channels, where the usual points
// 1, 2 have 2.9e-6. Sums over the channels are cut in blocks of kInner, which lowers it to 0.9e-6.
#include <cstring>

#include "frozen_conv.h"
#include "matrix.h"

namespace fastinv::FASTINV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

FASTINV_INLINE Vector load_wide(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
FASTINV_INLINE Vector load_wide(const bfloat16* from) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));
  typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Vector)(__builtin_convertvector(halves, Words) << 16);
}

constexpr float a = 0.625f, b = 1.5f;  // the points
constexpr int64_t kTile = 4, kWindow = 6, kPoints = kWindow * kWindow;
constexpr int64_t kInner = 128;  // input channels of a block
// Slots and pixels are one cache line apart from a power of two, or all would fall into few sets of the cache.
constexpr int64_t kLine = 16;

int64_t ceil_div(int64_t n, int64_t step) { return (n + step - 1) / step; }
int64_t round_up(int64_t n, int64_t step) { return ceil_div(n, step) * step; }
int64_t smaller(int64_t m, int64_t n) { return m < n ? m : n; }

// B^T: six inputs, `step` apart, to their values at the six points.
FASTINV_INLINE void evaluate(const Vector* d, int64_t step, Vector* t) {
  const Vector d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  t[0] = (d4 - (a * a + b * b) * d2) + (a * a * b * b) * d0;
  const Vector even_a = d4 - (b * b) * d2, odd_a = d3 - (b * b) * d1;
  t[1] = even_a + a * odd_a;
  t[2] = even_a - a * odd_a;
  const Vector even_b = d4 - (a * a) * d2, odd_b = d3 - (a * a) * d1;
  t[3] = even_b + b * odd_b;
  t[4] = even_b - b * odd_b;
  t[5] = (d5 - (a * a + b * b) * d3) + (a * a * b * b) * d1;
}

// A^T: values at the six points, `step` apart, to four results.
FASTINV_INLINE void interpolate(const Vector* m, int64_t step, Vector* y) {
  const Vector sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
  const Vector sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
  y[0] = m[0] + sum_a + sum_b;
  y[1] = a * difference_a + b * difference_b;
  y[2] = (a * a) * sum_a + (b * b) * sum_b;
  y[3] = m[5 * step] + (a * a * a) * difference_a + (b * b * b) * difference_b;
}

// How the tiles are cut: tiles are numbered across a row of tiles, then down a sample, then over the samples, so that a
// range of bands is a range of tiles.
struct Plan {
  int64_t across, down;     // tiles of a sample
  int64_t band, bands;      // rows of tiles in a band, bands of a sample
  int64_t panels, columns;  // of the products; columns: outputs, rounded up to whole panels
  int64_t blocks, step;     // of input channels, and how many channels one takes up
  int64_t pixel;            // floats of a pixel in a block of results
  int64_t group;            // bands whose tiles are transformed, multiplied and transformed back at a time
  int64_t tiles;            // of a group at most
  int64_t slot;             // floats of one point's values of a group: [block][tile][step] or [panel][tile][column]
  int64_t width;            // tiles of a block of results
  bool together;            // all threads work on one group; or else each has its own

  Plan(const FrozenConv& p, int64_t threads)
      : across(ceil_div(p.width, kTile)),
        down(ceil_div(p.height, kTile)),
        band(band_rows(p.height, p.width) / kTile),
        bands(band_count(p.height, p.width)),
        panels(ceil_div(p.outputs, matrix_columns())),
        columns(panels * matrix_columns()),
        blocks(ceil_div(p.inputs, kInner)),
        step(blocks > 1 ? kInner : round_up(p.inputs, kLanes)),
        pixel(columns + kLine) {
    // Blocks of results are cut alike in every schedule, as sums over pixels depend on it.
    width = 4096 / (kTile * kTile * columns);
    width = smaller(width > 1 ? width : 1, across);
    // A thread on its own reads all weights for each group, but waits for nobody. Without enough tiles for that, all
    // threads share one group. The rows of the products are the same in every schedule.
    const int64_t most = p.inputs * p.outputs > 128 * 128 ? 128 : 64;  // tiles; the more, the more weights there are
    const int64_t band_tiles = band * across, all = bands * p.samples;
    group = smaller(most / band_tiles, all / threads);
    together = group * band_tiles < 32 && band_tiles < 32 && p.inputs * p.outputs > 64 * 64;
    if (together) group = 256 / band_tiles;
    group = smaller(group > 1 ? group : 1, all);
    tiles = group * band_tiles;
    if (!together && tiles > most) tiles = most / width * width;  // a part of a band
    slot = round_up(tiles * (blocks * step > columns ? blocks * step : columns), kLine) + kLine;
  }
  int64_t first_tile(int64_t number) const {  // of a band
    const int64_t row = number % bands * band;
    return (number / bands * down + row) * across;
  }
  int64_t values() const { return (together ? 2 * kPoints : kPoints + 1) * slot * sizeof(float); }
  int64_t block() const { return width * kTile * kTile * pixel * sizeof(float); }
  template <class T>
  int64_t scratch(const Tail& tail) const {
    return round_up(block() + tail_scratch<T>(tail), 64);
  }
  int64_t zeros(const FrozenConv& p) const { return round_up((p.inputs + kLanes) * sizeof(float), 64); }
};

template <class T>
struct Run {
  const FrozenConv& p;
  const Tail& tail;
  const Plan plan;
  const T* zeros;  // a pixel outside of the picture

  // Channels [first, last) of tiles [begin, end) to their values at the points; `start` is the group's first tile.
  void transform_input(int64_t start, int64_t begin, int64_t end, int64_t first, int64_t last, float* values) const;
  // One point: its products of `tiles` tiles for panels [first, last).
  void multiply(int64_t point, int64_t tiles, int64_t first, int64_t last, const float* values, float* products) const;
  // Tiles [begin, end), through the tail. Bands are begun and ended on the way.
  void transform_output(int64_t start, int64_t begin, int64_t end, const float* products, char* scratch) const;
  void output_block(int64_t tile, const float* products, int64_t width, int64_t at, float* block) const;
};

// One vector of channels of one tile: `window` are its 36 pixels.
template <class T>
FASTINV_INLINE void input_tile(const T* const* window, int64_t c, const float* styles, float* out, int64_t slot) {
  Vector down[kWindow][kWindow], d[kWindow], across[kWindow];
  const Vector style = styles ? *reinterpret_cast<const Unaligned*>(styles + c) : Vector{} + 1.0f;
  for (int64_t j = 0; j < kWindow; ++j) {
    for (int64_t i = 0; i < kWindow; ++i) {
      d[i] = load_wide(window[i * kWindow + j] + c);
      if (styles) d[i] *= style;
    }
    evaluate(d, 1, down[j]);
  }
  for (int64_t i = 0; i < kWindow; ++i) {
    evaluate(&down[0][i], kWindow, across);
    for (int64_t j = 0; j < kWindow; ++j) *reinterpret_cast<Unaligned*>(out + (i * kWindow + j) * slot) = across[j];
  }
}

template <class T>
void Run<T>::transform_input(int64_t start, int64_t begin, int64_t end, int64_t first, int64_t last,
                             float* values) const {
  const int64_t step = plan.step, whole = first + (last - first) / kLanes * kLanes;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t row = tile / plan.across % plan.down, n = tile / (plan.across * plan.down);
    const int64_t top = row * kTile - 1, left = tile % plan.across * kTile - 1;
    const T* x = static_cast<const T*>(p.x) + n * p.x_stride;
    const float* styles = p.styles ? p.styles + n * p.styles_stride : nullptr;
    const T* window[kPoints];
    for (int64_t i = 0; i < kWindow; ++i) {
      for (int64_t j = 0; j < kWindow; ++j) {
        const bool inside = top + i >= 0 && top + i < p.height && left + j >= 0 && left + j < p.width;
        window[i * kWindow + j] = inside ? x + ((top + i) * p.width + left + j) * p.inputs : zeros;
      }
    }
    float* out = values + (tile - start) * step;
    const int64_t block = plan.tiles * step;  // of channels
    if (styles) {
      for (int64_t c = first; c < whole; c += kLanes)
        input_tile(window, c, styles, out + c / step * block + c % step, plan.slot);
    } else {
      for (int64_t c = first; c < whole; c += kLanes)
        input_tile(window, c, nullptr, out + c / step * block + c % step, plan.slot);
    }
    if (whole < last) {  // the last channels, fewer than a vector, from a copy
      T copies[kPoints][kLanes];
      float ones[kLanes];
      const T* copied[kPoints];
      for (int64_t k = 0; k < kPoints; ++k) {
        copied[k] = copies[k];
        for (int64_t c = 0; c < kLanes; ++c) copies[k][c] = whole + c < last ? window[k][whole + c] : zeros[0];
      }
      for (int64_t c = 0; c < kLanes; ++c) ones[c] = styles && whole + c < last ? styles[whole + c] : 1.0f;
      input_tile(copied, 0, ones, out + whole / step * block + whole % step, plan.slot);
    }
  }
}

// Floats of the packed weights of one point and block of `inner` input channels.
int64_t packed_block(int64_t inner, int64_t outputs) { return matrix_packed_size<float>(1, inner, outputs); }
int64_t packed_point(int64_t inputs, int64_t outputs) {
  return inputs / kInner * packed_block(kInner, outputs) +
         (inputs % kInner ? packed_block(inputs % kInner, outputs) : 0);
}

template <class T>
void Run<T>::multiply(int64_t point, int64_t tiles, int64_t first, int64_t last, const float* values,
                      float* products) const {
  const int64_t none = 0;
  const float* weights = static_cast<const float*>(p.packed) + point * packed_point(p.inputs, p.outputs);
  for (int64_t panel = first; panel < last; ++panel) {
    for (int64_t block = 0; block < plan.blocks; ++block) {
      MatrixProduct product;
      product.a = values + point * plan.slot + block * plan.tiles * plan.step;
      product.a_stride = plan.step;
      product.offsets = &none;
      product.taps = 1;
      product.inner = smaller(kInner, p.inputs - block * kInner);
      product.b = weights + block * packed_block(kInner, p.outputs);
      product.c = products + point * plan.slot + panel * (plan.tiles - 1) * matrix_columns();  // [panel][tile][column]
      product.c_stride = matrix_columns();
      product.rows = tiles;
      product.first_panel = panel;
      product.last_panel = panel + 1;
      product.add = block > 0;
      matrix_multiply<float>(product);
    }
  }
}

// Tile `tile` of the group to 4x4 results at `block`, whose rows hold `width` tiles.
template <class T>
void Run<T>::output_block(int64_t tile, const float* products, int64_t width, int64_t at, float* block) const {
  const int64_t columns = matrix_columns(), row = width * kTile * plan.pixel;
  for (int64_t panel = 0; panel < plan.panels; ++panel) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      const float* in = products + (panel * plan.tiles + tile) * columns + c;
      float* out = block + at * kTile * plan.pixel + panel * columns + c;
      Vector down[kWindow][kTile], m[kWindow], y[kTile];
      for (int64_t j = 0; j < kWindow; ++j) {
        for (int64_t i = 0; i < kWindow; ++i)
          m[i] = *reinterpret_cast<const Unaligned*>(in + (i * kWindow + j) * plan.slot);
        interpolate(m, 1, down[j]);
      }
      for (int64_t i = 0; i < kTile; ++i) {
        interpolate(&down[0][i], kTile, y);
        for (int64_t j = 0; j < kTile; ++j) *reinterpret_cast<Unaligned*>(out + i * row + j * plan.pixel) = y[j];
      }
    }
  }
}

template <class T>
void Run<T>::transform_output(int64_t start, int64_t begin, int64_t end, const float* products, char* scratch) const {
  float* block = reinterpret_cast<float*>(scratch + round_up(tail_scratch<T>(tail), 64));
  for (int64_t tile = begin, width; tile < end; tile += width) {
    const int64_t column = tile % plan.across, row = tile / plan.across % plan.down;
    const int64_t n = tile / (plan.across * plan.down);
    width = smaller(smaller(plan.width, plan.across - column), end - tile);
    if (column == 0 && row % plan.band == 0) tail_begin<T>(tail, n, scratch);
    for (int64_t at = 0; at < width; ++at) output_block(tile + at - start, products, width, at, block);
    TailBlock<T> piece;
    piece.sample = n;
    piece.row = row * kTile;
    piece.column = column * kTile;
    piece.rows = smaller(kTile, p.height - piece.row);
    piece.columns = smaller(width * kTile, p.width - piece.column);
    piece.values = block;
    piece.row_stride = width * kTile * plan.pixel;
    piece.pixel_stride = plan.pixel;
    tail_block<T>(tail, piece, scratch);
    const bool last_row = row + 1 == plan.down || (row + 1) % plan.band == 0;
    if (column + width == plan.across && last_row) tail_end<T>(tail, n, row / plan.band, scratch);
  }
}

template <class T>
void run_all(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel) {
  T* zeros = reinterpret_cast<T*>(work);
  std::memset(zeros, 0, (p.inputs + kLanes) * sizeof(T));
  const Run<T> run{p, tail, Plan(p, parallel.threads), zeros};
  const Plan& plan = run.plan;
  const int64_t all = plan.bands * p.samples, values_size = round_up(plan.values(), 64);
  char* memory = work + plan.zeros(p);
  if (!plan.together) {
    char* scratch = memory + parallel.threads * values_size;
    parallel(ceil_div(all, plan.group), [&](int64_t begin, int64_t end, int64_t slot) {
      // The products of a point take the place of the values of the point before it.
      float* products = reinterpret_cast<float*>(memory + slot * values_size);
      float* values = products + plan.slot;
      char* own = scratch + slot * plan.scratch<T>(tail);
      for (int64_t group = begin; group < end; ++group) {
        const int64_t last = plan.first_tile(smaller((group + 1) * plan.group, all));
        for (int64_t tile = plan.first_tile(group * plan.group); tile < last; tile += plan.tiles) {
          const int64_t tiles = smaller(plan.tiles, last - tile);
          run.transform_input(tile, tile, tile + tiles, 0, p.inputs, values);
          for (int64_t point = 0; point < kPoints; ++point)
            run.multiply(point, tiles, 0, plan.panels, values, products);
          run.transform_output(tile, tile, tile + tiles, products, own);
        }
      }
    });
    return;
  }
  float* values = reinterpret_cast<float*>(memory);
  float* products = values + kPoints * plan.slot;
  char* scratch = memory + values_size;
  for (int64_t group = 0; group < all; group += plan.group) {
    const int64_t bands = smaller(plan.group, all - group);
    const int64_t start = plan.first_tile(group), tiles = plan.first_tile(group + bands) - start;
    constexpr int64_t kPiece = 8;  // tiles
    const int64_t pieces = ceil_div(tiles, kPiece);
    parallel(pieces * plan.blocks, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = start + i / plan.blocks * kPiece, channel = i % plan.blocks * kInner;
        run.transform_input(start, first, smaller(first + kPiece, start + tiles), channel,
                            smaller(channel + kInner, p.inputs), values);
      }
    });
    parallel(kPoints * plan.panels, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i)
        run.multiply(i / plan.panels, tiles, i % plan.panels, i % plan.panels + 1, values, products);
    });
    parallel(bands, [&](int64_t begin, int64_t end, int64_t slot) {
      run.transform_output(start, plan.first_tile(group + begin), plan.first_tile(group + end), products,
                           scratch + slot * plan.scratch<T>(tail));
    });
  }
}

}  // namespace

int64_t winograd_packed_size(int64_t inputs, int64_t outputs) {
  return kPoints * packed_point(inputs, outputs) * sizeof(float);
}

void winograd_pack(const float* weight, int64_t inputs, int64_t outputs, void* packed) {
  double evaluation[kWindow][3] = {};  // G
  const double points[kWindow - 1] = {0, a, -a, b, -b};
  for (int64_t i = 0; i < kWindow - 1; ++i) {
    double denominator = 1;
    for (int64_t k = 0; k < kWindow - 1; ++k) denominator *= k == i ? 1 : points[i] - points[k];
    evaluation[i][0] = 1 / denominator;
    evaluation[i][1] = points[i] / denominator;
    evaluation[i][2] = points[i] * points[i] / denominator;
  }
  evaluation[kWindow - 1][2] = 1;
  float* values = new float[kInner * outputs];  // [inputs of a block][outputs]
  float* out = static_cast<float*>(packed);
  for (int64_t point = 0; point < kPoints; ++point) {
    const double* vertical = evaluation[point / kWindow];
    const double* horizontal = evaluation[point % kWindow];
    for (int64_t first = 0; first < inputs; first += kInner) {
      const int64_t inner = smaller(kInner, inputs - first);
      for (int64_t k = 0; k < inner; ++k) {
        for (int64_t n = 0; n < outputs; ++n) {
          const float* taps = weight + (n * inputs + first + k) * 9;
          double sum = 0;
          for (int64_t i = 0; i < 3; ++i)
            for (int64_t j = 0; j < 3; ++j) sum += vertical[i] * horizontal[j] * taps[i * 3 + j];
          values[k * outputs + n] = static_cast<float>(sum);
        }
      }
      matrix_pack<float>(values, 0, outputs, 1, 1, inner, outputs, out);
      out += packed_block(inner, outputs);
    }
  }
  delete[] values;
}

template <class T>
int64_t winograd_work(const FrozenConv& p, const Tail& tail, int64_t threads) {
  const Plan plan(p, threads);
  return plan.zeros(p) + (plan.together ? 1 : threads) * round_up(plan.values(), 64) + threads * plan.scratch<T>(tail);
}

template <class T>
void winograd_run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel) {
  run_all<T>(p, tail, work, parallel);
}

#define INSTANTIATE(T)                                                        \
  template int64_t winograd_work<T>(const FrozenConv&, const Tail&, int64_t); \
  template void winograd_run<T>(const FrozenConv&, const Tail&, char*, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(bfloat16)

}  // namespace fastinv::FASTINV_ISA
