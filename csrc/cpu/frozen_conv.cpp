// Frozen convolutions and what follows them, on the CPU. Formulas, kinds and shapes: fastinv/ops/frozen_conv.py.
#include "frozen_conv.h"

#include <algorithm>
#include <atomic>

#include "../common/stable.h"

namespace fastinv {
namespace {

const char* kOp = "frozen_conv";
constexpr int64_t kAlignment = 64;

using Operand = std::optional<Tensor>;

std::string text(const std::vector<int64_t>& sizes) {
  std::string list;
  for (int64_t size : sizes) list += (list.empty() ? "" : ", ") + std::to_string(size);
  return "[" + list + "]";
}

void check_sizes(const Tensor& x, const char* name, const std::vector<int64_t>& sizes, ScalarType dtype) {
  bool fits = x.dim() == static_cast<int64_t>(sizes.size()) && x.scalar_type() == dtype;
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = x.size(i) == sizes[i];
  FASTINV_CHECK(fits, kOp, ": ", name, " must be ", torch::headeronly::toString(dtype), " ", text(sizes));
}

// A feature map: dense NHWC. Strides of dimensions of size 1 say nothing.
void check_map(const Tensor& x, const char* name, const std::vector<int64_t>& sizes, ScalarType dtype) {
  check_sizes(x, name, sizes, dtype);
  int64_t expected = 1;
  for (int dim : {1, 3, 2, 0}) {
    FASTINV_CHECK(x.size(dim) <= 1 || x.numel() == 0 || x.stride(dim) == expected, kOp, ": ", name,
                  " must be dense in channels_last");
    expected *= x.size(dim);
  }
}

const void* dense(const Operand& x, const char* name, const std::vector<int64_t>& sizes) {
  if (!x) return nullptr;
  check_sizes(*x, name, sizes, ScalarType::Float);
  FASTINV_CHECK(x->is_contiguous(), kOp, ": ", name, " must be contiguous");
  return x->const_data_ptr();
}

void* written(const Operand& x, const char* name, const std::vector<int64_t>& sizes) {
  return const_cast<void*>(dense(x, name, sizes));
}

// [N, C], possibly some columns of a wider matrix.
const void* rows(const Operand& x, const char* name, int64_t n, int64_t c, int64_t& stride) {
  if (!x) return nullptr;
  check_sizes(*x, name, {n, c}, ScalarType::Float);
  FASTINV_CHECK(c <= 1 || x->stride(1) == 1, kOp, ": the columns of ", name, " must lie side by side");
  stride = n > 1 ? x->stride(0) : c;
  return x->const_data_ptr();
}

Kind kind_of(int64_t code) {
  FASTINV_CHECK(code >= 0 && code <= 4, kOp, ": kind must be 0 to 4, got ", code);
  return static_cast<Kind>(code);
}

void check_dtype(ScalarType dtype, Kind kind) {
  FASTINV_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, kOp, ": dtype ",
                torch::headeronly::toString(dtype), " has no kernel; use float32 or bfloat16");
  FASTINV_CHECK(dtype == ScalarType::Float || kind == Kind::none || bfloat16_unit() != Bfloat16Unit::none, kOp,
                ": this CPU has no bfloat16 arithmetic (AVX512_BF16 or AMX)");
}

// Calls body(T()) for the type of the feature maps.
template <class Body>
auto with_type(ScalarType dtype, const Body& body) {
  return dtype == ScalarType::Float ? body(float()) : body(bfloat16());
}

int64_t packed_bytes(Kind kind, ScalarType dtype, int64_t inputs, int64_t outputs) {
  return with_type(dtype, [&](auto type) -> int64_t {
    using T = decltype(type);
    switch (kind) {
      case Kind::direct:
        return FASTINV_ISA_CALL(direct_packed_size<T>, inputs, outputs);
      case Kind::winograd:
        return FASTINV_ISA_CALL(winograd_packed_size, inputs, outputs);
      case Kind::up:
        return FASTINV_ISA_CALL(up_packed_size<T>, inputs, outputs);
      case Kind::down:
        return FASTINV_ISA_CALL(down_packed_size<T>, inputs, outputs);
      default:
        return 0;
    }
  });
}

int64_t work_bytes(const FrozenConv& p, const Tail& tail, ScalarType dtype, int64_t threads) {
  return with_type(dtype, [&](auto type) -> int64_t {
    using T = decltype(type);
    switch (p.kind) {
      case Kind::direct:
        return FASTINV_ISA_CALL(direct_work<T>, p, tail, threads);
      case Kind::winograd:
        return FASTINV_ISA_CALL(winograd_work<T>, p, tail, threads);
      case Kind::up:
        return FASTINV_ISA_CALL(up_work<T>, p, tail, threads);
      case Kind::down:
        return FASTINV_ISA_CALL(down_work<T>, p, tail, threads);
      default:
        return FASTINV_ISA_CALL(none_work<T>, p, tail, threads);
    }
  });
}

// Threads take pieces of what is left, the larger the more is left: neighbours mostly stay together, and a thread that
// is held up by others on the machine does not hold up the layer.
void run_in_threads(int64_t threads, int64_t count, void* context, void (*body)(void*, int64_t, int64_t, int64_t)) {
  threads = std::min(threads, count);
  if (threads <= 1) {
    if (count > 0) body(context, 0, count, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  parallel_for(0, threads, 1, [&](int64_t slot, int64_t) {
    int64_t begin = next.load(), end;
    while (begin < count) {
      end = begin + std::max<int64_t>(1, (count - begin) / (2 * threads));
      if (!next.compare_exchange_weak(begin, end)) continue;
      body(context, begin, end, slot);
      begin = next.load();
    }
  });
}

void run(const FrozenConv& p, const Tail& tail, ScalarType dtype, const Operand& work) {
  const Parallel parallel{static_cast<int64_t>(torch::stable::get_num_threads()), run_in_threads};
  const int64_t wanted = work_bytes(p, tail, dtype, parallel.threads) + kAlignment;
  Operand own;
  if (work) {
    FASTINV_CHECK(work->scalar_type() == ScalarType::Byte && work->is_contiguous(), kOp,
                  ": work must be a contiguous uint8 tensor");
    FASTINV_CHECK(work->numel() >= wanted, kOp, ": work must have ", wanted, " bytes for ", parallel.threads,
                  " threads, got ", work->numel());
  } else {
    own = empty({wanted}, ScalarType::Byte);
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>((work ? *work : *own).mutable_data_ptr());
  char* memory = reinterpret_cast<char*>((address + kAlignment - 1) / kAlignment * kAlignment);
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    switch (p.kind) {
      case Kind::direct:
        return FASTINV_ISA_CALL(direct_run<T>, p, tail, memory, parallel);
      case Kind::winograd:
        return FASTINV_ISA_CALL(winograd_run<T>, p, tail, memory, parallel);
      case Kind::up:
        return FASTINV_ISA_CALL(up_run<T>, p, tail, memory, parallel);
      case Kind::down:
        return FASTINV_ISA_CALL(down_run<T>, p, tail, memory, parallel);
      default:
        return FASTINV_ISA_CALL(none_run<T>, p, tail, memory, parallel);
    }
  });
}

// The size of the result along one axis from that of x.
int64_t result_size(Kind kind, int64_t size) {
  return kind == Kind::up ? 2 * size : kind == Kind::down ? size / 2 : size;
}

// What forward and backward have in common: everything about the convolution but its styles.
FrozenConv convolution(Kind kind, const Operand& x, const char* name, const Operand& packed,
                       const std::vector<double>& taps, int64_t n, int64_t outputs, int64_t height, int64_t width,
                       ScalarType dtype) {
  FrozenConv p{};
  p.kind = kind, p.samples = n, p.outputs = outputs;
  p.inputs = x && kind != Kind::none ? x->size(1) : outputs;
  p.height = kind == Kind::up ? height / 2 : kind == Kind::down ? 2 * height : height;
  p.width = kind == Kind::up ? width / 2 : kind == Kind::down ? 2 * width : width;
  FASTINV_CHECK(kind != Kind::up || (height % 2 == 0 && width % 2 == 0), kOp,
                ": the kind 'up' makes maps of even size, not ", height, " x ", width);
  FASTINV_CHECK(p.inputs > 0 && p.outputs > 0, kOp, ": there are no channels");
  if (x) {
    const int64_t samples = x->size(0) == 1 ? 1 : n;
    check_map(*x, name, {samples, p.inputs, p.height, p.width}, dtype);
    p.x = x->const_data_ptr();
    p.x_stride = samples > 1 ? p.inputs * p.height * p.width : 0;
  }
  FASTINV_CHECK(packed.has_value() == (kind != Kind::none), kOp, ": every kind but 0 takes a packed weight");
  if (packed) {
    FASTINV_CHECK(x.has_value(), kOp, ": a convolution needs ", name);
    FASTINV_CHECK(packed->scalar_type() == ScalarType::Byte && packed->is_contiguous() &&
                      packed->numel() == packed_bytes(kind, dtype, p.inputs, p.outputs),
                  kOp, ": packed is not the result of frozen_conv_pack for this kind, dtype and ", p.inputs, " to ",
                  p.outputs, " channels");
    p.packed = packed->const_data_ptr();
  }
  const bool filtered = kind == Kind::up || kind == Kind::down;
  FASTINV_CHECK(!filtered || taps.size() == 4, kOp, ": taps must be 4 numbers, got ", taps.size());
  for (size_t i = 0; filtered && i < 4; ++i) p.taps[i] = static_cast<float>(taps[i]);
  return p;
}

void set_layer(TailLayer& t, int64_t n, const Operand& d, const Operand& noise, double strength,
               const Operand& rgb_weight, const Operand& rgb_styles, double alpha, double gain, double clamp,
               double rgb_clamp) {
  t.d = rows(d, "d", n, t.channels, t.d_stride);
  if (noise) {
    const int64_t maps = noise->dim() == 4 && noise->size(0) == 1 ? 1 : n;
    t.noise = dense(noise, "noise", {maps, 1, t.height, t.width});
    t.noise_stride = maps > 1 ? t.height * t.width : 0;
  }
  t.strength = strength;
  FASTINV_CHECK(rgb_weight.has_value() == rgb_styles.has_value(), kOp, ": rgb_weight and rgb_styles come together");
  t.rgb_weight = dense(rgb_weight, "rgb_weight", {3, t.channels});
  t.rgb_styles = rows(rgb_styles, "rgb_styles", n, t.channels, t.rgb_stride);
  t.alpha = alpha, t.gain = gain, t.clamp = clamp, t.rgb_clamp = rgb_clamp;
}

void frozen_conv(const Tensor& x, const Operand& packed, int64_t code, const std::vector<double>& taps, const Tensor& y,
                 const Operand& styles, const Operand& d, const Operand& noise, double strength, const Operand& bias,
                 const Operand& rgb_weight, const Operand& rgb_styles, const Operand& rgb_bias, const Operand& picture,
                 const Operand& rgb, double alpha, double gain, double clamp, double rgb_clamp, const Operand& work) {
  const Kind kind = kind_of(code);
  const ScalarType dtype = x.scalar_type();
  check_dtype(dtype, kind);
  FASTINV_CHECK(x.dim() == 4 && y.dim() == 4, kOp, ": x and y must have 4 dimensions, got ", x.dim(), " and ", y.dim());
  const int64_t n = y.size(0), c = y.size(1), h = y.size(2), w = y.size(3);
  check_map(y, "y", {n, c, result_size(kind, x.size(2)), result_size(kind, x.size(3))}, dtype);
  FrozenConv p = convolution(kind, x, "x", packed, taps, n, c, h, w, dtype);
  FASTINV_CHECK(!styles || (kind != Kind::none && kind != Kind::down), kOp, ": this kind takes no styles");
  p.styles = static_cast<const float*>(rows(styles, "styles", n, p.inputs, p.styles_stride));
  TailForward t{};
  t.channels = c, t.height = h, t.width = w;
  set_layer(t, n, d, noise, strength, rgb_weight, rgb_styles, alpha, gain, clamp, rgb_clamp);
  t.bias = dense(bias, "bias", {c});
  t.y = y.mutable_data_ptr();
  if (rgb_weight) {
    FASTINV_CHECK(rgb_bias && picture, kOp, ": rgb_weight needs rgb_bias and picture");
    t.rgb_bias = dense(rgb_bias, "rgb_bias", {3});
    t.picture = written(picture, "picture", {n, 3, h, w});
    FASTINV_CHECK(rgb_clamp < 0 || rgb, kOp, ": rgb_clamp needs rgb");
    if (rgb_clamp >= 0) t.rgb = written(rgb, "rgb", {n, 3, h, w});
  }
  if (n * h * w > 0) run(p, {&t, nullptr}, dtype, work);
}

void frozen_conv_backward(const Operand& du, const Operand& packed, int64_t code, const std::vector<double>& taps,
                          const Operand& y, const Operand& du_before, const Operand& sums, const Operand& dimage,
                          const Operand& rgb, const Operand& d, const Operand& noise, double strength,
                          const Operand& next_styles, const Operand& rgb_weight, const Operand& rgb_styles,
                          const Operand& dnoise, double alpha, double gain, double clamp, double rgb_clamp,
                          const Operand& work) {
  const Kind kind = kind_of(code);
  FASTINV_CHECK(y || (du && du_before), kOp, ": without y there must be du and du_before");
  FASTINV_CHECK(y || (!sums && !dimage && !dnoise), kOp, ": sums, dimage and dnoise need y");
  for (const Operand* map : {&du, &y, &du_before, &dimage}) {
    FASTINV_CHECK(!*map || (*map)->dim() == 4, kOp, ": du, y, du_before and dimage must have 4 dimensions");
  }
  const Tensor& result = y ? *y : *du_before;
  const ScalarType dtype = result.scalar_type();
  check_dtype(dtype, kind);
  const int64_t n = (du ? *du : dimage ? *dimage : du_before ? *du_before : *y).size(0);
  const int64_t c = result.size(1), h = result.size(2), w = result.size(3);
  const FrozenConv p = convolution(kind, du, "du", packed, taps, n, c, h, w, dtype);
  TailBackward t{};
  t.channels = c, t.height = h, t.width = w;
  set_layer(t, n, d, noise, strength, rgb_weight, rgb_styles, alpha, gain, clamp, rgb_clamp);
  t.next_styles = rows(next_styles, "next_styles", n, c, t.next_stride);
  if (y) {
    const int64_t samples = y->size(0) == 1 ? 1 : n;
    check_map(*y, "y", {samples, c, h, w}, dtype);
    t.y = y->const_data_ptr();
    t.y_stride = samples > 1 ? c * h * w : 0;
  }
  if (du_before) {
    check_map(*du_before, "du_before", {n, c, h, w}, dtype);
    t.du = du_before->mutable_data_ptr();
  }
  if (dimage) {
    FASTINV_CHECK(rgb_weight.has_value(), kOp, ": dimage needs rgb_weight and rgb_styles");
    t.dimage = dense(dimage, "dimage", {n, 3, h, w});
    FASTINV_CHECK(rgb_clamp < 0 || rgb, kOp, ": rgb_clamp needs rgb");
    if (rgb_clamp >= 0) t.rgb = dense(rgb, "rgb", {n, 3, h, w});
  } else {
    t.rgb_weight = t.rgb_styles = nullptr;  // nothing comes from the picture
  }
  t.sums = written(sums, "sums", {n, band_count(h, w), 5, c});
  t.dnoise = written(dnoise, "dnoise", {n, 1, h, w});
  if (n * h * w > 0) {
    run(p, {nullptr, &t}, dtype, work);
  } else if (sums) {
    std::fill_n(mutable_data<float>(*sums), sums->numel(), 0.0f);
  }
}

Tensor frozen_conv_pack(const Tensor& weight, int64_t code, ScalarType dtype) {
  const Kind kind = kind_of(code);
  FASTINV_CHECK(kind != Kind::none, kOp, ": the kind 0 has no weight");
  check_dtype(dtype, kind);
  FASTINV_CHECK(weight.dim() == 4 && weight.scalar_type() == ScalarType::Float && weight.is_contiguous() &&
                    weight.size(2) == 3 && weight.size(3) == 3,
                kOp, ": weight must be a contiguous Float [O, I, 3, 3]");
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  FASTINV_CHECK(inputs > 0 && outputs > 0, kOp, ": there are no channels");
  const Tensor packed = empty({packed_bytes(kind, dtype, inputs, outputs)}, ScalarType::Byte);
  const float* source = data<float>(weight);
  void* target = packed.mutable_data_ptr();
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    switch (kind) {
      case Kind::direct:
        return FASTINV_ISA_CALL(direct_pack<T>, source, inputs, outputs, target);
      case Kind::winograd:
        return FASTINV_ISA_CALL(winograd_pack, source, inputs, outputs, target);
      case Kind::up:
        return FASTINV_ISA_CALL(up_pack<T>, source, inputs, outputs, target);
      default:
        return FASTINV_ISA_CALL(down_pack<T>, source, inputs, outputs, target);
    }
  });
  return packed;
}

// For every operand that there may be, forward and backward.
int64_t frozen_conv_work(int64_t code, ScalarType dtype, int64_t n, int64_t inputs, int64_t outputs, int64_t height,
                         int64_t width) {
  const Kind kind = kind_of(code);
  check_dtype(dtype, kind);
  FASTINV_CHECK(n >= 0 && height >= 0 && width >= 0 && inputs > 0 && outputs > 0, kOp,
                ": sizes must not be negative, and there must be channels");
  if (n * height * width == 0) return kAlignment;
  FrozenConv p{};
  p.kind = kind, p.samples = n, p.inputs = inputs, p.outputs = outputs, p.height = height, p.width = width;
  void* some = &p;  // only whether an operand is there counts
  p.x = p.packed = some;
  p.styles = static_cast<const float*>(some);
  TailForward forward{};
  TailBackward backward{};
  for (TailLayer* layer : {static_cast<TailLayer*>(&forward), static_cast<TailLayer*>(&backward)}) {
    layer->channels = outputs;
    layer->height = result_size(kind, height), layer->width = result_size(kind, width);
    layer->d = layer->noise = layer->rgb_weight = layer->rgb_styles = some;
  }
  forward.bias = forward.rgb_bias = forward.y = forward.picture = forward.rgb = some;
  backward.next_styles = backward.dimage = backward.y = backward.rgb = some;
  backward.du = backward.sums = backward.dnoise = some;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t there = work_bytes(p, {&forward, nullptr}, dtype, threads);
  return std::max(there, work_bytes(p, {nullptr, &backward}, dtype, threads)) + kAlignment;
}

}  // namespace
}  // namespace fastinv

// Under CPU all four, which is where fastinv/ops/_dispatch.py looks; a query without tensors needs the other key, too.
STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) {
  m.impl("frozen_conv_pack", TORCH_BOX(&fastinv::frozen_conv_pack));
  m.impl("frozen_conv_work", TORCH_BOX(&fastinv::frozen_conv_work));
  m.impl("frozen_conv", TORCH_BOX(&fastinv::frozen_conv));
  m.impl("frozen_conv_backward", TORCH_BOX(&fastinv::frozen_conv_backward));
}
STABLE_TORCH_LIBRARY_IMPL(fastinv, CompositeExplicitAutograd, m) {
  m.impl("frozen_conv_work", TORCH_BOX(&fastinv::frozen_conv_work));
}
