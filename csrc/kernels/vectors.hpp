// Vectors of floats as wide as the set of instructions has them: loads and stores of float, bf16 and f16, rounding,
// exponentials, and sums in one fixed order. GCC's vector operators (+ - * /) work on `Floats`.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tensor.hpp"

namespace quire {

// Sixteen bits that stand for an IEEE half.
struct f16 {
  uint16_t bits;
};

}  // namespace quire

namespace quire::QUIRE_ISA {

#define QUIRE_INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__

using Floats = __m512;
using Ints = __m512i;
constexpr int kLanes = 16;

QUIRE_INLINE Floats broadcast(float x) { return _mm512_set1_ps(x); }
QUIRE_INLINE Floats zeros() { return _mm512_setzero_ps(); }
QUIRE_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
QUIRE_INLINE Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // of a NaN: b
QUIRE_INLINE Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
QUIRE_INLINE Floats sqrt(Floats x) { return _mm512_sqrt_ps(x); }
QUIRE_INLINE Floats abs(Floats x) { return _mm512_abs_ps(x); }
QUIRE_INLINE Floats round(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QUIRE_INLINE Ints bits_of(Floats x) { return _mm512_castps_si512(x); }
QUIRE_INLINE Floats floats_of(Ints x) { return _mm512_castsi512_ps(x); }

// 1 / x within 2 units in the last place, for x in [2**-126, 2**126]: an estimate and a step of Newton's.
QUIRE_INLINE Floats reciprocal(Floats x) {
  const Floats r = _mm512_rcp14_ps(x);
  return fma(r, fma(broadcast(0.0f) - x, r, broadcast(1.0f)), r);
}

// x * 2**n, n a whole number in [-252, 254].
QUIRE_INLINE Floats scale_by_power(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }

QUIRE_INLINE Floats load(const float* p) { return _mm512_loadu_ps(p); }
QUIRE_INLINE Floats load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
QUIRE_INLINE Floats load(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Rounds half to even; a NaN stays one (quiet, its payload's upper bits kept). Not AVX512-BF16's instruction, which
// takes denormals for zero.
QUIRE_INLINE __m256i bf16_bits(Floats x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}
QUIRE_INLINE void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
QUIRE_INLINE void store(bf16* p, Floats x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bf16_bits(x)); }
QUIRE_INLINE void store(f16* p, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// The first `count` elements, 0..kLanes; the others are 0. Memory past them is not touched.
QUIRE_INLINE __mmask16 first(int count) { return static_cast<__mmask16>(_bzhi_u32(0xffff, count)); }
QUIRE_INLINE Floats load_part(const float* p, int count) { return _mm512_maskz_loadu_ps(first(count), p); }
QUIRE_INLINE Floats load_part(const bf16* p, int count) {
  const __m256i half = _mm256_maskz_loadu_epi16(first(count), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
QUIRE_INLINE Floats load_part(const f16* p, int count) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), p));
}
QUIRE_INLINE void store_part(float* p, Floats x, int count) { _mm512_mask_storeu_ps(p, first(count), x); }
QUIRE_INLINE void store_part(bf16* p, Floats x, int count) { _mm256_mask_storeu_epi16(p, first(count), bf16_bits(x)); }
QUIRE_INLINE void store_part(f16* p, Floats x, int count) {
  const __m256i half = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_mask_storeu_epi16(p, first(count), half);
}

// `x` in the first `count` lanes, `other` in those after.
QUIRE_INLINE Floats keep(Floats x, int count, Floats other) { return _mm512_mask_mov_ps(other, first(count), x); }

QUIRE_INLINE __m256 lower_half(Floats x) { return _mm512_castps512_ps256(x); }
QUIRE_INLINE __m256 upper_half(Floats x) { return _mm512_extractf32x8_ps(x, 1); }

// All lanes, in the order of a tree: halves, quarters, pairs, two.
QUIRE_INLINE float sum_of_eight(__m256 x);
QUIRE_INLINE float max_of_eight(__m256 x);
QUIRE_INLINE float sum(Floats x) { return sum_of_eight(_mm256_add_ps(lower_half(x), upper_half(x))); }
QUIRE_INLINE float max(Floats x) { return max_of_eight(_mm256_max_ps(lower_half(x), upper_half(x))); }

#else

using Floats = __m256;
using Ints = __m256i;
constexpr int kLanes = 8;

QUIRE_INLINE Floats broadcast(float x) { return _mm256_set1_ps(x); }
QUIRE_INLINE Floats zeros() { return _mm256_setzero_ps(); }
QUIRE_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
QUIRE_INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // of a NaN: b
QUIRE_INLINE Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
QUIRE_INLINE Floats sqrt(Floats x) { return _mm256_sqrt_ps(x); }
QUIRE_INLINE Floats abs(Floats x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
QUIRE_INLINE Floats round(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QUIRE_INLINE Ints bits_of(Floats x) { return _mm256_castps_si256(x); }
QUIRE_INLINE Floats floats_of(Ints x) { return _mm256_castsi256_ps(x); }

// 1 / x within 2 units in the last place, for x in [2**-126, 2**126]: an estimate and two steps of Newton's.
QUIRE_INLINE Floats reciprocal(Floats x) {
  Floats r = _mm256_rcp_ps(x);
  r = fma(r, fma(broadcast(0.0f) - x, r, broadcast(1.0f)), r);
  return fma(r, fma(broadcast(0.0f) - x, r, broadcast(1.0f)), r);
}

// x * 2**n, n a whole number in [-252, 254]: in two steps, as 2**n alone may be no float.
QUIRE_INLINE Floats scale_by_power(Floats x, Floats n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
  const __m256i other = _mm256_sub_epi32(whole, half);
  const __m256 once = _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  return _mm256_mul_ps(once, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(other, bias), 23)));
}

QUIRE_INLINE Floats load(const float* p) { return _mm256_loadu_ps(p); }
QUIRE_INLINE Floats load(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
QUIRE_INLINE Floats load(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Rounds half to even; a NaN stays one (quiet, its payload's upper bits kept).
QUIRE_INLINE __m128i bf16_bits(Floats x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
}
QUIRE_INLINE void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
QUIRE_INLINE void store(bf16* p, Floats x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bf16_bits(x)); }
QUIRE_INLINE void store(f16* p, Floats x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// The first `count` elements, 0..kLanes; the others are 0. Memory past them is not touched.
template <class T>
QUIRE_INLINE Floats load_part(const T* p, int count) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, count * sizeof(T));
  return load(lanes);
}
template <class T>
QUIRE_INLINE void store_part(T* p, Floats x, int count) {
  T lanes[kLanes];
  store(lanes, x);
  std::memcpy(p, lanes, count * sizeof(T));
}

// `x` in the first `count` lanes, `other` in those after.
QUIRE_INLINE Floats keep(Floats x, int count, Floats other) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane)));
}

QUIRE_INLINE float sum_of_eight(__m256 x);
QUIRE_INLINE float max_of_eight(__m256 x);
QUIRE_INLINE float sum(Floats x) { return sum_of_eight(x); }
QUIRE_INLINE float max(Floats x) { return max_of_eight(x); }

#endif

QUIRE_INLINE float sum_of_eight(__m256 x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}

QUIRE_INLINE float max_of_eight(__m256 x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

// What `x` becomes when it is stored as a T and loaded again.
template <class T>
QUIRE_INLINE Floats rounded_to(Floats x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    T lanes[kLanes];
    store(lanes, x);
    return load(lanes);
  }
}

// e**x within 1.5 units in the last place (of a result that is no denormal); 0 below -104, infinity above 88.73, NaN
// for NaN. x = n ln 2 + r, and e**r by a polynomial on |r| <= ln 2 / 2 (Cephes' coefficients of expf).
QUIRE_INLINE Floats exp(Floats x) {
  x = max(broadcast(-104.0f), min(broadcast(89.0f), x));
  const Floats n = round(x * broadcast(1.44269504088896341f));
  const Floats r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
  Floats p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  return scale_by_power(fma(p, r * r, r) + broadcast(1.0f), n);
}

// x / (1 + e**-t): silu for t = x. Below t = -87 it is less than 1e-35 |x|, and taken as that of -87.
QUIRE_INLINE Floats gated(Floats x, Floats t) {
  return x * reciprocal(broadcast(1.0f) + exp(zeros() - max(broadcast(-87.0f), t)));
}
QUIRE_INLINE Floats silu(Floats x) { return gated(max(broadcast(-87.0f), x), x); }

// x / d exactly rounded, where `r` is 1 / d exactly rounded and nothing leaves the range of normal numbers: three
// products instead of a division, which takes several times as long (Markstein 1990,
// https://doi.org/10.1147/rd.341.0111).
QUIRE_INLINE Floats divide(Floats x, Floats d, Floats r) {
  const Floats q = x * r;
  return fma(fma(zeros() - q, d, x), r, q);
}

// Within 1e-7 absolutely.
QUIRE_INLINE Floats tanh(Floats x) {
  return broadcast(1.0f) - broadcast(2.0f) / (exp(x + x) + broadcast(1.0f));
}

// Calls `body(T{})` with the type of a float dtype: one switch outside of loops.
template <class Body>
QUIRE_INLINE void by_float(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::bf16: return body(bf16{});
    case DType::f16: return body(f16{});
    default: return body(float{});
  }
}

// Loops over a row of any length: `body(i, n)` for each vector that starts at element i and has n elements, all kLanes
// of them but in the last, where n is an int.
template <class Body>
QUIRE_INLINE void for_vectors(int64_t length, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) body(i, std::integral_constant<int, kLanes>{});
  if (i < length) body(i, static_cast<int>(length - i));
}

// `load_part` and `store_part`, whole where `for_vectors` says so.
template <class T, class N>
QUIRE_INLINE Floats load(const T* p, N count) {
  if constexpr (std::is_same_v<N, int>) return load_part(p, count);
  else return load(p);
}
template <class T, class N>
QUIRE_INLINE void store(T* p, Floats x, N count) {
  if constexpr (std::is_same_v<N, int>) store_part(p, x, count);
  else store(p, x);
}

// `store` by the instruction for it where there is one, which takes denormals for zero, as tiles do.
template <class T, class N>
QUIRE_INLINE void store_quickly(T* p, Floats x, N count) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, bf16>) {
    const __m256i bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
    if constexpr (std::is_same_v<N, int>) _mm256_mask_storeu_epi16(p, first(count), bits);
    else _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
    return;
  }
#endif
  store(p, x, count);
}

#ifdef __AVX512BF16__
// The line of what `store_quickly` stores of one vector and the next.
QUIRE_INLINE Ints both_quickly(Floats x, Floats next) {
  return reinterpret_cast<Ints>(_mm512_cvtne2ps_pbh(next, x));
}
#endif

// The sum of `term(i, n)` over a row, in an order that its length alone decides: four vectors of sums in turn, then
// their tree. Terms past the n-th lane must be 0.
template <class Term>
QUIRE_INLINE float sum_over(int64_t length, Term&& term) {
  constexpr std::integral_constant<int, kLanes> whole;
  Floats a = zeros(), b = zeros(), c = zeros(), d = zeros();
  int64_t i = 0;
  for (; i + 4 * kLanes <= length; i += 4 * kLanes) {
    a += term(i, whole);
    b += term(i + kLanes, whole);
    c += term(i + 2 * kLanes, whole);
    d += term(i + 3 * kLanes, whole);
  }
  for (; i + kLanes <= length; i += kLanes) a += term(i, whole);
  if (i < length) b += term(i, static_cast<int>(length - i));
  return sum((a + b) + (c + d));
}

}  // namespace quire::QUIRE_ISA
