// bias_act on the CPU: checks, layout, threads. The arithmetic is in bias_act_kernel.cpp and activations.h.
#include "bias_act.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "../common/stable.h"

namespace fastinv {
namespace {

constexpr int64_t kGrain = 32768;  // elements a thread is worth waking up for
constexpr int64_t kTile = 512;     // elements from which on the bias of a channels_last tensor is repeated
constexpr int64_t kBlocks = 64;    // of the sum over a channels_last tensor; a fixed number, whatever the threads

struct Settings {
  int64_t dim, act;
  double alpha, gain, clamp;  // clamp < 0: none
};

// The tensors of one call; those that the order does not need are not set.
struct Tensors {
  std::optional<Tensor> grad, dy;
  Tensor x;
  std::optional<Tensor> b;
};

template <class T>
void run(BiasActParams<T> p, const std::optional<Tensor>& b, Tensor* db) {
  using C = compute_t<T>;
  const int64_t numel = p.outer * p.size * p.inner;
  p.tile = p.inner == 1 ? p.size * std::max<int64_t>(1, kTile / p.size) : p.size;
  std::vector<C> bias(p.tile, C(0));
  if (b) {
    const T* values = data<T>(*b);
    for (int64_t i = 0; i < p.tile; ++i) bias[i] = load(values[i % p.size]);
  }
  p.bias = bias.data();
  if (!db) {
    const int64_t unit = p.inner == 1 ? p.tile : 1;
    parallel_for(0, (numel + unit - 1) / unit, kGrain / unit, [&](int64_t begin, int64_t end) {
      FASTINV_ISA_CALL(bias_act_range, p, begin * unit, std::min(end * unit, numel));
    });
    return;
  }
  std::vector<double> sums(p.size, 0.0);
  if (p.inner > 1) {
    parallel_for(0, p.size, kGrain / (p.outer * p.inner),
                 [&](int64_t begin, int64_t end) { FASTINV_ISA_CALL(bias_act_channels, p, begin, end, sums.data()); });
  } else {
    const int64_t all_tiles = (numel + p.tile - 1) / p.tile;
    const int64_t blocks = std::clamp<int64_t>(numel / kGrain, 1, kBlocks);
    const int64_t length = (all_tiles + blocks - 1) / blocks * p.tile;
    std::vector<double> partial(blocks * p.size, 0.0);
    parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      std::unique_ptr<C[]> scratch(new C[p.tile]);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t from = std::min(i * length, numel), to = std::min(from + length, numel);
        FASTINV_ISA_CALL(bias_act_tiles, p, from, to, scratch.get(), partial.data() + i * p.size);
      }
    });
    for (int64_t i = 0; i < blocks * p.size; ++i) sums[i % p.size] += partial[i];
  }
  T* out = mutable_data<T>(*db);
  for (int64_t c = 0; c < p.size; ++c) store(out[c], static_cast<C>(sums[c]));
}

// Returns out, and the sum of out along the bias (an empty tensor if it is not wanted).
std::tuple<Tensor, Tensor> compute(Order order, const Tensors& in, const Settings& settings, bool need_db) {
  const bool channels_last = prefers_channels_last(in.x);
  const Tensor x = in_layout(in.x, channels_last);
  const ScalarType dtype = x.scalar_type();
  auto companion = [&](const std::optional<Tensor>& t) {
    if (!t) return t;
    FASTINV_CHECK(t->scalar_type() == dtype && t->dim() == x.dim() && t->numel() == x.numel(),
                  "bias_act: gradients must have the shape and dtype of x");
    return std::optional<Tensor>(in_layout(*t, channels_last));
  };
  const std::optional<Tensor> dy = companion(in.dy), grad = companion(in.grad);
  FASTINV_CHECK(settings.act >= 0 && settings.act <= 8, "bias_act: act must be a code in 0..8, got ", settings.act);

  int64_t outer = 1, size = 1, inner = x.numel();
  std::optional<Tensor> b;
  if (in.b || need_db) {
    FASTINV_CHECK(settings.dim >= 0 && settings.dim < x.dim(), "bias_act: dim must be in 0..", x.dim() - 1, ", got ",
                  settings.dim);
    size = x.size(settings.dim);
    // Axes in the order of memory: those before the bias are outer, those behind it inner.
    std::vector<int64_t> axes;
    for (int64_t i = 0; i < x.dim(); ++i) axes.push_back(i);
    if (channels_last) axes = {0, 2, 3, 1};
    inner = 1;
    for (int64_t i = x.dim() - 1; axes[i] != settings.dim; --i) inner *= x.size(axes[i]);
    outer = x.numel() / std::max<int64_t>(1, size * inner);
  }
  if (in.b) {
    FASTINV_CHECK(in.b->dim() == 1 && in.b->size(0) == size && in.b->scalar_type() == dtype && in.b->is_cpu(),
                  "bias_act: b must be of shape [", size, "] and of the dtype of x");
    b = in_layout(*in.b, false);
  }
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(x.size(i));
  Tensor out = empty(shape, dtype, channels_last);
  Tensor db = empty({need_db ? size : 0}, dtype);
  FASTINV_DISPATCH(dtype, "bias_act", [&] {
    if (x.numel() == 0) {
      for (int64_t c = 0; c < db.numel(); ++c) store(mutable_data<scalar_t>(db)[c], compute_t<scalar_t>(0));
      return;
    }
    using C = compute_t<scalar_t>;
    BiasActParams<scalar_t> p{};
    p.activation = static_cast<Activation>(settings.act);
    p.order = order;
    p.alpha = static_cast<C>(settings.alpha);
    p.gain = static_cast<C>(settings.gain);
    p.clamp = settings.clamp < 0 ? static_cast<C>(NAN) : static_cast<C>(settings.clamp);
    p.x = data<scalar_t>(x);
    p.dy = dy ? data<scalar_t>(*dy) : nullptr;
    p.grad = grad ? data<scalar_t>(*grad) : nullptr;
    p.out = mutable_data<scalar_t>(out);
    p.outer = outer;
    p.size = size;
    p.inner = inner;
    run(p, b, need_db ? &db : nullptr);
  });
  return {out, db};
}

Tensor bias_act(const Tensor& x, const std::optional<Tensor>& b, int64_t dim, int64_t act, double alpha, double gain,
                double clamp) {
  return std::get<0>(compute(Order::forward, {{}, {}, x, b}, {dim, act, alpha, gain, clamp}, false));
}

std::tuple<Tensor, Tensor> bias_act_backward(const Tensor& dy, const Tensor& saved, const std::optional<Tensor>& b,
                                             int64_t dim, int64_t act, double alpha, double gain, double clamp,
                                             bool need_db) {
  return compute(Order::first, {{}, dy, saved, b}, {dim, act, alpha, gain, clamp}, need_db);
}

std::tuple<Tensor, Tensor> bias_act_backward2(const Tensor& grad_dx, const Tensor& dy, const Tensor& x,
                                              const std::optional<Tensor>& b, int64_t dim, int64_t act, double alpha,
                                              double gain, double clamp, bool need_db) {
  FASTINV_CHECK(act > static_cast<int64_t>(Activation::lrelu),
                "bias_act: the second derivative of linear, relu and lrelu is zero and has no kernel");
  return compute(Order::second, {grad_dx, dy, x, b}, {dim, act, alpha, gain, clamp}, need_db);
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) {
  m.impl("bias_act", TORCH_BOX(&fastinv::bias_act));
  m.impl("bias_act_backward", TORCH_BOX(&fastinv::bias_act_backward));
  m.impl("bias_act_backward2", TORCH_BOX(&fastinv::bias_act_backward2));
}
