// bias_act on CUDA: checks, outputs, launch, registration. The twin of csrc/cpu/bias_act.cpp.
#include "bias_act.h"
#include "torch_cuda.h"

namespace fastinv {
namespace {

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

// Returns out, and the sum of out along the bias (an empty tensor if it is not wanted).
std::tuple<Tensor, Tensor> compute(cuda::BiasActOrder order, const Tensors& in, const Settings& settings,
                                   bool need_db) {
  FASTINV_CHECK(settings.act >= 0 && settings.act <= 8, "bias_act: act must be a code in 0..8, got ", settings.act);
  const DeviceGuard guard = device_guard("bias_act", in.x);
  const bool channels_last = prefers_channels_last(in.x);
  const Tensor x = in_layout(in.x, channels_last);
  const ScalarType dtype = x.scalar_type();
  const std::vector<int64_t> sizes = sizes_of(x);
  auto companion = [&](const char* name, const std::optional<Tensor>& t) {
    return t ? std::optional<Tensor>(cuda_operand("bias_act", name, *t, x, dtype, sizes, channels_last)) : t;
  };
  const std::optional<Tensor> dy = companion("dy", in.dy), grad = companion("grad_dx", in.grad);

  cuda::BiasActParams p{};
  p.dtype = cuda_dtype("bias_act", dtype);
  p.order = order;
  p.act = static_cast<int>(settings.act);
  p.alpha = settings.alpha;
  p.gain = settings.gain;
  p.clamp = settings.clamp;
  p.outer = p.channels = p.inner = 1;
  std::optional<Tensor> b;  // owns the copy that p.b points into
  if (in.b || need_db) {
    FASTINV_CHECK(settings.dim >= 0 && settings.dim < x.dim(), "bias_act: dim must be in 0..", x.dim() - 1, ", got ",
                  settings.dim);
    p.channels = x.size(settings.dim);
    // Axes in the order of memory: those before the bias are outer, those behind it inner.
    std::vector<int64_t> axes = {0, 2, 3, 1};
    if (!channels_last) {
      axes.clear();
      for (int64_t i = 0; i < x.dim(); ++i) axes.push_back(i);
    }
    bool behind = false;
    for (int64_t axis : axes) {
      if (axis == settings.dim) {
        behind = true;
      } else {
        (behind ? p.inner : p.outer) *= x.size(axis);
      }
    }
    constexpr int64_t most_channels = int64_t(1) << 22;  // walk_most_channels
    FASTINV_CHECK(p.inner > 1 || p.channels <= most_channels, "bias_act: at most ", most_channels,
                  " channels side by side in memory, got ", p.channels);
  } else {
    p.outer = x.numel();
  }
  if (in.b) b = cuda_operand("bias_act", "b", *in.b, x, dtype, {p.channels});

  Tensor out = cuda_empty(sizes, dtype, x, channels_last);
  Tensor db = cuda_empty({need_db ? p.channels : 0}, dtype, x);
  p.x = x.const_data_ptr();
  p.dy = dy ? dy->const_data_ptr() : nullptr;
  p.grad = grad ? grad->const_data_ptr() : nullptr;
  p.b = b ? b->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  std::optional<Tensor> partials;
  if (need_db && p.channels > 0) {
    p.db = db.mutable_data_ptr();
    const int64_t size_of_one = dtype == ScalarType::Double ? 8 : 4;
    partials = cuda_empty({cuda::bias_act_workspace(p) / size_of_one}, cuda_compute_dtype(dtype), x);
    p.partials = partials->mutable_data_ptr();
  }
  check_launch("bias_act", cuda::bias_act(p, cuda_stream_of(x)));
  return {out, db};
}

Tensor bias_act(const Tensor& x, const std::optional<Tensor>& b, int64_t dim, int64_t act, double alpha, double gain,
                double clamp) {
  return std::get<0>(compute(cuda::BiasActOrder::forward, {{}, {}, x, b}, {dim, act, alpha, gain, clamp}, false));
}

std::tuple<Tensor, Tensor> bias_act_backward(const Tensor& dy, const Tensor& saved, const std::optional<Tensor>& b,
                                             int64_t dim, int64_t act, double alpha, double gain, double clamp,
                                             bool need_db) {
  return compute(cuda::BiasActOrder::first, {{}, dy, saved, b}, {dim, act, alpha, gain, clamp}, need_db);
}

std::tuple<Tensor, Tensor> bias_act_backward2(const Tensor& grad_dx, const Tensor& dy, const Tensor& x,
                                              const std::optional<Tensor>& b, int64_t dim, int64_t act, double alpha,
                                              double gain, double clamp, bool need_db) {
  FASTINV_CHECK(act > 2, "bias_act: the second derivative of linear, relu and lrelu is zero and has no kernel");
  return compute(cuda::BiasActOrder::second, {grad_dx, dy, x, b}, {dim, act, alpha, gain, clamp}, need_db);
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, FASTINV_CUDA_KEY, m) {
  m.impl("bias_act", TORCH_BOX(&fastinv::bias_act));
  m.impl("bias_act_backward", TORCH_BOX(&fastinv::bias_act_backward));
  m.impl("bias_act_backward2", TORCH_BOX(&fastinv::bias_act_backward2));
}
