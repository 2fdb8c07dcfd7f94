// Vectors of the instruction set that a kernel file is compiled for, in the compiler's own vector extension:
// arithmetic, comparison and selection (a > b ? x : y) are written as for numbers. Feature maps of bfloat16 widen to
// float.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

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

// Rounded to nearest, ties to even, a NaN stays a NaN: as `store` does. unit: by the bfloat16 unit, which must be
// there; it differs for numbers below 2^-126 alone, which become zero.
template <class T, bool unit = false>
FASTINV_INLINE Lanes<T> narrowed(Lanes<compute_t<T>> x) {
#if defined(__AVX512F__) && defined(FASTINV_HAVE_BFLOAT16_UNITS)
  if constexpr (sizeof(T) == 2 && unit) {
    Lanes<T> rounded;  // in assembly: an intrinsic would ask the functions around it to be compiled for the unit
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(x));
    return rounded;
  }
#endif
  if constexpr (sizeof(T) == 2) {
    const auto bits = (LanesOf<bfloat16>::wide)x;
    const auto rounded = x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fc0u - (bits ^ bits);
    return __builtin_convertvector(rounded, Lanes<T>);
  } else {
    return x;
  }
}

// As `narrowed`; unit: whether the bfloat16 unit is there, asked for while running.
template <class T>
FASTINV_INLINE Lanes<T> rounded(bool unit, Lanes<float> x) {
  return unit ? narrowed<T, true>(x) : narrowed<T>(x);
}

// The first `count` lanes from memory, zeros in the others; without a count all of them.
template <class T>
FASTINV_INLINE Lanes<compute_t<T>> load_lanes(const T* from, int64_t count = kLanes<T>) {
  Lanes<T> x;
  if (count == kLanes<T>) {
    std::memcpy(&x, from, sizeof x);
  } else {
    T some[kLanes<T>] = {};
    for (int64_t i = 0; i < count; ++i) some[i] = from[i];
    std::memcpy(&x, some, sizeof x);
  }
  if constexpr (sizeof(T) == 2) {
    return widened(x);
  } else {
    return x;
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

// To memory past the caches, which spares the reading of what is overwritten, where `streamed` says so and the machine
// can. `to` must be a multiple of the vector's size then, and `end_of_stream` follow before others read it.
template <class T, bool streamed>
FASTINV_INLINE void store_lanes(T* to, Lanes<T> x) {
#if defined(__SSE2__)
  if constexpr (streamed) {
#if defined(__AVX512F__)
    if constexpr (sizeof x == 64) return _mm512_stream_si512((__m512i*)to, (__m512i)x);
#endif
#if defined(__AVX__)
    if constexpr (sizeof x == 32) return _mm256_stream_si256((__m256i*)to, (__m256i)x);
#endif
    if constexpr (sizeof x == 16) return _mm_stream_si128((__m128i*)to, (__m128i)x);
  }
#endif
  store_stored(to, x);
}
FASTINV_INLINE void end_of_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

FASTINV_INLINE Lanes<float> magnitude(Lanes<float> x) {
  return (Lanes<float>)((LanesOf<bfloat16>::wide)x & 0x7fffffffu);
}
FASTINV_INLINE Lanes<double> magnitude(Lanes<double> x) { return x < 0 ? -x : x; }

// totals[i] += x[i] for all lanes
FASTINV_INLINE void add_lanes(double* totals, Lanes<double> x) { store_stored(totals, load_lanes(totals) + x); }
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

// Elements of two vectors, those of b counted on from those of a. gcc has clang's builtin from version 12 on.
#if defined(__clang__)
#define FASTINV_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FASTINV_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype((a) < (b)){__VA_ARGS__})
#endif

// The sums of the lanes of four vectors.
template <class C>
FASTINV_INLINE void sums_of_lanes(const Lanes<C>* x, Four<C>& sums) {
  constexpr int64_t pieces = kLaneBytes / sizeof(Four<C>);
  Four<C> four[4] = {};
  for (int i = 0; i < 4; ++i) {
    if constexpr (pieces == 0) {  // two doubles
      std::memcpy(&four[i], &x[i], sizeof x[i]);
    } else {
      Four<C> parts[pieces];
      std::memcpy(parts, &x[i], sizeof parts);
      for (int64_t k = 1; k < pieces; ++k) parts[0] += parts[k];
      four[i] = parts[0];
    }
  }
  const Four<C> a = FASTINV_SHUFFLE(four[0], four[1], 0, 4, 1, 5) + FASTINV_SHUFFLE(four[0], four[1], 2, 6, 3, 7);
  const Four<C> b = FASTINV_SHUFFLE(four[2], four[3], 0, 4, 1, 5) + FASTINV_SHUFFLE(four[2], four[3], 2, 6, 3, 7);
  sums = FASTINV_SHUFFLE(a, b, 0, 1, 4, 5) + FASTINV_SHUFFLE(a, b, 2, 3, 6, 7);
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
