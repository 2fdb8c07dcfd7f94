// The activations and their first two derivatives, as loops over them vectorise. Only for *_kernel.cpp.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/bfloat16.h"

namespace fastinv::FASTINV_ISA {
namespace {

// e = exp(x) and m = exp(x) - 1 for x <= 0, each to about 1 unit in the last place. No table, no branch, no library
// call, so that the loop around it vectorises. x = n ln 2 + r, |r| <= ln 2 / 2; a Taylor polynomial gives exp(r) - 1.
FASTINV_INLINE void exp_negative(float x, float& e, float& m) {
  constexpr float kLowest = -87.3f;      // below it the result would be subnormal: zero
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  float bounded = x < kLowest ? kLowest : x;
  float shifted = bounded * 1.44269504f + kMagic;
  float n = shifted - kMagic;
  float r = bounded - n * 0.693359375f;  // ln 2 in two parts, the first with few bits: the product is exact
  r = r + n * 2.12194440e-4f;
  float q = 1.0f / 5040;
  q = q * r + 1.0f / 720;
  q = q * r + 1.0f / 120;
  q = q * r + 1.0f / 24;
  q = q * r + 1.0f / 6;
  q = q * r + 0.5f;
  q = q * r * r + r;
  int32_t bits, magic_bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&magic_bits, &kMagic, sizeof magic_bits);
  int32_t scale_bits = (bits - magic_bits + 127) << 23;
  float scale;
  std::memcpy(&scale, &scale_bits, sizeof scale);
  e = x < kLowest ? 0.0f : scale * q + scale;
  m = x < kLowest ? -1.0f : scale * q + (scale - 1.0f);
}
FASTINV_INLINE void exp_negative(double x, double& e, double& m) {
  e = __builtin_exp(x);
  m = __builtin_expm1(x);
}

// log(1 + t) for 0 <= t <= 1, as 2 artanh(t / (2 + t)).
FASTINV_INLINE float log1p_unit(float t) {
  float s = t / (2.0f + t), u = s * s;
  float q = 1.0f / 15;
  q = q * u + 1.0f / 13;
  q = q * u + 1.0f / 11;
  q = q * u + 1.0f / 9;
  q = q * u + 1.0f / 7;
  q = q * u + 1.0f / 5;
  q = q * u + 1.0f / 3;
  return 2.0f * (s + s * u * q);
}
FASTINV_INLINE double log1p_unit(double t) { return __builtin_log1p(t); }

// Value and derivatives at one point; what is not used is not computed.
template <class C>
struct Jet {
  C value, first, second;
};

template <class C>
FASTINV_INLINE C absolute(C z) {
  return z < C(0) ? -z : z;
}

struct Linear {
  template <class C>
  static FASTINV_INLINE Jet<C> at(C z, C) {
    return {z, C(1), C(0)};
  }
};

struct Relu {
  template <class C>
  static FASTINV_INLINE Jet<C> at(C z, C) {
    return {z < C(0) ? C(0) : z, z > C(0) ? C(1) : C(0), C(0)};
  }
};

struct LeakyRelu {
  template <class C>
  static FASTINV_INLINE Jet<C> at(C z, C alpha) {
    return {z < C(0) ? z * alpha : z, z > C(0) ? C(1) : alpha, C(0)};
  }
};

struct Tanh {
  template <class C>
  static FASTINV_INLINE Jet<C> at(C z, C) {
    C e, m;
    exp_negative(C(-2) * absolute(z), e, m);
    C magnitude = -m / (C(2) + m);
    C value = z < C(0) ? -magnitude : magnitude;
    C first = C(4) * e / ((C(1) + e) * (C(1) + e));
    return {value, first, C(-2) * value * first};
  }
};

struct Sigmoid {
  template <class C>
  static FASTINV_INLINE Jet<C> at(C z, C) {
    C e, m;
    exp_negative(-absolute(z), e, m);
    C r = C(1) / (C(1) + e);
    C value = z < C(0) ? e * r : r;
    C first = e * r * r;
    return {value, first, first * (C(1) - C(2) * value)};
  }
};

// scale * (z > 0 ? z : alpha * (exp(z) - 1)); at 0 the second derivative is that of the right side, as in torch
template <class C>
FASTINV_INLINE Jet<C> exponential_linear(C z, C scale, C alpha) {
  C e, m;
  exp_negative(z > C(0) ? C(0) : z, e, m);
  C slope = scale * alpha * e;
  return {z > C(0) ? scale * z : scale * alpha * m, z > C(0) ? scale : slope, z < C(0) ? slope : C(0)};
}

struct Elu {
  template <class C>
  static FASTINV_INLINE Jet<C> at(C z, C) {
    return exponential_linear(z, C(1), C(1));
  }
};

struct Selu {
  template <class C>
  static FASTINV_INLINE Jet<C> at(C z, C) {
    return exponential_linear(z, C(1.0507009873554804934193349852946), C(1.6732632423543772848170429916717));
  }
};

struct Softplus {
  template <class C>
  static FASTINV_INLINE Jet<C> at(C z, C) {
    C e, m;
    exp_negative(-absolute(z), e, m);
    C r = C(1) / (C(1) + e);
    return {(z < C(0) ? C(0) : z) + log1p_unit(e), z < C(0) ? e * r : r, e * r * r};
  }
};

struct Swish {
  template <class C>
  static FASTINV_INLINE Jet<C> at(C z, C) {
    C e, m;
    exp_negative(-absolute(z), e, m);
    C r = C(1) / (C(1) + e);
    C s = z < C(0) ? e * r : r, ds = e * r * r;
    return {z * s, s + z * ds, ds * (C(2) + z * (C(1) - C(2) * s))};
  }
};

}  // namespace
}  // namespace fastinv::FASTINV_ISA
