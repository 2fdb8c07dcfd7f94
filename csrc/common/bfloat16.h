// The storage type of bfloat16 in kernels. A plain struct of our own, because kernel files are compiled once per
// instruction set: an inline function of a shared header would be emitted in each of them under one name, and the
// linker could keep the AVX-512 one for a machine that has no AVX-512. The conversions are therefore always inlined.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastinv {

struct bfloat16 {
  uint16_t bits;
};

#if defined(__GNUC__) || defined(__clang__)
#define FASTINV_INLINE inline __attribute__((always_inline))
#else
#define FASTINV_INLINE inline
#endif

// The type in which a kernel computes: float for bfloat16, the type itself otherwise.
template <class T>
struct compute_type {
  using type = T;
};
template <>
struct compute_type<bfloat16> {
  using type = float;
};
template <class T>
using compute_t = typename compute_type<T>::type;

FASTINV_INLINE float load(bfloat16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
FASTINV_INLINE float load(float x) { return x; }
FASTINV_INLINE double load(double x) { return x; }

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
FASTINV_INLINE void store(bfloat16& out, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}
FASTINV_INLINE void store(float& out, float value) { out = value; }
FASTINV_INLINE void store(double& out, double value) { out = value; }

}  // namespace fastinv
