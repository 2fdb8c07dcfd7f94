// Vectors of the instruction set that a kernel file is compiled for, in the compiler's own vector extension:
// arithmetic, comparison and selection (a > b ? x : y) are written as for numbers. Feature maps of bfloat16 widen to
// float.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/bfloat16.h"

namespace fastinv::FASTINV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLaneBytes = 64;
#elif defined(__AVX__)
constexpr int64_t kLaneBytes = 32;
#else
constexpr int64_t kLaneBytes = 16;
#endif

template <class C>
struct LanesOf {
  static constexpr int64_t count = kLaneBytes / sizeof(C);
  typedef C type __attribute__((vector_size(kLaneBytes)));
};
template <>
struct LanesOf<bfloat16> {  // as they are stored, and as bits of a float
  typedef uint16_t type __attribute__((vector_size(kLaneBytes / 2)));
  typedef uint32_t wide __attribute__((vector_size(kLaneBytes)));
};
template <class C>
using Lanes = typename LanesOf<C>::type;
template <class T>
constexpr int64_t kLanes = LanesOf<compute_t<T>>::count;

template <class C>
FASTINV_INLINE Lanes<C> widened(Lanes<C> x) {
  return x;
}
FASTINV_INLINE Lanes<float> widened(Lanes<bfloat16> x) {
  return (Lanes<float>)(__builtin_convertvector(x, LanesOf<bfloat16>::wide) << 16);
}

// Rounded to nearest, ties to even, a NaN stays a NaN: as `store` does.
template <class T>
FASTINV_INLINE Lanes<T> narrowed(Lanes<compute_t<T>> x) {
  if constexpr (sizeof(T) == 2) {
    const auto bits = (LanesOf<bfloat16>::wide)x;
    const auto rounded = x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fc0u - (bits ^ bits);
    return __builtin_convertvector(rounded, Lanes<T>);
  } else {
    return x;
  }
}

template <class T>
FASTINV_INLINE Lanes<T> load_stored(const T* from, int64_t count) {
  Lanes<T> x;
  if (count == kLanes<T>) {
    std::memcpy(&x, from, sizeof x);
  } else {
    T some[kLanes<T>] = {};
    for (int64_t i = 0; i < count; ++i) some[i] = from[i];
    std::memcpy(&x, some, sizeof x);
  }
  return x;
}

// The first `count` lanes from memory, zeros in the others; a constant count makes the choice while compiling.
template <class T>
FASTINV_INLINE Lanes<compute_t<T>> load_lanes(const T* from, int64_t count = kLanes<T>) {
  if constexpr (sizeof(T) == 2) {
    return widened(load_stored(from, count));
  } else {
    return load_stored(from, count);
  }
}

template <class T>
FASTINV_INLINE void store_stored(T* to, Lanes<T> x, int64_t count = kLanes<T>) {
  if (count == kLanes<T>) {
    std::memcpy(to, &x, sizeof x);
  } else {
    T some[kLanes<T>];
    std::memcpy(some, &x, sizeof x);
    for (int64_t i = 0; i < count; ++i) to[i] = some[i];
  }
}

template <class C>
FASTINV_INLINE Lanes<C> lanes_of(C value) {
  return value - Lanes<C>{};
}

template <class C>
FASTINV_INLINE C sum_of_lanes(Lanes<C> x) {
  C parts[LanesOf<C>::count];
  std::memcpy(parts, &x, sizeof x);
  for (int64_t n = LanesOf<C>::count / 2; n > 0; n /= 2) {
    for (int64_t i = 0; i < n; ++i) parts[i] += parts[i + n];
  }
  return parts[0];
}

}  // namespace
}  // namespace fastinv::FASTINV_ISA
