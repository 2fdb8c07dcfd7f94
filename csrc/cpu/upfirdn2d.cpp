// upfirdn2d on the CPU: checks, plan, threads. The arithmetic is in upfirdn2d_kernel.cpp.
#include "upfirdn2d.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>

#include "../common/stable.h"

namespace fastinv {
namespace {

constexpr int64_t kScratchInCache = 4096;    // values of scratch that stay in the first-level cache beside the rows
constexpr int64_t kBeyondCaches = 32 << 20;  // bytes of outputs of which nothing would be left in the caches at the end
constexpr int64_t kCacheLine = 64;

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

struct AxisPlan {
  UpfirdnAxis axis;
  std::vector<int64_t> first, count, tap_at;
  int64_t begin, end;  // the samples [begin, end) are read, some of them perhaps outside of the axis

  // out[o] = sum_k filter[k] * z[o * down + k], where z[i] is sample (i - pad0) / up if that is whole, else 0
  AxisPlan(int64_t size, int64_t out, int64_t up, int64_t down, int64_t pad0, int64_t taps) : axis{} {
    const int64_t largest = (taps + up - 1) / up;
    begin = INT64_MAX;
    end = INT64_MIN;
    tap_at.assign(up * largest, 0);
    for (int64_t phase = 0; phase < up; ++phase) {
      const int64_t at = phase * down - pad0;
      const int64_t sample = -floor_divide(-at, up);  // the first whole one
      const int64_t tap = sample * up - at;
      const int64_t n = tap < taps ? (taps - tap + up - 1) / up : 0;
      first.push_back(sample);
      count.push_back(n);
      for (int64_t t = 0; t < n; ++t) tap_at[phase * largest + t] = tap + t * up;
      if (phase < out) {
        const int64_t last_shift = (out - 1 - phase) / up * down;
        begin = std::min(begin, sample);
        end = std::max(end, sample + last_shift + std::max<int64_t>(n, 1));
      }
    }
    axis = {size, out, up, down, largest, first.data(), count.data(), tap_at.data()};
  }
  AxisPlan(const AxisPlan&) = delete;
};

// Splits filter [height, width] into column[y] * row[x] if it is such a product to within `tolerance` of its largest
// tap.
bool factorize(const std::vector<double>& f, int64_t height, int64_t width, double tolerance, std::vector<double>& row,
               std::vector<double>& column) {
  int64_t pivot = 0;
  double total = 0, total_abs = 0;
  row.assign(width, 0);
  column.assign(height, 0);
  for (int64_t i = 0; i < height * width; ++i) {
    if (!std::isfinite(f[i])) return false;
    if (std::abs(f[i]) > std::abs(f[pivot])) pivot = i;
    total += f[i];
    total_abs += std::abs(f[i]);
    row[i % width] += f[i];
    column[i / width] += f[i];
  }
  if (std::abs(total) > 0.1 * total_abs) {
    // Sums rather than a division by the largest tap: exact for the usual dyadic filters.
    for (double& c : column) c /= total;
  } else if (f[pivot] != 0) {
    for (int64_t x = 0; x < width; ++x) row[x] = f[pivot / width * width + x];
    for (int64_t y = 0; y < height; ++y) column[y] = f[y * width + pivot % width] / f[pivot];
  }
  for (int64_t i = 0; i < height * width; ++i) {
    if (std::abs(f[i] - row[i % width] * column[i / width]) > tolerance * std::abs(f[pivot])) return false;
  }
  return true;
}

template <class T>
void run(const T* input, T* output, int64_t images, int64_t channels, const AxisPlan& x, const AxisPlan& y,
         std::vector<double> filter, int64_t height, int64_t width, bool one_dimensional) {
  using C = compute_t<T>;
  std::vector<double> row = filter, column = filter;
  // A float32 outer product is one only to within its rounding, which float64 data would show.
  const double tolerance = std::is_same_v<C, double> ? 1e-15 : 1e-7;
  const bool separable = one_dimensional || factorize(filter, height, width, tolerance, row, column);

  const UpfirdnAxis &ax = x.axis, &ay = y.axis;
  const int64_t row_taps = ax.phases * ax.taps, column_taps = ay.phases * ay.taps;
  std::vector<C> row_weights, column_weights;
  if (separable) {
    for (int64_t i = 0; i < row_taps; ++i) row_weights.push_back(static_cast<C>(row[ax.tap_at[i]]));
    for (int64_t i = 0; i < column_taps; ++i) column_weights.push_back(static_cast<C>(column[ay.tap_at[i]]));
  } else {
    for (int64_t i = 0; i < column_taps; ++i)
      for (int64_t j = 0; j < row_taps; ++j)
        row_weights.push_back(static_cast<C>(filter[ay.tap_at[i] * width + ax.tap_at[j]]));
  }
  const int64_t line_size = (x.end - x.begin) * channels;
  const int64_t out_bytes = images * ay.out * ax.out * channels * sizeof(T);
  const int64_t whole = channels > 1 ? channels : ax.out;
  const bool streamed = out_bytes >= kBeyondCaches && whole * sizeof(T) % kCacheLine == 0 &&
                        reinterpret_cast<uintptr_t>(output) % kCacheLine == 0;
  // Several short rows at a time; in a stream a few, whose outputs are written while the samples of the next are read.
  const int64_t lines = std::clamp<int64_t>(kScratchInCache / line_size, 1, streamed ? 4 : 16);
  const UpfirdnParams<T> p{input,   output, channels, ax,      ay, separable, row_weights.data(), column_weights.data(),
                           x.begin, x.end,  lines,    streamed};
  const int64_t cost = ax.out * channels;
  parallel_for(0, images * ay.out, 16384 / cost, [&](int64_t begin, int64_t end) {
    std::unique_ptr<C[]> scratch(new C[upfirdn2d_scratch(p)]);
    FASTINV_ISA_CALL(upfirdn2d_rows, p, begin, end, scratch.get());
  });
}

// Into `out` if it is given, else into a new tensor.
Tensor filtered(const Tensor& x_any, const Tensor& f_any, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
                int64_t pad_x0, int64_t pad_x1, int64_t pad_y0, int64_t pad_y1, bool flip_filter, double gain,
                const Tensor* out) {
  FASTINV_CHECK(x_any.dim() == 4, "upfirdn2d: x must be [N, C, H, W], got ", x_any.dim(), " dimensions");
  FASTINV_CHECK(f_any.scalar_type() == ScalarType::Float && (f_any.dim() == 1 || f_any.dim() == 2) && f_any.numel() > 0,
                "upfirdn2d: f must be a non-empty 1-D or 2-D float32 tensor");
  FASTINV_CHECK(f_any.is_cpu(), "upfirdn2d: f must be on the CPU, as x is");
  FASTINV_CHECK(up_x >= 1 && up_y >= 1 && down_x >= 1 && down_y >= 1, "upfirdn2d: up and down must be at least 1");
  const bool channels_last = prefers_channels_last(x_any);
  const Tensor x = in_layout(x_any, channels_last);
  const Tensor f = in_layout(f_any, false);

  const bool one_dimensional = f.dim() == 1;
  const int64_t width = f.size(f.dim() - 1), height = f.size(0);
  const int64_t n = x.size(0), channels = x.size(1), in_h = x.size(2), in_w = x.size(3);
  const int64_t out_w = floor_divide(in_w * up_x + pad_x0 + pad_x1 - width, down_x) + 1;
  const int64_t out_h = floor_divide(in_h * up_y + pad_y0 + pad_y1 - height, down_y) + 1;
  FASTINV_CHECK(out_w >= 1 && out_h >= 1, "upfirdn2d: padding leaves no output for x of ", in_h, " x ", in_w,
                " and a filter of ", height, " x ", width);
  if (out) {
    FASTINV_CHECK(out->dim() == 4 && out->size(0) == n && out->size(1) == channels && out->size(2) == out_h &&
                      out->size(3) == out_w && out->scalar_type() == x.scalar_type() && out->is_cpu(),
                  "upfirdn2d: out must be [", n, ", ", channels, ", ", out_h, ", ", out_w, "] of the dtype of x");
    FASTINV_CHECK(
        channels_last ? is_channels_last(*out) || (out_h * out_w == 1 && out->is_contiguous()) : out->is_contiguous(),
        "upfirdn2d: out must be dense in the layout of x");
  }
  Tensor y = out ? *out : empty({n, channels, out_h, out_w}, x.scalar_type(), channels_last);
  if (n * channels == 0) return y;

  // Correlation needs the flipped filter; the gain is applied in the precision of the filter, split over 1-D passes.
  const int64_t taps = f.numel();
  std::vector<double> filter(taps);
  const float scale = static_cast<float>(one_dimensional ? std::sqrt(gain) : gain);
  for (int64_t i = 0; i < taps; ++i) filter[i] = data<float>(f)[flip_filter ? i : taps - 1 - i] * scale;

  const AxisPlan plan_x(in_w, out_w, up_x, down_x, pad_x0, width), plan_y(in_h, out_h, up_y, down_y, pad_y0, height);
  FASTINV_DISPATCH(x.scalar_type(), "upfirdn2d", [&] {
    run(data<scalar_t>(x), mutable_data<scalar_t>(y), channels_last ? n : n * channels, channels_last ? channels : 1,
        plan_x, plan_y, filter, height, width, one_dimensional);
  });
  return y;
}

Tensor upfirdn2d(const Tensor& x, const Tensor& f, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
                 int64_t pad_x0, int64_t pad_x1, int64_t pad_y0, int64_t pad_y1, bool flip_filter, double gain) {
  return filtered(x, f, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1, flip_filter, gain, nullptr);
}

void upfirdn2d_out(const Tensor& x, const Tensor& f, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
                   int64_t pad_x0, int64_t pad_x1, int64_t pad_y0, int64_t pad_y1, bool flip_filter, double gain,
                   const Tensor& out) {
  filtered(x, f, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1, flip_filter, gain, &out);
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) {
  m.impl("upfirdn2d", TORCH_BOX(&fastinv::upfirdn2d));
  m.impl("upfirdn2d_out", TORCH_BOX(&fastinv::upfirdn2d_out));
}
