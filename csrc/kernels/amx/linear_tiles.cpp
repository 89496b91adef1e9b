// Matrix products with packed weights in AMX tiles, for x of bf16 and of int8. With x of bf16, weights of eight and
// four bits become bf16 in the first cache, exactly; with x of int8 sums are exact integers.
#include "kernels/amx/tiles.hpp"
#include "kernels/declarations.hpp"
#include "kernels/linear.hpp"
#include "kernels/w8a8.hpp"

namespace quire::QUIRE_ISA {
namespace {

// Moves byte `from` of each word, and the one after it, to the word's first two.
constexpr int32_t moved(int from) { return 0x01010101 * from + 0x03020100; }
QUIRE_INLINE __m512i move_bytes(__m512i words, int from, __m512i others, __mmask64 which) {
  const __m512i word = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  const __m512i places = _mm512_add_epi8(_mm512_set1_epi32(moved(from)), word);
  return _mm512_mask_shuffle_epi8(others, which, words, places);
}

// Sixteen words of four int8 as two rows of pairs. A byte u = value + 128 as the last bits of a float 2^23 + u (or
// 2^15 + u, eight bits up) becomes the value by a subtraction; of the difference the upper half is the bf16.
QUIRE_INLINE void widen_words(__m512i words, int8_t, std::byte* to) {
  constexpr int kMaskedOr = 0xea;  // (a & b) | c
  constexpr __mmask64 kFirstByte = 0x1111111111111111, kFirstTwo = 0x3333333333333333;
  const __m512i biased = _mm512_xor_si512(words, _mm512_set1_epi32(static_cast<int32_t>(0x80808080)));
  const __m512i large = _mm512_set1_epi32(0x4b000000), small = _mm512_set1_epi32(0x47000000);
  const auto minus = [](__m512i bits, float offset) {
    return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(offset)));
  };
  const __m512i values[] = {
      minus(_mm512_ternarylogic_epi32(biased, _mm512_set1_epi32(0xff), large, kMaskedOr), 8388608.0f + 128.0f),
      minus(_mm512_ternarylogic_epi32(biased, _mm512_set1_epi32(0xff00), small, kMaskedOr), 32768.0f + 128.0f),
      minus(move_bytes(biased, 2, large, kFirstByte), 8388608.0f + 128.0f),
      minus(move_bytes(biased, 3, large, kFirstByte), 8388608.0f + 128.0f)};
  _mm512_store_si512(to, move_bytes(values[0], 2, values[1], kFirstTwo));
  _mm512_store_si512(to + kTileRowBytes, move_bytes(values[2], 2, values[3], kFirstTwo));
}

// Sixteen words of eight int4 as four rows of pairs: four bits q at the top of the mantissa of 16 make 16 + q.
QUIRE_INLINE void widen_words(__m512i words, int4x2, std::byte* to) {
  constexpr int kMaskedOr = 0xea;
  const __m512i mask = _mm512_set1_epi16(0x0078), sixteen = _mm512_set1_epi16(0x4180);
  const auto store = [&](int pair, __m512i shifted) {
    _mm512_store_si512(to + pair * kTileRowBytes, _mm512_ternarylogic_epi32(shifted, mask, sixteen, kMaskedOr));
  };
  store(0, _mm512_slli_epi16(words, 3));
  store(1, _mm512_srli_epi16(words, 1));
  store(2, _mm512_srli_epi16(words, 5));
  store(3, _mm512_srli_epi16(words, 9));
}

template <class X, Tile c, Tile a, Tile b>
QUIRE_INLINE void multiply_tiles() {
  if constexpr (std::is_same_v<X, bf16>) multiply_bf16<c, a, b>();
  else multiply_i8<c, a, b>();
}

// Sums += a b of all steps. `beside` is called in each of them: what it does costs nothing while tiles multiply.
//
// a: the upper 16 rows of a step of x; `lower` bytes from there, the others. A tile is loaded as soon as nobody needs
// what it holds: where two threads share a core each has no registers but these eight, so loads cannot run ahead.
template <class X, bool has_lower, class Beside>
QUIRE_INLINE void add_steps(const std::byte* a, int64_t stride, int64_t lower, int64_t a_step, const std::byte* b,
                            int64_t steps, Beside&& beside) {
  stream_tile<A0>(a, stride);
  stream_tile<B0>(b);
  stream_tile<B1>(b + kTileBytes);
  if constexpr (has_lower) stream_tile<A1>(a + lower, stride);
  for (int64_t step = 1;; ++step) {
    beside();
    multiply_tiles<X, C00, A0, B0>();
    multiply_tiles<X, C01, A0, B1>();
    if constexpr (has_lower) multiply_tiles<X, C11, A1, B1>();
    if constexpr (has_lower) multiply_tiles<X, C10, A1, B0>();
    if (step == steps) return;
    a += a_step, b += kPanelStepBytes;
    stream_tile<A0>(a, stride);
    stream_tile<B1>(b + kTileBytes);
    if constexpr (has_lower) stream_tile<A1>(a + lower, stride);
    stream_tile<B0>(b);
  }
}

template <bool has_lower>
void zero_sums() {
  zero_tile<C00>();
  zero_tile<C01>();
  if constexpr (has_lower) zero_tile<C10>(), zero_tile<C11>();
}

template <bool has_lower>
void load_sums(const float* sums) {
  constexpr int64_t kStride = kPanelColumns * sizeof(float);
  load_tile<C00>(sums, kStride);
  load_tile<C01>(sums + kTileColumns, kStride);
  if constexpr (has_lower) {
    load_tile<C10>(sums + kTileRows * kPanelColumns, kStride);
    load_tile<C11>(sums + kTileRows * kPanelColumns + kTileColumns, kStride);
  }
}

template <bool has_lower>
void store_sums(float* sums) {
  constexpr int64_t kStride = kPanelColumns * sizeof(float);
  store_tile<C00>(sums, kStride);
  store_tile<C01>(sums + kTileColumns, kStride);
  if constexpr (has_lower) {
    store_tile<C10>(sums + kTileRows * kPanelColumns, kStride);
    store_tile<C11>(sums + kTileRows * kPanelColumns + kTileColumns, kStride);
  }
}

// A row of a panel's sums in int32 as the result.
template <class T>
QUIRE_INLINE void scale_row(const Product& product, int64_t panel, int64_t row, const float* sums) {
  const int64_t begin = panel * kPanelColumns;
  const float x_scale = *row_of<float>(*product.x_scales, row);
  const auto value = [&](int64_t i, auto n) {
    const T* bias = product.bias ? product.bias.as<T>() + begin + i : nullptr;
    const float* scales = product.scales.as<float>() + begin + i;
    return scaled(reinterpret_cast<const int32_t*>(sums) + i, scales, x_scale, bias, n);
  };
  store_row(product, row_of<T>(product.out, row) + begin, least(kPanelColumns, product.columns - begin), value);
}

template <class X, class Out>
class Tiles {
 public:
  static constexpr int64_t kRows = kBlockRows;
  static constexpr int64_t kRowsInPlace = 64;  // of x, at most, that are read where they lie
  static constexpr int64_t kStep = kTileRowBytes / sizeof(X);
  static constexpr int64_t kStepBytes = kPanelStepBytes;
  // Steps: 4 KiB of a panel, so that reading and widening overlap, and 64.
  static constexpr int64_t kFirstCache = 2, kSecondCache = 32;
  static constexpr int64_t kCachedBytes = 1 << 20;  // of a panel and x, so that a panel need not be cut: half of a cache
  static constexpr int64_t kPackedRows = 0;
  static constexpr int64_t kAhead = 4096;  // bytes of a panel asked for while memory brings a step of it
  static constexpr float kInt4Base = 16.0f;
  using Element = X;
  template <class Weight>
  static constexpr bool kIsDirect = std::is_same_v<Weight, X>;

  Tiles() = default;
  Tiles(const Tiles&) = delete;
  ~Tiles() { release_tiles(); }

  // More rows are copied: as tiles, they lie in few sets of no cache.
  static bool reads_x(const Product& product) {
    return product.rows <= kRowsInPlace && product.depth % kStep == 0;
  }
  static int64_t row_bytes(const Product& product) {
    return reads_x(product) ? 0 : ceil_div(product.depth, kStep) * kTileRowBytes;
  }

  static void prepare(const Product& product, int64_t first, int64_t count, std::byte* rows) {
    if (reads_x(product)) return;
    const int64_t steps = ceil_div(product.depth, kStep), bytes = product.depth * static_cast<int64_t>(sizeof(X));
    std::byte* block = rows + first * steps * kTileRowBytes;
    for (int64_t row = 0; row < count; ++row) {
      const std::byte* x = product.x.data + (first + row) * product.row_stride() * sizeof(X);
      std::byte* to = block + row * kTileRowBytes;
      int64_t byte = 0;
      for (; byte + kTileRowBytes <= bytes; byte += kTileRowBytes, to += kRows * kTileRowBytes) {
        std::memcpy(to, x + byte, kTileRowBytes);
      }
      if (byte == bytes) continue;
      std::memset(to, 0, kTileRowBytes);
      std::memcpy(to, x + byte, bytes - byte);
    }
  }

  template <class Weight>
  static const std::byte* widen(const std::byte* panel, int64_t step, int64_t steps, std::byte* buffer) {
    if constexpr (kIsDirect<Weight>) {
      return panel + step * kPanelStepBytes;
    } else {
      constexpr int64_t kParts = kPerWord<Weight> / kPerWord<bf16>, kPartBytes = kTileBytes / kParts;
      std::byte* to = buffer;
      for (int64_t s = step; s < step + steps; ++s) {
        const std::byte* from = panel + s / kParts * kPanelStepBytes + s % kParts * kPartBytes;
        for (int64_t tile = 0; tile < 2; ++tile, from += kTileBytes) {
          for (int64_t row = 0; row < kPartBytes; row += kTileRowBytes, to += kParts * kTileRowBytes) {
            prefetch(from + row + kAhead);
            widen_words(_mm512_load_si512(from + row), Weight{}, to);
          }
        }
      }
      return buffer;
    }
  }

  // The only block's sums stay in their tiles until the last chunk.
  void add(const Product& product, const std::byte* rows, int64_t block, int64_t count, int64_t step, int64_t steps,
           const std::byte* values, Ahead ahead, float* sums, bool from_zero, bool is_last) {
    if (count != configured_) configure_tiles(configured_ = count);
    const bool is_direct = reads_x(product), is_alone = product.rows <= kRows;
    const int64_t stride = is_direct ? product.row_stride() * sizeof(X) : kTileRowBytes;
    const int64_t a_step = is_direct ? kTileRowBytes : kRows * kTileRowBytes;
    const std::byte* a = is_direct ? product.x.data + block * kRows * stride
                                   : rows + block * ceil_div(product.depth, kStep) * a_step;
    const int64_t rows_a_step = ceil_div(unfinished_.end - unfinished_.next, steps);
    const auto beside = [&] {
      for (int64_t line = 0; line < ahead.lines; ++line, ahead.from += 64) prefetch(ahead.from);
      finish_rows(product, rows_a_step);
    };
    const float* from = from_zero || is_alone ? nullptr : sums;
    float* to = is_last || !is_alone ? sums : nullptr;
    if (count > kTileRows) add_to<true>(a + step * a_step, stride, a_step, values, steps, beside, from, from_zero, to);
    else add_to<false>(a + step * a_step, stride, a_step, values, steps, beside, from, from_zero, to);
  }

  // Stores what is left of the sums before, and the rows of these beside the products that come next.
  void finish(const Product& product, PanelSums sums) {
    finish_rows(product, kRows);
    unfinished_ = sums;
  }

 private:
  inline __attribute__((always_inline)) void finish_rows(const Product& product, int64_t count) {
    unfinished_.finish(count, [&](int64_t panel, int64_t row, const float* sums) {
      if constexpr (std::is_same_v<X, bf16>) finish_row<Out>(product, panel, row, sums);
      else scale_row<Out>(product, panel, row, sums);
    });
  }

  template <bool has_lower, class Beside>
  static void add_to(const std::byte* a, int64_t stride, int64_t a_step, const std::byte* b, int64_t steps,
                     Beside& beside, const float* from, bool from_zero, float* to) {
    if (from_zero) zero_sums<has_lower>();
    if (from != nullptr) load_sums<has_lower>(from);
    add_steps<X, has_lower>(a, stride, kTileRows * stride, a_step, b, steps, beside);
    if (to != nullptr) store_sums<has_lower>(to);
  }

  int64_t configured_ = 0;
  PanelSums unfinished_;
};

}  // namespace

void linear_in_tiles(const Product& product, Worker& worker) {
  switch (product.weight.dtype) {
    case DType::u8: return multiply<Tiles<bf16, bf16>, int4x2>(product, worker);
    case DType::i8: return multiply<Tiles<bf16, bf16>, int8_t>(product, worker);
    default: return multiply<Tiles<bf16, bf16>, bf16>(product, worker);
  }
}

void linear_w8a8_tiles(const Tensor* operands, Worker& worker) {
  const Tensor &out = operands[0], &x = operands[1], none;
  const Product product{out, x, operands[3], operands[4], none, operands[6], x.rows(), out.last(), x.last(), 0,
                        &operands[2]};
  by_float(out.dtype, [&](auto element) { multiply<Tiles<int8_t, decltype(element)>, int8_t>(product, worker); });
}

}  // namespace quire::QUIRE_ISA
