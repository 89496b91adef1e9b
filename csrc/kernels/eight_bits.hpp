// Floats rounded to int8 and float8 e4m3, with scales.
#pragma once

#include "kernels/vectors.hpp"

namespace quire {

// Eight bits that stand for a float of 4 exponent and 3 mantissa bits, without infinities (OCP e4m3, torch's "fn").
struct f8e4m3 {
  uint8_t bits;
};

}  // namespace quire

namespace quire::QUIRE_ISA {

typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));
typedef int8_t ByteLanes __attribute__((vector_size(kLanes)));

template <class Q>
constexpr float kLargest = 127.0f;  // that a row is scaled to
template <>
constexpr float kLargest<f8e4m3> = 448.0f;

QUIRE_INLINE IntLanes lanes_of(Floats x) { return reinterpret_cast<IntLanes>(x); }

// Half to even, saturated at +-127.
QUIRE_INLINE ByteLanes to_eight_bits(Floats x, int8_t) {
  const Floats bounded = min(broadcast(127.0f), max(broadcast(-127.0f), x));
#ifdef __AVX512F__
  const IntLanes whole = reinterpret_cast<IntLanes>(_mm512_cvtps_epi32(bounded));
#else
  const IntLanes whole = reinterpret_cast<IntLanes>(_mm256_cvtps_epi32(bounded));
#endif
  return __builtin_convertvector(whole, ByteLanes);
}

// Half to even, saturated at +-448; NaN stays NaN.
QUIRE_INLINE ByteLanes to_eight_bits(Floats x, f8e4m3) {
  constexpr int kSmallestNormal = 121 << 23, kLargestBits = 0x43e00000, kInfinity = 0x7f800000;
  constexpr int kDenormal = 141 << 23;  // the float whose last bit weighs what e4m3's last denormal bit does
  const IntLanes bits = lanes_of(x), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
  const IntLanes bounded = magnitude > kLargestBits ? IntLanes{} + kLargestBits : magnitude;
  const Floats shifted = reinterpret_cast<Floats>(bounded) + reinterpret_cast<Floats>(IntLanes{} + kDenormal);
  const IntLanes small = lanes_of(shifted) - kDenormal;
  const IntLanes large = (bounded - (120 << 23) + 0x7ffff + (bounded >> 20 & 1)) >> 20;
  const IntLanes finite = bounded < kSmallestNormal ? small : large;
  return __builtin_convertvector((magnitude > kInfinity ? IntLanes{} + 0x7f : finite) | sign, ByteLanes);
}

template <class Q, class N>
QUIRE_INLINE void store_eight_bits(Q* p, Floats x, N count) {
  const ByteLanes bytes = to_eight_bits(x, Q{});
  std::memcpy(p, &bytes, count);
}

// The largest magnitude of a row; NaN if it has one: as integers, the bits of NaN are above those of infinity.
QUIRE_INLINE float largest_magnitude(const float* x, int64_t length) {
  IntLanes most = {};
  for_vectors(length, [&](int64_t i, auto n) {
    const IntLanes bits = lanes_of(load(x + i, n)) & 0x7fffffff;
    most = bits > most ? bits : most;
  });
  int32_t largest = 0;
  for (int i = 0; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
  return __builtin_bit_cast(float, largest);
}

// Rounds a row by a scale of its own and returns the scale. `x` is the row in float, already rounded to its dtype.
template <class Q>
QUIRE_INLINE float quantize_row(const float* x, Q* out, int64_t length) {
  constexpr float kSmallestScale = 1e-12f;  // of a row of zeros, whose quotient must stay finite
  float scale = largest_magnitude(x, length) / kLargest<Q>;
  if (scale < kSmallestScale) scale = kSmallestScale;
  const Floats by = broadcast(scale), inverse = broadcast(1.0f / scale);
  for_vectors(length, [&](int64_t i, auto n) { store_eight_bits(out + i, divide(load(x + i, n), by, inverse), n); });
  return scale;
}

// Calls `body(Q{})` with the type of an 8-bit dtype.
template <class Body>
QUIRE_INLINE void by_eight_bits(DType dtype, Body&& body) {
  if (dtype == DType::f8e4m3) body(f8e4m3{});
  else body(int8_t{});
}

}  // namespace quire::QUIRE_ISA
