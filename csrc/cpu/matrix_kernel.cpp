// Products with packed weights: plain loops.
#include "matrix.h"

namespace fastinv::FASTINV_ISA {
namespace {

constexpr int64_t kColumns = 32;
constexpr int64_t kBlock = 128;  // terms added one by one, before their sum goes to a sum of blocks

}  // namespace

int64_t matrix_columns() { return kColumns; }

template <class T>
int64_t matrix_inner(int64_t k) {
  const int64_t step = sizeof(T) == 4 ? 1 : bfloat16_unit() == Bfloat16Unit::amx ? 32 : 2;
  return (k + step - 1) / step * step;
}

template <class T>
int64_t matrix_packed_size(int64_t taps, int64_t k, int64_t columns) {
  return (columns + kColumns - 1) / kColumns * kColumns * taps * matrix_inner<T>(k);
}

// Panels of columns one after the other, in each [tap][k][column]; for bfloat16 [tap][k / 2][column][k % 2].
template <class T>
void matrix_pack(const float* source, int64_t tap_stride, int64_t k_stride, int64_t n_stride, int64_t taps, int64_t k,
                 int64_t columns, void* packed) {
  constexpr int64_t kGroup = sizeof(T) == 4 ? 1 : 2;
  const int64_t inner = matrix_inner<T>(k);
  T* out = static_cast<T*>(packed);
  for (int64_t first = 0; first < columns; first += kColumns) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t i = 0; i < inner; i += kGroup) {
        for (int64_t n = first; n < first + kColumns; ++n) {
          for (int64_t j = i; j < i + kGroup; ++j) {
            const bool inside = j < k && n < columns;
            store(*out++, inside ? source[t * tap_stride + j * k_stride + n * n_stride] : 0.0f);
          }
        }
      }
    }
  }
}

template <class T>
void matrix_multiply(const MatrixProduct& p) {
  constexpr int64_t kGroup = sizeof(T) == 4 ? 1 : 2;
  const T* a = static_cast<const T*>(p.a);
  for (int64_t panel = p.first_panel; panel < p.last_panel; ++panel) {
    const T* b = static_cast<const T*>(p.b) + panel * p.taps * p.inner * kColumns;
    for (int64_t m = 0; m < p.rows; ++m) {
      float sums[kColumns] = {}, part[kColumns] = {};
      for (int64_t t = 0; t < p.taps; ++t) {
        const T* row = a + m * p.a_stride + p.offsets[t];
        for (int64_t k = 0; k < p.inner; ++k) {
          const T* values = b + (t * p.inner + k / kGroup * kGroup) * kColumns + k % kGroup;
          for (int64_t n = 0; n < kColumns; ++n) part[n] += load(row[k]) * load(values[n * kGroup]);
          if (k % kBlock != kBlock - 1 && k != p.inner - 1) continue;
          for (int64_t n = 0; n < kColumns; ++n) sums[n] += part[n], part[n] = 0;
        }
      }
      float* out = p.c + m * p.c_stride + panel * kColumns;
      for (int64_t n = 0; n < kColumns; ++n) out[n] = (p.add ? out[n] : 0.0f) + sums[n];
    }
  }
}

#define INSTANTIATE(T)                                                                                     \
  template int64_t matrix_inner<T>(int64_t);                                                               \
  template int64_t matrix_packed_size<T>(int64_t, int64_t, int64_t);                                       \
  template void matrix_pack<T>(const float*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, void*); \
  template void matrix_multiply<T>(const MatrixProduct&);
INSTANTIATE(float)
INSTANTIATE(bfloat16)

}  // namespace fastinv::FASTINV_ISA
