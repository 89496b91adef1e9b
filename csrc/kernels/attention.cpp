// Attention in float32: keys and values of any dtype, widened when they are packed.
#include "kernels/attention.hpp"

#include "kernels/declarations.hpp"
#include "kernels/eight_bits.hpp"
#include "kernels/transpose.hpp"

namespace quire::QUIRE_ISA {
namespace {

template <class T>
QUIRE_INLINE Floats widened(const T* p) {
  return load(p);
}

QUIRE_INLINE Floats widened(const int8_t* p) {
#ifdef __AVX512F__
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#endif
}

// Exponent and mantissa of e4m3, moved to where f16 has them, are 2**-8 of their value, denormals included.
QUIRE_INLINE Floats widened(const f8e4m3* p) {
  constexpr int16_t kNotBit14 = static_cast<int16_t>(0xbfff);
#ifdef __AVX512F__
  const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const Floats small = _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16(kNotBit14)));
#else
  const __m128i words = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const Floats small = _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(words, 7), _mm_set1_epi16(kNotBit14)));
#endif
  const Floats x = small * broadcast(256.0f);
  const IntLanes is_nan = abs(x) == broadcast(480.0f);  // all bits of exponent and mantissa set
  return is_nan ? broadcast(__builtin_nanf("")) : x;
}

// The first `count` elements, of which there may be less than none.
template <class T>
QUIRE_INLINE Floats widened(const T* p, int64_t count) {
  if (count >= kLanes) return widened(p);
  T lanes[kLanes] = {};
  if (count > 0) std::memcpy(lanes, p, count * sizeof(T));
  return widened(lanes);
}

constexpr int kVectors = kPanel / kLanes;

// `kRows` rows of c [.., kPanel] = a [.., depth] panel [depth, kPanel], each element summed from the first on.
template <int kRows>
QUIRE_INLINE void multiply_rows(const float* a, int64_t a_stride, const float* panel, int64_t depth, float* c,
                                int64_t c_stride, bool adds) {
  Floats sums[kRows][kVectors];
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVectors; ++i) sums[row][i] = adds ? load(c + row * c_stride + i * kLanes) : zeros();
  }
  for (int64_t k = 0; k < depth; ++k) {
    Floats b[kVectors];
    for (int i = 0; i < kVectors; ++i) b[i] = load(panel + k * kPanel + i * kLanes);
    for (int row = 0; row < kRows; ++row) {
      const Floats x = broadcast(a[row * a_stride + k]);
      for (int i = 0; i < kVectors; ++i) sums[row][i] = fma(x, b[i], sums[row][i]);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVectors; ++i) store(c + row * c_stride + i * kLanes, sums[row][i]);
  }
}

template <class T>
struct FloatProducts {
  using Element = float;

  static constexpr bool reads_keys(const AttentionStep&, int64_t) { return false; }
  static void pack_queries(const float*, int64_t, int64_t, float*) {}
  static void score_keys(const std::byte* const*, const std::byte* const*, int64_t, const float*, float*, int64_t,
                         float*, int64_t) {}
  static void use_queries(const float*, int64_t) {}
  static void use_rows(int64_t) {}
  static void end() {}
  QUIRE_INLINE void store_weights(float* p, Floats x) { store(p, x); }
  QUIRE_INLINE Floats sums_at(const float* row, int64_t i) { return load(row + i); }

  static void pack_keys(const std::byte* const* rows, const std::byte* const* ahead, int64_t head_dim, float* panel) {
    for (int64_t key = 0; key < kPanel; key += kLanes) {
      for (int64_t i = 0; i < round_up(head_dim, kPanel); i += kLanes) {
        Floats square[kLanes];
        for (int j = 0; j < kLanes; ++j) {
          fetch(ahead[key + j] + i * sizeof(T));
          square[j] = widened(reinterpret_cast<const T*>(rows[key + j]) + i, head_dim - i);
        }
        transpose(square);
        for (int j = 0; j < kLanes; ++j) store(panel + (i + j) * kPanel + key, square[j]);
      }
    }
  }

  static void pack_values(const std::byte* const* rows, const std::byte* const* ahead, int64_t first, int64_t last,
                          float* values, int64_t panel_stride) {
    for (int64_t key = 0; key < kPanel; ++key) {
      const T* row = reinterpret_cast<const T*>(rows[key]);
      float* to = values + key * kPanel;
      for (int64_t i = first; i < round_up(last, kPanel); i += kLanes) {
        fetch(ahead[key] + i * sizeof(T));
        store(to + (i - first) / kPanel * panel_stride + i % kPanel, widened(row + i, last - i));
      }
    }
  }

  static constexpr int64_t kHeldRows = 0;  // none: see TileProducts

  static void multiply(int64_t rows, const float* a, int64_t a_stride, const float* panel, int64_t depth, float* c,
                       int64_t c_stride, bool adds) {
    constexpr int kMost = kLanes == 16 ? 8 : 2;  // as many rows as registers hold sums of
    int64_t row = 0;
    const auto take = [&](auto count) {
      for (; row + count <= rows; row += count) {
        multiply_rows<count>(a + row * a_stride, a_stride, panel, depth, c + row * c_stride, c_stride, adds);
      }
    };
    take(std::integral_constant<int, kMost>{});
    if constexpr (kMost > 2) take(std::integral_constant<int, 4>{}), take(std::integral_constant<int, 2>{});
    take(std::integral_constant<int, 1>{});
  }
};

}  // namespace

void attention(const Tensor* operands, const double* numbers, Worker& worker) {
  const AttentionStep step(operands, numbers);
#ifdef QUIRE_ISA_IS_amx
  if (step.query.dtype == DType::bf16) return attention_tiles(operands, numbers, worker);
#endif
  switch (step.cache.dtype) {
    case DType::bf16: return Attention<FloatProducts<bf16>>::run(step, worker);
    case DType::f16: return Attention<FloatProducts<f16>>::run(step, worker);
    case DType::i8: return Attention<FloatProducts<int8_t>>::run(step, worker);
    case DType::f8e4m3: return Attention<FloatProducts<f8e4m3>>::run(step, worker);
    default: return Attention<FloatProducts<float>>::run(step, worker);
  }
}

}  // namespace quire::QUIRE_ISA
