// A square of 4-byte elements, transposed in registers.
#pragma once

#include "kernels/vectors.hpp"

namespace quire::QUIRE_ISA {

#ifdef __AVX512F__

// Four times, the upper half of the rows is shuffled into the lower as a deck of cards is: each time the numbers of
// rows and columns, written one after the other in bits, turn by one place.
QUIRE_INLINE void transpose(Floats (&rows)[kLanes]) {
  const Ints first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const Ints second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#pragma GCC unroll 4
  for (int time = 0; time < 4; ++time) {
    Floats shuffled[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      shuffled[2 * i] = _mm512_permutex2var_ps(rows[i], first, rows[i + kLanes / 2]);
      shuffled[2 * i + 1] = _mm512_permutex2var_ps(rows[i], second, rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = shuffled[i];
  }
}

#else

// Squares of 4 by 4 within halves of vectors, then the halves.
QUIRE_INLINE void transpose(Floats (&rows)[kLanes]) {
  Floats fours[kLanes];
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; i += 4) {
    const Floats a = _mm256_unpacklo_ps(rows[i], rows[i + 1]), b = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    const Floats c = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]), d = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
    fours[i] = _mm256_shuffle_ps(a, c, 0x44), fours[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
    fours[i + 2] = _mm256_shuffle_ps(b, d, 0x44), fours[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

#endif

}  // namespace quire::QUIRE_ISA
