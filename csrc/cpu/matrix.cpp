// The matrix products of the frozen convolutions as an op: for tests only, it packs the weights in every call.
#include "matrix.h"

#include <algorithm>

#include "../common/stable.h"

namespace fastinv {
namespace {

template <class T>
void product(const Tensor& a, int64_t start, int64_t a_stride, const std::vector<int64_t>& offsets, const Tensor& b,
             bool add, const Tensor& c) {
  const char* op = "matrix_product";
  const int64_t taps = b.size(0), k = b.size(1), columns = b.size(2), rows = c.size(0);
  const int64_t panel = FASTINV_ISA_CALL(matrix_columns, ), inner = FASTINV_ISA_CALL(matrix_inner<T>, k);
  const int64_t panels = (columns + panel - 1) / panel;
  FASTINV_CHECK(c.size(1) >= panels * panel, op, ": c must have at least ", panels * panel, " columns");
  const auto [low, high] = std::minmax_element(offsets.begin(), offsets.end());
  const int64_t last = (rows - 1) * a_stride;
  FASTINV_CHECK(
      start + *low + std::min<int64_t>(last, 0) >= 0 && start + *high + std::max<int64_t>(last, 0) + inner <= a.numel(),
      op, ": rows of ", inner, " elements lie outside a");
  std::vector<T> packed(FASTINV_ISA_CALL(matrix_packed_size<T>, taps, k, columns) + 64 / sizeof(T));
  T* aligned = packed.data();
  while (reinterpret_cast<uintptr_t>(aligned) % 64 != 0) ++aligned;
  FASTINV_ISA_CALL(matrix_pack<T>, data<float>(b), k * columns, columns, 1, taps, k, columns, aligned);
  MatrixProduct p;
  p.a = data<T>(a) + start;
  p.a_stride = a_stride;
  p.offsets = offsets.data();
  p.taps = taps;
  p.inner = inner;
  p.b = aligned;
  p.c = mutable_data<float>(c);
  p.c_stride = c.stride(0);
  p.rows = rows;
  p.first_panel = 0;
  p.last_panel = panels;
  p.add = add;
  FASTINV_ISA_CALL(matrix_multiply<T>, p);
}

void matrix_product_cpu(const Tensor& a, int64_t start, int64_t a_stride, std::vector<int64_t> offsets, const Tensor& b,
                        bool add, const Tensor& c) {
  const char* op = "matrix_product";
  FASTINV_CHECK(a.is_contiguous() && (a.scalar_type() == ScalarType::Float || a.scalar_type() == ScalarType::BFloat16),
                op, ": a must be contiguous, float32 or bfloat16");
  FASTINV_CHECK(b.dim() == 3 && b.is_contiguous() && b.scalar_type() == ScalarType::Float && b.size(0) > 0 &&
                    b.size(1) > 0 && b.size(0) == static_cast<int64_t>(offsets.size()),
                op, ": b must be [taps, k, n], contiguous, float32, not empty, with one offset for each tap");
  FASTINV_CHECK(c.dim() == 2 && c.size(0) > 0 && c.stride(1) == 1 && c.scalar_type() == ScalarType::Float, op,
                ": c must be [rows, columns] of float32, its columns side by side");
  if (a.scalar_type() == ScalarType::Float) return product<float>(a, start, a_stride, offsets, b, add, c);
  product<bfloat16>(a, start, a_stride, offsets, b, add, c);
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) { m.impl("matrix_product", TORCH_BOX(&fastinv::matrix_product_cpu)); }
