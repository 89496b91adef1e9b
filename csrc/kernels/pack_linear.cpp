#include <sys/mman.h>

#include <cstring>

#include "kernels/declarations.hpp"
#include "kernels/panels.hpp"
#include "kernels/vectors.hpp"

namespace quire::QUIRE_ISA {
namespace {

constexpr int kWords = 8;  // of 4 bytes in the 32 that are transposed at once

// The eight int4 of each word, in the order of panels.hpp.
QUIRE_INLINE __m256i reorder_int4(__m256i words) {
  const __m256i nibbles = _mm256_set1_epi32(0x0f0f0f0f), bytes = _mm256_set1_epi32(0x00ff00ff);
  __m256i even = _mm256_and_si256(words, nibbles), odd = _mm256_and_si256(_mm256_srli_epi32(words, 4), nibbles);
  even = _mm256_and_si256(_mm256_or_si256(even, _mm256_srli_epi32(even, 4)), bytes);
  odd = _mm256_and_si256(_mm256_or_si256(odd, _mm256_srli_epi32(odd, 4)), bytes);
  even = _mm256_and_si256(_mm256_or_si256(even, _mm256_srli_epi32(even, 8)), _mm256_set1_epi32(0xffff));
  return _mm256_or_si256(even, _mm256_slli_epi32(_mm256_or_si256(odd, _mm256_srli_epi32(odd, 8)), 16));
}

// to[i][j] = from[j][i] for 8 by 8 words; rows of `from` lie `stride` bytes apart, rows of `to` 64.
template <bool is_int4>
QUIRE_INLINE void transpose(const std::byte* from, int64_t stride, std::byte* to) {
  __m256 a[kWords], b[kWords];
  for (int i = 0; i < kWords; ++i) a[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(from + i * stride));
  for (int i = 0; i < kWords; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < kWords; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  for (int i = 0; i < kWords; ++i) {
    const __m256 row = i < 4 ? _mm256_permute2f128_ps(a[i], a[i + 4], 0x20)
                             : _mm256_permute2f128_ps(a[i - 4], a[i], 0x31);
    const __m256i words = _mm256_castps_si256(row);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + i * kTileRowBytes), is_int4 ? reorder_int4(words) : words);
  }
}

template <bool is_int4>
QUIRE_INLINE void pack_tile(const std::byte* from, int64_t stride, std::byte* to) {
  constexpr int64_t kHalf = kTileRowBytes / 2;
  for (int64_t word = 0; word < 2; ++word) {
    for (int64_t column = 0; column < 2; ++column) {
      transpose<is_int4>(from + column * kWords * stride + word * kHalf, stride,
                         to + word * kWords * kTileRowBytes + column * kHalf);
    }
  }
}

// A tile that the weight does not fill.
template <bool is_int4>
void pack_part(const std::byte* from, int64_t stride, int64_t columns, int64_t bytes, std::byte* to) {
  alignas(64) std::byte whole[kTileBytes] = {};
  for (int64_t column = 0; column < columns; ++column) {
    std::memcpy(whole + column * kTileRowBytes, from + column * stride, bytes);
  }
  pack_tile<is_int4>(whole, kTileRowBytes, to);
}

template <bool is_int4>
void pack_panel(const std::byte* weight, int64_t stride, int64_t columns, int64_t row_bytes, std::byte* to) {
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  for (int64_t byte = 0; byte < row_bytes; byte += kTileRowBytes) {
    const int64_t bytes = least(row_bytes - byte, kTileRowBytes);
    for (int64_t column = 0; column < kPanelColumns; column += kTileColumns, to += kTileBytes) {
      const int64_t present = least(columns - column, kTileColumns);
      const std::byte* from = weight + column * stride + byte;
      if (present == kTileColumns && bytes == kTileRowBytes) pack_tile<is_int4>(from, stride, to);
      else pack_part<is_int4>(from, stride, present > 0 ? present : 0, bytes, to);
    }
  }
}

// Asks for pages of 2 MiB, of which fresh memory needs 512 times fewer; where there are none nothing changes.
void advise_huge_pages(std::byte* data, int64_t bytes) {
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace

void pack_linear(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &packed = operands[0], &weight = operands[1];
  const int64_t columns = weight.shape[0], row_bytes = weight.shape[1] * size_of(weight.dtype);
  const int64_t stride = weight.stride[0] * size_of(weight.dtype), bytes = panel_bytes(row_bytes);
  if (worker.index() == 0) advise_huge_pages(packed.data, num_panels(columns) * bytes);
  worker.barrier();
  const auto pack = weight.dtype == DType::u8 ? pack_panel<true> : pack_panel<false>;
  worker.for_each(num_panels(columns), [&](int64_t panel) {
    const int64_t column = panel * kPanelColumns;
    pack(weight.data + column * stride, stride, columns - column, row_bytes, packed.data + panel * bytes);
  });
}

}  // namespace quire::QUIRE_ISA
