// Rounding of whole vectors to the type of a feature map, by the CPU's instruction where it has one.
#pragma once

#include "../common/isa.h"
#include "lanes.h"

namespace fastinv::FASTINV_ISA {
namespace {

// As `narrowed`, except that the instruction takes numbers below 2^-126 for zero. unit: bfloat16_unit() has it.
template <class T>
FASTINV_INLINE Lanes<T> rounded(bool unit, Lanes<float> x) {
#if defined(__AVX512F__) && defined(FASTINV_HAVE_BFLOAT16_UNITS)
  if constexpr (sizeof(T) == 2) {
    if (unit) {
      Lanes<T> y;
      asm("vcvtneps2bf16 %1, %0" : "=v"(y) : "v"(x));
      return y;
    }
  }
#endif
  (void)unit;
  return narrowed<T>(x);
}

}  // namespace
}  // namespace fastinv::FASTINV_ISA
