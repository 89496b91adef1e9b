// What sampling is made of: the largest of a row, integer weights, and the place in an order where a sum is reached.
//
// Weights are whole numbers, so that sums are exact: no order of adding them up, and no number of threads, can change
// which token a random number points at.
#pragma once

#include "kernels/eight_bits.hpp"

namespace quire::QUIRE_ISA {

// A probability e**y relative to the most likely one's, 1, in units of 2**-43: half a million of 1 sum to 2**62.
constexpr int kWeightBits = 43;
constexpr int64_t kBlock = 1024;  // of weights that are made at once

struct Largest {
  float value;  // NaN if there is one in the row
  int64_t index;
};

// The largest of a row, the first among equals. One pass for the value, then a search where it is.
template <class T>
static inline Largest largest_of(const T* x, int64_t length) {
  Largest found{-__builtin_inff(), 0};
  IntLanes magnitude = {};  // as integers, the bits of NaN are above all others
  int64_t from = 0;
  for (int64_t start = 0; start < length; start += kBlock) {
    Floats most = broadcast(-__builtin_inff());
    for_vectors(length - start < kBlock ? length - start : kBlock, [&](int64_t i, auto n) {
      const Floats some = keep(load(x + start + i, n), n, most);
      const IntLanes bits = lanes_of(some) & 0x7fffffff;
      magnitude = bits > magnitude ? bits : magnitude;
      most = max(some, most);
    });
    const float value = max(most);
    if (value > found.value) found.value = value, from = start;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (magnitude[i] > 0x7f800000) found.value = __builtin_nanf("");
  }
  for (found.index = from; found.index < length; ++found.index) {
    float lanes[kLanes];
    store(lanes, load_part(x + found.index, 1));
    if (!(lanes[0] != found.value)) break;
  }
  return found;
}

// w[i] = e**y[i] in units of 2**-43, rounded down, for at most kBlock of them; returns their sum. y is at most 0.
static inline int64_t weigh(const float* y, int64_t length, int64_t* w) {
  for_vectors(length, [&](int64_t i, auto n) {
    const Floats scaled = exp(load(y + i, n)) * broadcast(static_cast<float>(1LL << kWeightBits));
    int64_t lanes[kLanes];
#ifdef __AVX512F__
    _mm512_storeu_si512(lanes, _mm512_cvttps_epi64(lower_half(scaled)));
    _mm512_storeu_si512(lanes + 8, _mm512_cvttps_epi64(upper_half(scaled)));
#else
    const __m256d one = _mm256_set1_pd(0x1p52);  // whole numbers added to it are its lowest bits
    for (int half = 0; half < 2; ++half) {
      const __m128 four = half == 0 ? _mm256_castps256_ps128(scaled) : _mm256_extractf128_ps(scaled, 1);
      const __m256d whole = _mm256_add_pd(_mm256_floor_pd(_mm256_cvtps_pd(four)), one);
      const __m256i bits = _mm256_xor_si256(_mm256_castpd_si256(whole), _mm256_castpd_si256(one));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes + 4 * half), bits);
    }
#endif
    std::memcpy(w + i, lanes, n * sizeof(int64_t));
  });
  int64_t sum = 0;
  for (int64_t i = 0; i < length; ++i) sum += w[i];
  return sum;
}

// The sum of all weights of a row; `sums` gets each block's.
static inline int64_t total_weight(const float* y, int64_t length, int64_t* sums) {
  int64_t total = 0, weights[kBlock];
  for (int64_t start = 0; start < length; start += kBlock) {
    const int64_t sum = weigh(y + start, length - start < kBlock ? length - start : kBlock, weights);
    sums[start / kBlock] = sum;
    total += sum;
  }
  return total;
}

// Numbers y <= 0 with what each counts for, in any order.
struct Counted {
  const float* y;
  const int64_t* w;  // nullptr: each counts 1
  int64_t size;

  int64_t weight(int64_t i) const { return w == nullptr ? 1 : w[i]; }
};

constexpr int64_t kBuckets = 2048;

// One digit of a radix selection: sums by bucket, then the bucket in which `needed` is reached. What precedes it is
// taken off `needed`, and its members move to the front of `y` and `w`, which may be those of `from`.
template <class Bucket>
static inline int64_t narrow(const Counted& from, int64_t& needed, float* y, int64_t* w, Bucket&& bucket) {
  int64_t sums[kBuckets] = {};
  for (int64_t i = 0; i < from.size; ++i) sums[bucket(from.y[i])] += from.weight(i);
  int64_t chosen = 0;
  while (chosen + 1 < kBuckets && sums[chosen] < needed) needed -= sums[chosen++];
  int64_t size = 0;
  for (int64_t i = 0; i < from.size; ++i) {
    const float value = from.y[i];
    const int64_t weight = from.weight(i);
    if (bucket(value) != chosen) continue;
    y[size] = value;
    w[size++] = weight;
  }
  return size;
}

// The largest y such that those not below it count for `needed` in all: 1 <= needed <= the sum of all. Room in `y` and
// `w` for all. First by steps of 1/64, which spread best, then by the bits of y.
static inline float place_of(const Counted& all, int64_t needed, float* y, int64_t* w) {
  const auto bits = [](float value) { return __builtin_bit_cast(uint32_t, value) & 0x7fffffff; };
  const auto step = [](float value) {
    const float steps = value * -64.0f;
    return steps < kBuckets - 1 ? static_cast<int64_t>(steps) : kBuckets - 1;
  };
  int64_t size = narrow(all, needed, y, w, step);
  size = narrow({y, w, size}, needed, y, w, [&](float value) -> int64_t { return bits(value) >> 21; });
  size = narrow({y, w, size}, needed, y, w, [&](float value) -> int64_t { return bits(value) >> 10 & 2047; });
  narrow({y, w, size}, needed, y, w, [&](float value) -> int64_t { return bits(value) & 1023; });
  return y[0];
}

// A bound that at least `count` of a row reach, close to the count-th largest: of so many groups of 32 the largest
// reach it. -infinity if there are fewer groups. Room in `most`, `y` and `w` for length / 32 + kLanes.
static inline float bound_of(const float* x, int64_t length, int64_t count, float* most, float* y, int64_t* w) {
  constexpr int64_t kGroup = 32;
  int64_t groups = 0;
  for (int64_t start = 0; start + kGroup * kLanes <= length; start += kGroup * kLanes, groups += kLanes) {
    Floats largest = load(x + start);
    for (int64_t i = 1; i < kGroup; ++i) largest = max(largest, load(x + start + i * kLanes));
    store(most + groups, largest);
  }
  return groups < count ? -__builtin_inff() : place_of({most, nullptr, groups}, count, y, w);
}

// Indices and values of a row that reach a bound, in order; returns how many. Room for the row and kLanes more.
static inline int64_t collect(const float* x, int64_t length, float bound, float* values, int64_t* ids) {
  int64_t size = 0;
  for_vectors(length, [&](int64_t i, auto n) {
    const Floats some = load(x + i, n);
#ifdef __AVX512F__
    uint32_t reached = _mm512_cmp_ps_mask(some, broadcast(bound), _CMP_GE_OQ);
#else
    uint32_t reached = _mm256_movemask_ps(_mm256_cmp_ps(some, broadcast(bound), _CMP_GE_OQ));
#endif
    reached = _bzhi_u32(reached, static_cast<int>(n));
    for (; reached != 0; reached &= reached - 1) {
      const int64_t at = i + __builtin_ctz(reached);
      values[size] = x[at];
      ids[size++] = at;
    }
  });
  return size;
}

}  // namespace quire::QUIRE_ISA
