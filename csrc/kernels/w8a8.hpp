// Products of rows and weights of int8: sums of integers, exact however they are added up, then one scaling for all.
#pragma once

#include "kernels/eight_bits.hpp"
#include "kernels/panels.hpp"
#include "kernels/rows.hpp"

namespace quire::QUIRE_ISA {

// Some rows with a panel of 32 columns (see panels.hpp).
struct Int8Panel {
  const int8_t* weights;       // [num_steps][2 tiles][16][16 columns][4 k]
  const int32_t* corrections;  // [32]: -128 * sum of a column, for kernels that add 128 to x
  int64_t steps;
};

// Some columns of a row: sums * scales * x_scale + bias, each product and sum rounded, as the reference does.
template <class T, class N>
QUIRE_INLINE Floats scaled(const int32_t* sums, const float* scales, float x_scale, const T* bias, N n) {
  IntLanes whole;
  std::memcpy(&whole, sums, sizeof(whole));
  Floats y = __builtin_convertvector(whole, Floats) * load(scales, n) * broadcast(x_scale);
  if (bias != nullptr) y += load(bias, n);
  return y;
}

// The product of all rows by an `Engine`, which prepares groups of rows in this worker's scratch and then multiplies
// them with one panel after the other, while they stay in the second cache.
template <class Engine>
void multiply_int8(const Tensor* operands, Worker& worker) {
  constexpr int64_t kGroupBytes = 1 << 20, kMostRows = 1024, kFewest = 32;  // half of the second cache; sums of 128 KiB
  const Tensor &out = operands[0], &x = operands[1], &x_scales = operands[2], &panels = operands[3];
  const Tensor &scales = operands[4], &corrections = operands[5], &bias = operands[6];
  const int64_t rows = x.rows(), width = x.last(), columns = out.last(), steps = num_steps(width);
  const int64_t fitting = kGroupBytes / (steps * kTileRowBytes) / kFewest * kFewest;
  const int64_t group = fitting < kFewest ? kFewest : fitting < kMostRows ? fitting : kMostRows;
  const int64_t most = rows < group ? rows : group, sum_bytes = most * kPanelColumns * sizeof(int32_t);
  auto* const sums = reinterpret_cast<int32_t*>(worker.scratch(sum_bytes + Engine::scratch_bytes(most, width)));
  Engine engine(reinterpret_cast<std::byte*>(sums) + sum_bytes, width);
  const int64_t count = num_panels(columns);
  int64_t prepared = -1;
  worker.for_each((rows + group - 1) / group * count, [&](int64_t item) {
    const int64_t first = item / count * group, panel = item % count, column = panel * kPanelColumns;
    const int64_t some = rows - first < group ? rows - first : group;
    if (first != prepared) engine.prepare(row_of<int8_t>(x, first), x.rank > 1 ? x.stride[x.rank - 2] : 0, some);
    prepared = first;
    const int8_t* weights = panels.as<int8_t>() + panel * steps * kPanelStepBytes;
    engine.multiply(some, {weights, corrections.as<int32_t>() + column, steps}, sums);
    const int64_t wide = columns - column < kPanelColumns ? columns - column : kPanelColumns;
    by_float(out.dtype, [&](auto tag) {
      using T = decltype(tag);
      for (int64_t i = 0; i < some; ++i) {
        const float x_scale = *row_of<float>(x_scales, first + i);
        T* to = row_of<T>(out, first + i) + column;
        for_vectors(wide, [&](int64_t at, auto n) {
          const T* added = bias ? bias.as<T>() + column + at : nullptr;
          const float* by = scales.as<float>() + column + at;
          store_quickly(to + at, scaled(sums + i * kPanelColumns + at, by, x_scale, added, n), n);
        });
      }
    });
  });
}

#ifdef __AVX512VNNI__

// VNNI multiplies unsigned by signed bytes: x + 128, and the sums start at what that adds too much.
class VnniRows {
 public:
  VnniRows(std::byte* scratch, int64_t width)
      : width_(width), stride_(num_steps(width) * kTileRowBytes), rows_(reinterpret_cast<uint8_t*>(scratch)) {}

  static int64_t scratch_bytes(int64_t rows, int64_t width) {
    return rows * num_steps(width) * kTileRowBytes * static_cast<int64_t>(sizeof(uint8_t));
  }

  void prepare(const int8_t* x, int64_t stride, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      const int8_t* from = x + row * stride;
      uint8_t* to = rows_ + row * stride_;
      for (int64_t k = 0; k < width_; ++k) to[k] = static_cast<uint8_t>(from[k]) ^ 0x80;
      std::memset(to + width_, 0x80, stride_ - width_);
    }
  }

  void multiply(int64_t rows, const Int8Panel& panel, int32_t* sums) const {
    constexpr int64_t kAtOnce = 8;
    for (int64_t row = 0; row < rows; row += kAtOnce) add_up(row, rows - row, panel, sums + row * kPanelColumns);
  }

 private:
  void add_up(int64_t first, int64_t rows, const Int8Panel& panel, int32_t* sums) const {
    switch (rows) {
      case 1: return add_up<1>(first, panel, sums);
      case 2: return add_up<2>(first, panel, sums);
      case 3: return add_up<3>(first, panel, sums);
      case 4: return add_up<4>(first, panel, sums);
      case 5: return add_up<5>(first, panel, sums);
      case 6: return add_up<6>(first, panel, sums);
      case 7: return add_up<7>(first, panel, sums);
      default: return add_up<8>(first, panel, sums);
    }
  }

  template <int rows>
  void add_up(int64_t first, const Int8Panel& panel, int32_t* sums) const {
    constexpr int64_t kAhead = 4096;  // bytes to ask memory for before they are needed
    const uint8_t* x = rows_ + first * stride_;
    const int8_t* w = panel.weights;
    __m512i left[rows], right[rows];
    for (int i = 0; i < rows; ++i) left[i] = _mm512_loadu_si512(panel.corrections);
    for (int i = 0; i < rows; ++i) right[i] = _mm512_loadu_si512(panel.corrections + kTileColumns);
    for (int64_t step = 0; step < panel.steps; ++step, w += kPanelStepBytes, x += kTileRowBytes) {
#pragma GCC unroll 4
      for (int64_t row = 0; row < kTileRows; ++row) {
        const int8_t* at = w + row * kTileRowBytes;
        const int8_t* ahead = w + row * 2 * kTileRowBytes + kAhead;  // lines in the order in which they lie
        _mm_prefetch(ahead, _MM_HINT_T0);
        _mm_prefetch(ahead + kTileRowBytes, _MM_HINT_T0);
        const __m512i w0 = _mm512_loadu_si512(at), w1 = _mm512_loadu_si512(at + kTileBytes);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
          int32_t four;
          std::memcpy(&four, x + i * stride_ + row * 4, 4);
          left[i] = _mm512_dpbusd_epi32(left[i], _mm512_set1_epi32(four), w0);
          right[i] = _mm512_dpbusd_epi32(right[i], _mm512_set1_epi32(four), w1);
        }
      }
    }
    for (int i = 0; i < rows; ++i) {
      _mm512_storeu_si512(sums + i * kPanelColumns, left[i]);
      _mm512_storeu_si512(sums + i * kPanelColumns + kTileColumns, right[i]);
    }
  }

  int64_t width_, stride_;
  uint8_t* rows_;
};

#else

// Sums of products of 16 bits, which cannot overflow: two neighbours in k at a time.
class WideRows {
 public:
  WideRows(std::byte* scratch, int64_t width)
      : width_(width), stride_(num_steps(width) * kTileRowBytes), rows_(reinterpret_cast<int16_t*>(scratch)) {}

  static int64_t scratch_bytes(int64_t rows, int64_t width) {
    return rows * num_steps(width) * kTileRowBytes * static_cast<int64_t>(sizeof(int16_t));
  }

  void prepare(const int8_t* x, int64_t stride, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      const int8_t* from = x + row * stride;
      int16_t* to = rows_ + row * stride_;
      for (int64_t k = 0; k < width_; ++k) to[k] = from[k];
      std::memset(to + width_, 0, (stride_ - width_) * sizeof(int16_t));
    }
  }

  // One row takes both tiles at a time, as they lie in memory. Two leave no registers for that: their panel comes from
  // the second cache, or is fetched into it by the first tile's turn.
  void multiply(int64_t rows, const Int8Panel& panel, int32_t* sums) const {
    for (int64_t row = 0; row + 1 < rows; row += 2) {
      for (int64_t tile = 0; tile < 2; ++tile) add_up<2, 1>(row, panel, tile, sums + row * kPanelColumns);
    }
    if (rows % 2 == 1) add_up<1, 2>(rows - 1, panel, 0, sums + (rows - 1) * kPanelColumns);
  }

 private:
  template <int rows, int tiles>
  void add_up(int64_t first, const Int8Panel& panel, int64_t tile, int32_t* sums) const {
    constexpr int kParts = 4;           // of four columns each
    constexpr int64_t kAhead = 8192;    // bytes to ask memory for before they are needed
    __m256i total[rows][tiles][kParts] = {};
    for (int64_t step = 0; step < panel.steps; ++step) {
      const int8_t* w = panel.weights + step * kPanelStepBytes + tile * kTileBytes;
      const int16_t* x = rows_ + first * stride_ + step * kTileRowBytes;
      for (int64_t row = 0; row < kTileRows; ++row, w += kTileRowBytes, x += 4) {
        if (tile == 0) {  // lines in the order in which they lie, which memory answers a third faster
          const int8_t* ahead = panel.weights + step * kPanelStepBytes + row * 2 * kTileRowBytes + kAhead;
          _mm_prefetch(ahead, _MM_HINT_T0);
          _mm_prefetch(ahead + kTileRowBytes, _MM_HINT_T0);
        }
        __m256i four[rows];
        for (int i = 0; i < rows; ++i) {
          int64_t bits;
          std::memcpy(&bits, x + i * stride_, 8);
          four[i] = _mm256_set1_epi64x(bits);
        }
        for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 4
          for (int part = 0; part < kParts; ++part) {
            const auto* at = reinterpret_cast<const __m128i*>(w + t * kTileBytes + part * 16);
            const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(at));
            for (int i = 0; i < rows; ++i) {
              total[i][t][part] = _mm256_add_epi32(total[i][t][part], _mm256_madd_epi16(wide, four[i]));
            }
          }
        }
      }
    }
    for (int i = 0; i < rows; ++i) {
      int32_t pairs[8 * kParts * tiles];
      std::memcpy(pairs, total[i], sizeof(pairs));
      int32_t* to = sums + i * kPanelColumns + tile * kTileColumns;
      for (int column = 0; column < kTileColumns * tiles; ++column) to[column] = pairs[2 * column] + pairs[2 * column + 1];
    }
  }

  int64_t width_, stride_;
  int16_t* rows_;
};

#endif

}  // namespace quire::QUIRE_ISA
