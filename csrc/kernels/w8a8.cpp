#include "kernels/w8a8.hpp"

#include "kernels/declarations.hpp"

namespace quire::QUIRE_ISA {

void linear_w8a8(const Tensor* operands, const double*, Worker& worker) {
#if defined(QUIRE_ISA_IS_amx)
  constexpr int64_t kFewRows = 4;  // below, tiles are mostly empty, and vectors reach the memory's bandwidth
  if (operands[1].rows() > kFewRows) return linear_w8a8_tiles(operands, worker);
#endif
#ifdef __AVX512VNNI__
  multiply_int8<VnniRows>(operands, worker);
#else
  multiply_int8<WideRows>(operands, worker);
#endif
}

void correct_w8a8(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &corrections = operands[0], &panels = operands[1];
  const int64_t tiles = panels.stride[0] / kTileBytes;
  worker.for_each(panels.shape[0], [&](int64_t panel) {
    const int8_t* tile = panels.as<int8_t>() + panel * panels.stride[0];
    int32_t* to = corrections.as<int32_t>() + panel * kPanelColumns;
    int32_t sums[kPanelColumns] = {};
    for (int64_t i = 0; i < tiles; ++i, tile += kTileBytes) {
      int32_t* of_tile = sums + i % 2 * kTileColumns;
      for (int64_t row = 0; row < kTileRows; ++row) {
        for (int64_t part = 0; part < kTileRowBytes; part += 32) {
          const auto* four = reinterpret_cast<const __m256i*>(tile + row * kTileRowBytes + part);
          auto* total = reinterpret_cast<__m256i*>(of_tile + part / 4);
          const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256(four));
          const __m256i sum = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
          _mm256_storeu_si256(total, _mm256_add_epi32(_mm256_loadu_si256(total), sum));
        }
      }
    }
    for (int64_t i = 0; i < kPanelColumns; ++i) to[i] = -128 * sums[i];
  });
}

}  // namespace quire::QUIRE_ISA
