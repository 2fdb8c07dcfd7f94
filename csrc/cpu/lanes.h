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
FASTINV_INLINE Lanes<compute_t<T>> load_lanes(const T* from) {
  Lanes<T> x;
  std::memcpy(&x, from, sizeof x);
  if constexpr (sizeof(T) == 2) {
    return widened(x);
  } else {
    return x;
  }
}

template <class T>
FASTINV_INLINE void store_stored(T* to, Lanes<T> x) {
  std::memcpy(to, &x, sizeof x);
}

FASTINV_INLINE Lanes<float> magnitude(Lanes<float> x) {
  return (Lanes<float>)((LanesOf<bfloat16>::wide)x & 0x7fffffffu);
}
FASTINV_INLINE Lanes<double> magnitude(Lanes<double> x) { return x < 0 ? -x : x; }

// totals[i] += x[i] for all lanes
FASTINV_INLINE void add_lanes(double* totals, Lanes<double> x) {
  store_stored(totals, load_lanes(totals) + x);
}
FASTINV_INLINE void add_lanes(double* totals, Lanes<float> x) {
  typedef float Half __attribute__((vector_size(kLaneBytes / 2)));
  Half halves[2];
  std::memcpy(halves, &x, sizeof x);
  add_lanes(totals, __builtin_convertvector(halves[0], Lanes<double>));
  add_lanes(totals + kLanes<double>, __builtin_convertvector(halves[1], Lanes<double>));
}

template <class C>
FASTINV_INLINE Lanes<C> lanes_of(C value) {
  return value - Lanes<C>{};
}

// Four numbers of type C at a time, for what remains of vectors after their halves were added up.
template <class C>
struct FourOf {
  typedef C type __attribute__((vector_size(4 * sizeof(C))));
};
template <class C>
using Four = typename FourOf<C>::type;

// The sums of the lanes of four vectors.
template <class C>
FASTINV_INLINE void sums_of_lanes(const Lanes<C>* x, Four<C>& sums) {
  constexpr int64_t pieces = LanesOf<C>::count / 4;
  C all[4][4] __attribute__((aligned(16)));
  if constexpr (pieces == 0) {
    for (int p = 0; p < 4; ++p) {
      for (int i = 0; i < 4; ++i) all[i][p] = i < LanesOf<C>::count ? x[p][i % LanesOf<C>::count] : C(0);
    }
  } else {
    for (int p = 0; p < 4; ++p) {
      Four<C> parts[pieces > 0 ? pieces : 1];
      std::memcpy(parts, &x[p], sizeof x[p]);
      for (int64_t i = 1; i < pieces; ++i) parts[0] += parts[i];
      for (int i = 0; i < 4; ++i) all[i][p] = parts[0][i];
    }
  }
  Four<C> rows[4];
  std::memcpy(rows, all, sizeof rows);
  sums = (rows[0] + rows[1]) + (rows[2] + rows[3]);
}

template <class C>
FASTINV_INLINE C sum_of_lanes(Lanes<C> x) {
  const Lanes<C> four[4] = {x};
  Four<C> sums;
  sums_of_lanes<C>(four, sums);
  return sums[0];
}

}  // namespace
}  // namespace fastinv::FASTINV_ISA
