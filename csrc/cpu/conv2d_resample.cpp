// conv2d_resample on the CPU. The convolutions are torch's (oneDNN), called through its public operators.
#include "conv2d_resample.h"

#include <algorithm>

namespace fastinv {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// Calls a torch operator; the arguments as in its schema.
template <size_t outputs = 1, class... Arguments>
std::array<StableIValue, (sizeof...(Arguments) > outputs ? sizeof...(Arguments) : outputs)> call(
    const char* op, const Arguments&... arguments) {
  std::array<StableIValue, (sizeof...(Arguments) > outputs ? sizeof...(Arguments) : outputs)> stack{from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  return stack;
}

using Integers = std::vector<int64_t>;

int64_t floor_divide(int64_t a, int64_t divisor) { return a / divisor - (a % divisor < 0); }

Tensor flip(const Tensor& w) { return to<Tensor>(call("aten::flip", w, Integers{2, 3})[0]); }

// [out, in / groups, height, width] <-> [in, out / groups, height, width]
Tensor swap_channels(const Tensor& w, int64_t groups) {
  if (groups == 1) return torch::stable::transpose(w, 0, 1);
  const int64_t rows = w.size(0), columns = w.size(1), height = w.size(2), width = w.size(3);
  Tensor split = torch::stable::reshape(w, {groups, rows / groups, columns, height, width});
  return torch::stable::reshape(torch::stable::transpose(split, 1, 2),
                                {groups * columns, rows / groups, height, width});
}

// The weight as torch's operator wants it, from ours or back: correlation or its adjoint, a flip being its own inverse.
Tensor torch_weight(const Resampling& plan, const Tensor& w) {
  Tensor swapped = plan.transposed ? swap_channels(w, plan.groups) : w;
  return plan.flip_weight == plan.transposed ? flip(swapped) : swapped;
}

Tensor apply(const Fir& fir, const Resampling& plan, const Tensor& x) {
  Tensor f = fir.filtered && plan.filter ? *plan.filter : torch::stable::full({1, 1}, 1.0, ScalarType::Float);
  const auto& p = fir.padding;
  return to<Tensor>(call("fastinv::upfirdn2d", x, f, fir.up, fir.up, fir.down, fir.down, p[0], p[1], p[2], p[3],
                         plan.flip_filter, fir.gain)[0]);
}

// The adjoint of a FIR whose input had `height` x `width` pixels: up and down swapped, the filter flipped.
Tensor apply_adjoint(const Fir& fir, const Resampling& plan, const Tensor& dy, int64_t height, int64_t width) {
  Tensor f = fir.filtered && plan.filter ? *plan.filter : torch::stable::full({1, 1}, 1.0, ScalarType::Float);
  const auto& p = fir.padding;
  const int64_t x0 = f.size(f.dim() - 1) - 1 - p[0], y0 = f.size(0) - 1 - p[2];
  const int64_t x1 = width * fir.up - dy.size(3) * fir.down + p[0] - fir.up + 1;
  const int64_t y1 = height * fir.up - dy.size(2) * fir.down + p[2] - fir.up + 1;
  return to<Tensor>(call("fastinv::upfirdn2d", dy, f, fir.down, fir.down, fir.up, fir.up, x0, x1, y0, y1,
                         !plan.flip_filter, fir.gain)[0]);
}

// The stride-2 transposed convolution by a 3x3 kernel, as one 2x2 convolution with four times the output channels, one
// group for each parity of row and column of the result: 16/9 of the multiplications, but oneDNN's convolution in
// bfloat16 is up to ten times as fast as its transposed one (AMX; in float32 there is no such difference). NHWC,
// bfloat16 only.
Tensor convolution_by_parity(const Resampling& plan, const Tensor& x, const Tensor& w_any) {
  const Tensor w = in_layout(w_any, false);
  const int64_t n = x.size(0), in = x.size(1), out = w.size(0), rows = x.size(2), columns = x.size(3);
  Tensor stacked = empty({4 * out, in, 2, 2}, x.scalar_type(), true);
  bfloat16* kernels = mutable_data<bfloat16>(stacked);  // [parity y, parity x, out, 2, 2, in]
  parallel_for(0, out, 32768 / (16 * in) + 1, [&](int64_t begin, int64_t end) {
    std::vector<bfloat16> taps(9 * in);
    const std::vector<bfloat16> zeros(in, bfloat16{0});
    for (int64_t o = begin; o < end; ++o) {
      const bfloat16* from = data<bfloat16>(w) + o * in * 9;
      for (int64_t tap = 0; tap < 9; ++tap) {
        for (int64_t i = 0; i < in; ++i) taps[tap * in + i] = from[i * 9 + (plan.flip_weight ? 8 - tap : tap)];
      }
      for (int64_t at = 0; at < 16; ++at) {  // bits: parity y, parity x, kernel y, kernel x
        const int64_t ty = (at >> 3) + 2 * (1 - (at >> 1 & 1)), tx = (at >> 2 & 1) + 2 * (1 - (at & 1));
        const bfloat16* row = ty < 3 && tx < 3 ? taps.data() + (ty * 3 + tx) * in : zeros.data();
        std::copy(row, row + in, kernels + ((at >> 2) * out + o) * 4 * in + (at & 3) * in);
      }
    }
  });
  const std::optional<Tensor> no_bias;
  const Tensor parities =
      in_layout(to<Tensor>(call("aten::convolution", x, stacked, no_bias, Integers{1, 1}, Integers{1, 1},
                                Integers{1, 1}, false, Integers{0, 0}, int64_t{1})[0]),
                true);
  const int64_t height = 2 * rows + 1 - 2 * plan.crop_y, width = 2 * columns + 1 - 2 * plan.crop_x;
  Tensor y = empty({n, out, height, width}, x.scalar_type(), true);
  const bfloat16* from = data<bfloat16>(parities);
  bfloat16* to = mutable_data<bfloat16>(y);
  parallel_for(0, n * height, 32768 / (width * out) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t i = row % height + plan.crop_y;
      const bfloat16* source = from + (row / height * (rows + 1) + i / 2) * (columns + 1) * 4 * out + (i & 1) * 2 * out;
      for (int64_t column = 0; column < width; ++column) {
        const int64_t j = column + plan.crop_x;
        const bfloat16* pixel = source + j / 2 * 4 * out + (j & 1) * out;
        std::copy(pixel, pixel + out, to + (row * width + column) * out);
      }
    }
  });
  return y;
}

Tensor convolution(const Resampling& plan, const Tensor& x, const Tensor& w) {
  if (plan.transposed && plan.stride == 2 && plan.groups == 1 && w.size(2) == 3 && w.size(3) == 3 &&
      x.scalar_type() == ScalarType::BFloat16 && is_channels_last(x)) {
    return convolution_by_parity(plan, x, w);
  }
  const std::optional<Tensor> no_bias;
  return to<Tensor>(call("aten::convolution", x, torch_weight(plan, w), no_bias, Integers{plan.stride, plan.stride},
                         Integers{plan.crop_y, plan.crop_x}, Integers{1, 1}, plan.transposed, Integers{0, 0},
                         plan.groups)[0]);
}

}  // namespace

Resampling plan_resampling(const std::optional<Tensor>& filter, int64_t kernel_y, int64_t kernel_x, int64_t up,
                           int64_t down, const std::vector<int64_t>& padding, int64_t groups, bool flip_weight,
                           bool flip_filter) {
  FASTINV_CHECK(padding.size() == 4, "conv2d_resample: padding must be 4 numbers, got ", padding.size());
  FASTINV_CHECK(up >= 1 && down >= 1 && groups >= 1, "conv2d_resample: up, down and groups must be at least 1");
  const int64_t width = filter ? filter->size(filter->dim() - 1) : 1, height = filter ? filter->size(0) : 1;
  int64_t x0 = padding[0], x1 = padding[1], y0 = padding[2], y1 = padding[3];
  if (up > 1) {  // a centred filter adds its width - 1 to the padding, split as in upsample2d
    x0 += (width + up - 1) / 2, x1 += floor_divide(width - up, 2);
    y0 += (height + up - 1) / 2, y1 += floor_divide(height - up, 2);
  }
  if (down > 1) {  // and as in downsample2d
    x0 += floor_divide(width - down + 1, 2), x1 += floor_divide(width - down, 2);
    y0 += floor_divide(height - down + 1, 2), y1 += floor_divide(height - down, 2);
  }
  const bool pointwise = kernel_x == 1 && kernel_y == 1;
  Resampling plan{std::nullopt, false, 1, 0, 0, {}, groups, flip_weight, flip_filter, filter};
  if (up > 1) {
    const double gain = static_cast<double>(up * up);
    if (pointwise) {
      plan.after.push_back({true, up, 1, {x0, x1, y0, y1}, gain});
    } else {
      // The transposed convolution is the full one less its up - 1 trailing zeros: give up the kernel - 1 rows and
      // columns it has too many, by its own padding as far as both edges have them.
      x0 -= kernel_x - 1, x1 += up - kernel_x, y0 -= kernel_y - 1, y1 += up - kernel_y;
      plan.transposed = true;
      plan.stride = up;
      plan.crop_x = std::max<int64_t>(0, std::min(-x0, -x1));
      plan.crop_y = std::max<int64_t>(0, std::min(-y0, -y1));
      plan.after.push_back(
          {true, 1, 1, {x0 + plan.crop_x, x1 + plan.crop_x, y0 + plan.crop_y, y1 + plan.crop_y}, gain});
    }
    if (down > 1) plan.after.push_back({true, 1, down, {0, 0, 0, 0}, 1.0});
  } else if (down > 1) {
    const bool nothing = !pointwise && !filter && x0 == 0 && x1 == 0 && y0 == 0 && y1 == 0;
    if (!nothing) plan.before = Fir{true, 1, pointwise ? down : 1, {x0, x1, y0, y1}, 1.0};
    if (!pointwise) plan.stride = down;
  } else if (x0 == x1 && y0 == y1 && x0 >= 0 && y0 >= 0) {
    plan.crop_x = x0, plan.crop_y = y0;
  } else {
    plan.before = Fir{false, 1, 1, {x0, x1, y0, y1}, 1.0};
  }
  return plan;
}

Tensor resample(const Resampling& plan, const Tensor& x, const Tensor& w, bool channels_last) {
  const Tensor weight = w.scalar_type() == x.scalar_type() ? w : torch::stable::to(w, x.scalar_type());
  Tensor y = in_layout(convolution(plan, plan.before ? apply(*plan.before, plan, x) : x, weight), channels_last);
  for (const Fir& fir : plan.after) y = in_layout(apply(fir, plan, y), channels_last);
  return y;
}

std::tuple<std::optional<Tensor>, std::optional<Tensor>> resample_backward(const Resampling& plan, const Tensor& dy,
                                                                           const Tensor& x, const Tensor& w,
                                                                           bool need_x, bool need_w,
                                                                           bool channels_last) {
  if (!need_x && !need_w) return {std::nullopt, std::nullopt};
  const Tensor weight = w.scalar_type() == x.scalar_type() ? w : torch::stable::to(w, x.scalar_type());
  FASTINV_CHECK(!plan.before, "resample_backward: a FIR before the convolution has no native gradient");
  const int64_t kernel_y = w.size(2), kernel_x = w.size(3);
  const int64_t full_y = plan.transposed ? (x.size(2) - 1) * plan.stride + kernel_y - 2 * plan.crop_y
                                         : (x.size(2) + 2 * plan.crop_y - kernel_y) / plan.stride + 1;
  const int64_t full_x = plan.transposed ? (x.size(3) - 1) * plan.stride + kernel_x - 2 * plan.crop_x
                                         : (x.size(3) + 2 * plan.crop_x - kernel_x) / plan.stride + 1;
  FASTINV_CHECK(plan.after.size() <= 1, "resample_backward: up- and down-sampling at once has no native gradient");
  Tensor dt =
      plan.after.empty() ? dy : in_layout(apply_adjoint(plan.after[0], plan, dy, full_y, full_x), channels_last);

  const std::optional<Integers> no_bias;
  const bool mask[3] = {need_x, need_w, false};
  auto gradients =
      call<3>("aten::convolution_backward", dt, x, torch_weight(plan, weight), no_bias,
              Integers{plan.stride, plan.stride}, Integers{plan.crop_y, plan.crop_x}, Integers{1, 1}, plan.transposed,
              Integers{0, 0}, plan.groups, torch::headeronly::HeaderOnlyArrayRef<bool>(mask, 3));
  // All three must be taken over, also the undefined ones.
  Tensor dx = to<Tensor>(gradients[0]), dw = to<Tensor>(gradients[1]), unused = to<Tensor>(gradients[2]);
  std::optional<Tensor> dx_out, dw_out;
  if (need_x) dx_out = in_layout(dx, channels_last);
  if (need_w) {
    if (plan.transposed) {
      Tensor flipped = plan.flip_weight ? flip(dw) : dw;
      dw_out = swap_channels(flipped, plan.groups);
    } else {
      dw_out = plan.flip_weight ? dw : flip(dw);
    }
  }
  return {dx_out, dw_out};
}

static Tensor conv2d_resample(const Tensor& x_any, const Tensor& w, const std::optional<Tensor>& f, int64_t up,
                              int64_t down, const std::vector<int64_t>& padding, int64_t groups, bool flip_weight,
                              bool flip_filter) {
  FASTINV_CHECK(x_any.dim() == 4 && w.dim() == 4, "conv2d_resample: x and w must have 4 dimensions, got ", x_any.dim(),
                " and ", w.dim());
  const bool channels_last = prefers_channels_last(x_any);
  const Tensor x = in_layout(x_any, channels_last);
  return resample(plan_resampling(f, w.size(2), w.size(3), up, down, padding, groups, flip_weight, flip_filter), x, w,
                  channels_last);
}

}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) { m.impl("conv2d_resample", TORCH_BOX(&fastinv::conv2d_resample)); }
