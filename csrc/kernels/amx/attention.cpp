// Attention of bf16 queries in tiles: keys and values of bf16, or of 8 bits, which bf16 holds exactly.
#include "kernels/attention.hpp"

#include <utility>

#include "kernels/amx/tiles.hpp"
#include "kernels/declarations.hpp"
#include "kernels/eight_bits.hpp"
#include "kernels/transpose.hpp"

namespace quire::QUIRE_ISA {
namespace {

static_assert(kPanel == kPanelColumns && kRowBlock == kBlockRows && kPanel * sizeof(bf16) == kTileRowBytes);

// 32 elements from `p` on as bf16, those that `present` names; the others are 0.
QUIRE_INLINE Ints words_of(const bf16* p, __mmask32 present) { return _mm512_maskz_loadu_epi16(present, p); }

QUIRE_INLINE Ints words_of(const int8_t* p, __mmask32 present) {
  const __m256i bytes = _mm256_maskz_loadu_epi8(present, p);
  const __m512 lower = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
  const __m512 upper = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
  return reinterpret_cast<Ints>(_mm512_cvtne2ps_pbh(upper, lower));
}

// Exponent and mantissa of e4m3 where bf16 has them, with 120 more for bf16's bias; denormals, m 2**-9, from a table.
QUIRE_INLINE Ints words_of(const f8e4m3* p, __mmask32 present) {
  alignas(64) static constexpr uint16_t kDenormals[32] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
  const Ints words = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(present, p));
  const Ints magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7f));
  Ints x = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  const __mmask32 is_denormal = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
  x = _mm512_mask_permutexvar_epi16(x, is_denormal, magnitude, _mm512_load_si512(kDenormals));
  x = _mm512_mask_mov_epi16(x, _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f)), _mm512_set1_epi16(0x7fc0));
  const Ints sign = _mm512_slli_epi16(_mm512_xor_si512(words, magnitude), 8);
  return _mm512_or_si512(x, sign);
}

template <class T>
struct TileProducts {
  using Element = bf16;

  // Whether keys can be the first operand of a product, of which queries are one tile at most.
  static bool reads_keys(const AttentionStep& step, int64_t rows) {
    return std::is_same_v<T, bf16> && rows <= kTileRows && step.head_dim % kPanel == 0 &&
           step.block_size % kTileRows == 0;
  }

  static void pack_queries(const bf16* queries, int64_t count, int64_t width, bf16* tiles) {
    for (int64_t i = 0; i < width; i += kPanel) {
      Floats pairs[kTileRows];
#pragma GCC unroll 16
      for (int j = 0; j < kTileRows; ++j) {
        pairs[j] = j < count ? floats_of(words_of(queries + j * width + i, ~0u)) : zeros();
      }
      transpose(pairs);
      float* tile = reinterpret_cast<float*>(tiles + i * kTileRows);
      for (int j = 0; j < kTileRows; ++j) store(tile + j * kTileColumns, pairs[j]);
    }
  }

  // Where the queries of at most kHeldQueries steps of head_dim stay while keys come by.
  static constexpr Tile kQueries[] = {B0, B1, C10, C11};
  static constexpr int64_t kHeldQueries = 4;

  static void use_queries(const bf16* tiles, int64_t head_dim) {
    configure_tiles(kRowBlock);
    if (head_dim > kHeldQueries * kPanel) return;
    [&]<size_t... steps>(std::index_sequence<steps...>) {
      (void(steps * kPanel < static_cast<size_t>(head_dim) &&
            (load_tile<kQueries[steps]>(tiles + steps * kPanel * kTileRows), true)), ...);
    }(std::make_index_sequence<kHeldQueries>());
  }

  // Scores of `count` queries with kPanel keys; `copied` has room for those that lie apart, or are past the last.
  static void score_keys(const std::byte* const* rows, const std::byte* const* ahead, int64_t head_dim,
                         const bf16* query_tiles, bf16* copied, int64_t count, float* scores, int64_t stride) {
    const KeyRows upper(rows, head_dim, copied), lower(rows + kTileRows, head_dim, copied + kTileRows * head_dim);
    zero_tile<C00>(), zero_tile<C01>();
    switch (head_dim / kPanel) {
      case 1: add_scores<1>(upper, lower, ahead); break;
      case 2: add_scores<2>(upper, lower, ahead); break;
      case 3: add_scores<3>(upper, lower, ahead); break;
      case 4: add_scores<4>(upper, lower, ahead); break;
      default: add_scores(upper, lower, ahead, query_tiles, head_dim);
    }
    alignas(64) float found[2 * kTileRows * kTileColumns];
    store_tile<C00>(found);
    store_tile<C01>(found + kTileRows * kTileColumns);
    const Ints column = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                           _mm512_set1_epi32(kTileColumns));
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t half = 0; half < kPanel; half += kTileRows) {
        store(scores + row * stride + half, _mm512_i32gather_ps(column, found + half * kTileColumns + row, sizeof(float)));
      }
    }
  }

  static void use_rows(int64_t rows) { configure_tiles(rows); }
  static void end() { release_tiles(); }

  QUIRE_INLINE void store_weights(bf16* p, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }

  // Columns i.. of a row of sums, whose panels lie as `pack_values` leaves them: of every 8 columns, the first four in
  // the first tile and the other four in the second.
  QUIRE_INLINE Floats sums_at(const float* row, int64_t i) {
    const Ints first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const Ints from = _mm512_add_epi32(first, _mm512_set1_epi32(static_cast<int>(i % kPanel / 2)));
    const float* panel = row + i / kPanel * kPanel;
    return _mm512_permutex2var_ps(load(panel), from, load(panel + kTileColumns));
  }

  static void pack_keys(const std::byte* const* rows, const std::byte* const* ahead, int64_t head_dim, bf16* panel) {
    for (int64_t i = 0; i < head_dim; i += kPanel) {
      const __mmask32 present = _bzhi_u32(~0u, static_cast<unsigned>(smaller(kPanel, head_dim - i)));
      for (int64_t half = 0; half < kPanel; half += kTileRows) {
        Floats pairs[kTileRows];
#pragma GCC unroll 16
        for (int j = 0; j < kTileRows; ++j) {
          fetch(ahead[half + j] + i * sizeof(T));
          pairs[j] = floats_of(words_of(reinterpret_cast<const T*>(rows[half + j]) + i, present));
        }
        transpose(pairs);
        float* tile = reinterpret_cast<float*>(panel + i * kPanel + half * kPanel);
#pragma GCC unroll 16
        for (int j = 0; j < kTileRows; ++j) store(tile + j * kTileColumns, pairs[j]);
      }
    }
  }

  // A row of a tile holds two keys, element by element; words are interleaved within quarters of a vector.
  static void pack_values(const std::byte* const* rows, const std::byte* const* ahead, int64_t first, int64_t last,
                          bf16* values, int64_t panel_stride) {
    for (int64_t i = first; i < last; i += kPanel, values += panel_stride) {
      const __mmask32 present = _bzhi_u32(~0u, static_cast<unsigned>(smaller(kPanel, last - i)));
#pragma GCC unroll 4
      for (int64_t key = 0; key < kPanel; key += 2) {
        fetch(ahead[key] + i * sizeof(T));
        fetch(ahead[key + 1] + i * sizeof(T));
        const Ints even = words_of(reinterpret_cast<const T*>(rows[key]) + i, present);
        const Ints odd = words_of(reinterpret_cast<const T*>(rows[key + 1]) + i, present);
        bf16* row = values + key * kTileColumns;
        _mm512_storeu_si512(row, _mm512_unpacklo_epi16(even, odd));
        _mm512_storeu_si512(row + kTileRows * kPanel, _mm512_unpackhi_epi16(even, odd));
      }
    }
  }

  // Two panels of sums of a few rows fit in the tiles that hold one of many.
  static constexpr int64_t kHeldRows = kTileRows, kHeldColumns = 2 * kPanel;

  static void hold_sums(int64_t rows) { configure_tiles(rows, rows); }  // all zero

  static void add_to_held(const bf16* a, int64_t a_stride, const bf16* panels, int64_t columns) {
    load_tile<A0>(a, a_stride * sizeof(bf16));
    load_tile<B0>(panels);
    load_tile<B1>(panels + kTileRows * kPanel);
    multiply_bf16<C00, A0, B0>();
    multiply_bf16<C01, A0, B1>();
    if (columns == kPanel) return;
    load_tile<B0>(panels + kPanel * kPanel);
    load_tile<B1>(panels + kPanel * kPanel + kTileRows * kPanel);
    multiply_bf16<C10, A0, B0>();
    multiply_bf16<C11, A0, B1>();
  }

  static void store_held(float* c, int64_t c_stride, int64_t columns) {
    const int64_t c_bytes = c_stride * sizeof(float);
    store_tile<C00>(c, c_bytes);
    store_tile<C01>(c + kTileColumns, c_bytes);
    if (columns == kPanel) return;
    store_tile<C10>(c + kPanel, c_bytes);
    store_tile<C11>(c + kPanel + kTileColumns, c_bytes);
  }

  static void multiply(int64_t rows, const bf16* a, int64_t a_stride, const bf16* panel, int64_t depth, float* c,
                       int64_t c_stride, bool adds) {
    const bool has_lower = rows > kTileRows;
    const int64_t a_bytes = a_stride * sizeof(bf16), c_bytes = c_stride * sizeof(float);
    if (adds) {
      load_tile<C00>(c, c_bytes);
      load_tile<C01>(c + kTileColumns, c_bytes);
      if (has_lower) load_tile<C10>(c + kTileRows * c_stride, c_bytes);
      if (has_lower) load_tile<C11>(c + kTileRows * c_stride + kTileColumns, c_bytes);
    } else {
      zero_tile<C00>(), zero_tile<C01>();
      if (has_lower) zero_tile<C10>(), zero_tile<C11>();
    }
    for (int64_t k = 0; k < depth; k += kPanel) {
      load_tile<B0>(panel + k * kPanel);
      load_tile<B1>(panel + k * kPanel + kTileRows * kPanel);
      load_tile<A0>(a + k, a_bytes);
      multiply_bf16<C00, A0, B0>();
      multiply_bf16<C01, A0, B1>();
      if (!has_lower) continue;
      load_tile<A1>(a + kTileRows * a_stride + k, a_bytes);
      multiply_bf16<C10, A1, B0>();
      multiply_bf16<C11, A1, B1>();
    }
    store_tile<C00>(c, c_bytes);
    store_tile<C01>(c + kTileColumns, c_bytes);
    if (!has_lower) return;
    store_tile<C10>(c + kTileRows * c_stride, c_bytes);
    store_tile<C11>(c + kTileRows * c_stride + kTileColumns, c_bytes);
  }

 private:
  // Sixteen keys with a fixed distance: where they lie, or copied.
  struct KeyRows {
    const std::byte* first;
    int64_t step;

    KeyRows(const std::byte* const* rows, int64_t head_dim, bf16* copied) : first(rows[0]), step(rows[1] - rows[0]) {
      const int64_t row_bytes = head_dim * static_cast<int64_t>(sizeof(bf16));
      if (step >= row_bytes && rows[kTileRows - 1] - first == (kTileRows - 1) * step) return;
      for (int j = 0; j < kTileRows; ++j) std::memcpy(copied + j * head_dim, rows[j], row_bytes);
      first = reinterpret_cast<const std::byte*>(copied), step = row_bytes;
    }
  };

  // Asks for part `part` of `parts` of what comes next, line by line as it lies. Between tiles, since memory takes no
  // more than a few lines at a time.
  template <int part, int parts>
  static void fetch_part(const std::byte* const* ahead, int64_t row_bytes) {
#pragma GCC unroll 32
    for (int j = part * kPanel / parts; j < (part + 1) * kPanel / parts; ++j) {
      for (int64_t byte = 0; byte < row_bytes; byte += kTileRowBytes) fetch(ahead[j] + byte);
    }
  }

  template <int steps>
  static void add_scores(const KeyRows& upper, const KeyRows& lower, const std::byte* const* ahead) {
    [&]<size_t... i>(std::index_sequence<i...>) {
      ((load_tile<A0>(upper.first + i * kTileRowBytes, upper.step),
        fetch_part<2 * i, 2 * steps>(ahead, steps * kTileRowBytes),
        multiply_bf16<C00, A0, kQueries[i]>(),
        load_tile<A1>(lower.first + i * kTileRowBytes, lower.step),
        fetch_part<2 * i + 1, 2 * steps>(ahead, steps * kTileRowBytes),
        multiply_bf16<C01, A1, kQueries[i]>()), ...);
    }(std::make_index_sequence<steps>());
  }

  static void add_scores(const KeyRows& upper, const KeyRows& lower, const std::byte* const* ahead,
                         const bf16* query_tiles, int64_t head_dim) {
    for (int64_t i = 0; i < head_dim; i += kPanel) {
      load_tile<A0>(upper.first + i * sizeof(bf16), upper.step);
      load_tile<A1>(lower.first + i * sizeof(bf16), lower.step);
      load_tile<B0>(query_tiles + i * kTileRows);
      for (int j = 0; j < kPanel; ++j) fetch(ahead[j] + i * sizeof(bf16));
      multiply_bf16<C00, A0, B0>();
      multiply_bf16<C01, A1, B0>();
    }
  }
};

}  // namespace

void attention_tiles(const Tensor* operands, const double* numbers, Worker& worker) {
  const AttentionStep step(operands, numbers);
  switch (step.cache.dtype) {
    case DType::i8: return Attention<TileProducts<int8_t>>::run(step, worker);
    case DType::f8e4m3: return Attention<TileProducts<f8e4m3>>::run(step, worker);
    default: return Attention<TileProducts<bf16>>::run(step, worker);
  }
}

}  // namespace quire::QUIRE_ISA
