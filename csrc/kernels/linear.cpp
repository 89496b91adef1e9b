// Matrix products with packed weights, and their engine of vectors: fused multiply-adds in float32, k by k.
#include "kernels/linear.hpp"

#include "kernels/declarations.hpp"

namespace quire::QUIRE_ISA {
namespace {

using Words = int32_t __attribute__((vector_size(4 * kLanes)));
using Lanes = float __attribute__((vector_size(4 * kLanes)));

QUIRE_INLINE Floats from_bits(Words bits) { return reinterpret_cast<Floats>(bits); }
QUIRE_INLINE Floats from_integers(Words values) {
  return reinterpret_cast<Floats>(__builtin_convertvector(values, Lanes));
}

// Value `i` of each word.
template <class Weight>
QUIRE_INLINE Floats value_of(Words words, int i) {
  if constexpr (std::is_same_v<Weight, bf16>) {
    return from_bits(i == 0 ? words << 16 : words & static_cast<int32_t>(0xffff0000));
  } else if constexpr (kIsInt4<Weight>) {
    return from_integers(words >> (i / 2 * 4 + i % 2 * 16) & 15);
  } else {
    return from_integers(words << (24 - 8 * i) >> 24);
  }
}

// One instruction: GCC 12 turns a copy of 32 bytes into two loads, two stores and a load that must wait for both.
QUIRE_INLINE Words load_words(const std::byte* p) {
#ifdef __AVX512F__
  return reinterpret_cast<Words>(_mm512_loadu_si512(p));
#else
  return reinterpret_cast<Words>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#endif
}

// c[rows][32] (+)= a[rows][k] b[k][32], as vectors two wide: with AVX-512 of both tiles, else of one after the other.
template <int rows>
void add_rows(const float* a, int64_t stride, const float* b, int64_t steps, float* c, bool from_zero) {
  constexpr int64_t kTileFloats = kTileBytes / sizeof(float), kWide = 2 * kLanes;
  constexpr int64_t kSecond = kWide == kPanelColumns ? kTileFloats : kLanes;
  for (int64_t column = 0; column < kPanelColumns; column += kWide) {
    Floats sums[rows][2];
    for (int row = 0; row < rows; ++row) {
      for (int i = 0; i < 2; ++i) {
        sums[row][i] = from_zero ? zeros() : load(c + row * kPanelColumns + column + i * kLanes);
      }
    }
    const float* values = b + column / kTileColumns * kTileFloats;
    for (int64_t step = 0; step < steps; ++step, values += 2 * kTileFloats) {
      for (int64_t k = 0; k < kTileRows; ++k) {
        const Floats first = load(values + k * kTileColumns), second = load(values + k * kTileColumns + kSecond);
        for (int row = 0; row < rows; ++row) {
          const Floats x = broadcast(a[row * stride + step * kTileRows + k]);
          sums[row][0] = fma(x, first, sums[row][0]);
          sums[row][1] = fma(x, second, sums[row][1]);
        }
      }
    }
    for (int row = 0; row < rows; ++row) {
      for (int i = 0; i < 2; ++i) store(c + row * kPanelColumns + column + i * kLanes, sums[row][i]);
    }
  }
}

// The same of a few rows with a packed panel, widened in registers: c[rows][32] (+)= a[rows][k] b[k][32]. A buffer
// between the two would be written and read for a single use.
template <class Weight, int rows>
void add_packed_rows(const float* a, int64_t stride, const std::byte* panel, int64_t first, int64_t steps, float* c,
                     bool from_zero) {
  constexpr int64_t kParts = kPerWord<Weight>, kPartBytes = kTileBytes / kParts, kAhead = 8192;
  constexpr int kVectors = kPanelColumns / kLanes;
  Floats sums[rows][kVectors];
  for (int row = 0; row < rows; ++row) {
    for (int v = 0; v < kVectors; ++v) sums[row][v] = from_zero ? zeros() : load(c + row * kPanelColumns + v * kLanes);
  }
  for (int64_t step = first; step < first + steps; ++step) {
    const std::byte* from = panel + step / kParts * kPanelStepBytes + step % kParts * kPartBytes;
    // Both tiles' lines in the order in which they lie: asked for in turns, memory gives three quarters as much.
    const std::byte* ahead = panel + step / kParts * kPanelStepBytes + 2 * (step % kParts) * kPartBytes + kAhead;
    for (int64_t line = 0; line < kPartBytes; line += kTileRowBytes, a += kParts) {
      prefetch(ahead + 2 * line);
      prefetch(ahead + 2 * line + 64);
      Words words[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t column = v * kLanes;
        words[v] = load_words(from + line + column / kTileColumns * kTileBytes + column % kTileColumns * 4);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kParts; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const Floats value = value_of<Weight>(words[v], i);
          for (int row = 0; row < rows; ++row) {
            sums[row][v] = fma(broadcast(a[row * stride + i]), value, sums[row][v]);
          }
        }
      }
    }
  }
  for (int row = 0; row < rows; ++row) {
    for (int v = 0; v < kVectors; ++v) store(c + row * kPanelColumns + v * kLanes, sums[row][v]);
  }
}

struct Vectors {
  static constexpr int64_t kRows = kLanes == 16 ? 12 : 6;  // twice as many sums, and room to load what they need
  static constexpr int64_t kStep = kTileRows;
  static constexpr int64_t kStepBytes = kPanelStepBytes;
  static constexpr int64_t kFirstCache = 8, kSecondCache = 64;  // steps: 16 and 128 KiB of a panel
  static constexpr int64_t kCachedBytes = 0;
  static constexpr int64_t kAhead = 4096;
  static constexpr int64_t kPackedRows = 2;  // whose sums leave room in the registers for what is being widened
  static constexpr float kInt4Base = 0.0f;
  using Element = float;
  template <class Weight>
  static constexpr bool kIsDirect = std::is_same_v<Weight, float>;

  static bool reads_x(const Product& product) {
    return product.x.dtype == DType::f32 && product.depth % kStep == 0;
  }
  static int64_t row_floats(const Product& product) { return ceil_div(product.depth, kStep) * kStep; }
  static int64_t row_bytes(const Product& product) {
    return reads_x(product) ? 0 : row_floats(product) * static_cast<int64_t>(sizeof(float));
  }

  static void prepare(const Product& product, int64_t first, int64_t count, std::byte* rows) {
    if (reads_x(product)) return;
    const int64_t length = row_floats(product);
    by_float(product.x.dtype, [&](auto element) {
      for (int64_t row = first; row < first + count; ++row) {
        const auto* x = product.x.template as<decltype(element)>() + row * product.row_stride();
        float* to = reinterpret_cast<float*>(rows) + row * length;
        for_vectors(product.depth, [&](int64_t i, auto n) { store(to + i, load(x + i, n), n); });
        for (int64_t i = product.depth; i < length; ++i) to[i] = 0.0f;
      }
    });
  }

  // Steps of a panel in float32; a step of a smaller dtype is several of these.
  template <class Weight>
  static const std::byte* widen(const std::byte* panel, int64_t step, int64_t steps, std::byte* buffer) {
    if constexpr (kIsDirect<Weight>) return panel + step * kPanelStepBytes;
    constexpr int64_t kParts = kPerWord<Weight>, kPartBytes = kTileBytes / kParts;
    float* to = reinterpret_cast<float*>(buffer);
    for (int64_t s = step; s < step + steps; ++s) {
      for (int64_t tile = 0; tile < 2; ++tile) {
        const std::byte* from = panel + s / kParts * kPanelStepBytes + tile * kTileBytes + s % kParts * kPartBytes;
        for (int64_t row = 0; row < kPartBytes; row += kTileRowBytes, to += kParts * kTileColumns) {
          for (int64_t column = 0; column < kTileColumns; column += kLanes) {
            const Words words = load_words(from + row + 4 * column);
            for (int i = 0; i < kParts; ++i) store(to + i * kTileColumns + column, value_of<Weight>(words, i));
          }
        }
      }
    }
    return buffer;
  }

  void add(const Product& product, const std::byte* rows, int64_t block, int64_t count, int64_t step, int64_t steps,
           const std::byte* values, Ahead ahead, float* sums, bool from_zero,
           bool) {
    for (int64_t line = 0; line < ahead.lines * steps; ++line) prefetch(ahead.from + 64 * line);
    const bool is_direct = reads_x(product);
    const int64_t stride = is_direct ? product.row_stride() : row_floats(product);
    const float* a = (is_direct ? product.x.as<float>() : reinterpret_cast<const float*>(rows)) +
                     block * kRows * stride + step * kStep;
    with_rows<kRows>(count, a, stride, reinterpret_cast<const float*>(values), steps, sums, from_zero);
  }

  // The same for at most `kPackedRows` rows, from the packed panel.
  template <class Weight>
  static void add_packed(const Product& product, const std::byte* rows, int64_t count, int64_t step, int64_t steps,
                         const std::byte* panel, float* sums, bool from_zero) {
    const bool is_direct = reads_x(product);
    const int64_t stride = is_direct ? product.row_stride() : row_floats(product);
    const float* a = (is_direct ? product.x.as<float>() : reinterpret_cast<const float*>(rows)) + step * kStep;
    if (count == 1) add_packed_rows<Weight, 1>(a, stride, panel, step, steps, sums, from_zero);
    else add_packed_rows<Weight, 2>(a, stride, panel, step, steps, sums, from_zero);
  }

  static void finish(const Product& product, PanelSums sums) {
    by_float(product.out.dtype, [&](auto element) {
      sums.finish(kRows, [&](int64_t panel, int64_t row, const float* of_row) {
        finish_row<decltype(element)>(product, panel, row, of_row);
      });
    });
  }

 private:
  template <int rows, class... Arguments>
  static void with_rows(int64_t count, Arguments... arguments) {
    if (count == rows) return add_rows<rows>(arguments...);
    if constexpr (rows > 1) with_rows<rows - 1>(count, arguments...);
  }
};

}  // namespace

#ifdef QUIRE_ISA_IS_amx
void linear_in_tiles(const Product& product, Worker& worker);
#endif

void linear(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &out = operands[0], &x = operands[1], &weight = operands[2];
  const Product product{out, x, weight, operands[3], operands[4], operands[5], x.rows(), out.last(), x.last(),
                        operands[4] ? operands[4].shape[1] : 0};
#ifdef QUIRE_ISA_IS_amx
  if (x.dtype == DType::bf16) return linear_in_tiles(product, worker);
#endif
  switch (weight.dtype) {
    case DType::u8: return multiply<Vectors, int4x2>(product, worker);
    case DType::i8: return multiply<Vectors, int8_t>(product, worker);
    case DType::bf16: return multiply<Vectors, bf16>(product, worker);
    default: return multiply<Vectors, float>(product, worker);
  }
}

}  // namespace quire::QUIRE_ISA
