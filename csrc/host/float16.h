// __half and __nv_bfloat16 for g++: the layout of CUDA's types, conversions that round to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastinv::host {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Drops the lowest `count` bits, to nearest, ties to even. A carry into the exponent is what rounding up wants.
inline uint32_t round_off_bits(uint32_t bits, int count) {
  const uint32_t odd = bits >> count & 1;
  return (bits + (uint32_t{1} << (count - 1)) - 1 + odd) >> count;
}

inline uint16_t half_from_float(float value) {
  const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;                                            // NaN, as the device gives it
  if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);             // 65536 and above
  if (magnitude >= 0x38800000) {                                                        // normal: 2^-14 and above
    return static_cast<uint16_t>(sign | round_off_bits(magnitude - (112u << 23), 13));  // 65520 carries to infinity
  }
  const int shift = 126 - static_cast<int>(magnitude >> 23);  // subnormal: units of 2^-24
  if (shift > 24) return static_cast<uint16_t>(sign);         // below 2^-25: zero
  return static_cast<uint16_t>(sign | round_off_bits((magnitude & 0x7fffff) | 0x800000, shift));
}

inline float float_from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return float_from_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent != 0) return float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * (1.0f / 16777216.0f);  // subnormal: exact
  return sign != 0 ? -magnitude : magnitude;
}

inline uint16_t bfloat16_from_float(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>(round_off_bits(bits, 16));
}

inline float float_from_bfloat16(uint16_t bits) { return float_from_bits(static_cast<uint32_t>(bits) << 16); }

}  // namespace fastinv::host

struct __half {
  __half() = default;
  explicit __half(float value) : bits(fastinv::host::half_from_float(value)) {}
  explicit operator float() const { return fastinv::host::float_from_half(bits); }
  uint16_t bits;
};

struct __nv_bfloat16 {
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : bits(fastinv::host::bfloat16_from_float(value)) {}
  explicit operator float() const { return fastinv::host::float_from_bfloat16(bits); }
  uint16_t bits;
};
