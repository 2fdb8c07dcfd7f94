// The end of an optimisation step on CUDA: checks, launches, registration.
#include "adam.h"
#include "torch_cuda.h"

namespace fastinv {
namespace {

cuda::Dtype adam_dtype(const char* op, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  FASTINV_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": tensors must be float32 or float64, ",
                "got ", torch::headeronly::toString(dtype));
  return cuda_dtype(op, dtype);
}

// The memory of an argument that is changed in place: `x` itself must be dense, a copy would be lost.
void* in_place(const char* op, const char* name, const Tensor& x, const Tensor& leader, ScalarType dtype,
               const std::vector<int64_t>& sizes) {
  FASTINV_CHECK(x.is_contiguous(), op, ": ", name, " must be contiguous, it is changed in place");
  return cuda_operand(op, name, x, leader, dtype, sizes).mutable_data_ptr();
}

template <class T>
T* in_place(const char* op, const char* name, const Tensor& x, const Tensor& leader, ScalarType dtype,
            const std::vector<int64_t>& sizes) {
  return static_cast<T*>(in_place(op, name, x, leader, dtype, sizes));
}

void adam_record(const Tensor& total_any, const Tensor& values_any, const Tensor& clock, const Tensor& curves,
                 const Tensor& lowest, const Tensor& best_step, const Tensor& bad_step, const Tensor& better,
                 bool last) {
  const char* op = "adam_record";
  FASTINV_CHECK(on_cuda(total_any) && total_any.dim() == 1, op, ": total must be [N] on a CUDA device");
  FASTINV_CHECK(values_any.dim() == 2 && curves.dim() == 3, op, ": values must be [terms, N] and curves [page, ",
                "1 + terms, N], got ", to_string(sizes_of(values_any)), " and ", to_string(sizes_of(curves)));
  const DeviceGuard guard = device_guard("adam_record", total_any);
  const ScalarType dtype = total_any.scalar_type(), integer = ScalarType::Long;
  const int64_t pictures = total_any.size(0), terms = values_any.size(0), page = curves.size(0);
  const Tensor total = in_layout(total_any, false);
  const Tensor values = cuda_operand(op, "values", values_any, total, dtype, {terms, pictures});
  cuda::AdamRecordParams p{};
  p.dtype = adam_dtype(op, total);
  p.total = total.const_data_ptr();
  p.values = values.const_data_ptr();
  p.clock = in_place<int64_t>(op, "clock", clock, total, integer, {2});
  p.curves = in_place(op, "curves", curves, total, dtype, {page, 1 + terms, pictures});
  p.lowest = in_place(op, "lowest", lowest, total, dtype, {pictures});
  p.best_step = in_place<int64_t>(op, "best_step", best_step, total, integer, {pictures});
  p.bad_step = in_place<int64_t>(op, "bad_step", bad_step, total, integer, {pictures});
  p.better = in_place<bool>(op, "better", better, total, ScalarType::Bool, {pictures});
  p.page = page;
  p.terms = terms;
  p.pictures = pictures;
  p.last = last;
  check_launch(op, cuda::adam_record(p, cuda_stream_of(total)));
}

void adam_step(const Tensor& variable, const Tensor& gradient_any, const Tensor& mean, const Tensor& square,
               const Tensor& best, const Tensor& better_any, const Tensor& coefficients_any, const Tensor& clock_any,
               int64_t column, double beta1, double beta2, double eps) {
  const char* op = "adam_step";
  FASTINV_CHECK(on_cuda(variable) && variable.dim() >= 1, op, ": variable must be [N, ...] on a CUDA device");
  FASTINV_CHECK(coefficients_any.dim() == 2 && coefficients_any.size(0) >= 1, op,
                ": coefficients must be [page, columns], got ", to_string(sizes_of(coefficients_any)));
  const DeviceGuard guard = device_guard("adam_step", variable);
  const ScalarType dtype = variable.scalar_type();
  const std::vector<int64_t> sizes = sizes_of(variable);
  const Tensor gradient = cuda_operand(op, "gradient", gradient_any, variable, dtype, sizes);
  const Tensor better = cuda_operand(op, "better", better_any, variable, ScalarType::Bool, {sizes[0]});
  const Tensor coefficients =
      cuda_operand(op, "coefficients", coefficients_any, variable, dtype, sizes_of(coefficients_any));
  const Tensor clock = cuda_operand(op, "clock", clock_any, variable, ScalarType::Long, {2});
  cuda::AdamStepParams p{};
  p.dtype = adam_dtype(op, variable);
  p.variable = in_place(op, "variable", variable, variable, dtype, sizes);
  p.gradient = gradient.const_data_ptr();
  p.mean = in_place(op, "mean", mean, variable, dtype, sizes);
  p.square = in_place(op, "square", square, variable, dtype, sizes);
  p.best = in_place(op, "best", best, variable, dtype, sizes);
  p.better = static_cast<const bool*>(better.const_data_ptr());
  p.coefficients = coefficients.const_data_ptr();
  p.clock = static_cast<const int64_t*>(clock.const_data_ptr());
  p.page = coefficients.size(0);
  p.columns = coefficients.size(1);
  p.column = column;
  FASTINV_CHECK(column >= 0 && column < p.columns, op, ": column must be in 0..", p.columns - 1, ", got ", column);
  p.pictures = sizes[0];
  p.size = p.pictures > 0 ? variable.numel() / p.pictures : 0;
  FASTINV_CHECK(p.size < int64_t(1) << 40, op, ": at most 2^40 elements a picture, got ", p.size);
  p.beta1 = beta1;
  p.beta2 = beta2;
  p.eps = eps;
  check_launch(op, cuda::adam_step(p, cuda_stream_of(variable)));
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, FASTINV_CUDA_KEY, m) {
  m.impl("adam_record", TORCH_BOX(&fastinv::adam_record));
  m.impl("adam_step", TORCH_BOX(&fastinv::adam_step));
}
