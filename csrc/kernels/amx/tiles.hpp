// AMX's tile registers.
//
// A product of at most 32 rows of x with a panel (see panels.hpp) holds its sums in four tiles:
//
//            B0    B1            x [rows, depth] is read as it lies, 64 bytes of a row at a time: 32 bf16 or 64 int8
//      A0    C00   C01
//      A1    C10   C11
//
// What is added to an element of C, and in which order, depends on k alone: not on the number of rows, which only tells
// the processor where to stop.
//
// The compiler's own functions are not used: GCC 12's tell it too little about memory (their configuration's stores may
// be dropped, and stores move past tile loads).
#pragma once

#include <cstdint>

#include "kernels/panels.hpp"

namespace quire::QUIRE_ISA {

enum Tile { C00, C01, C10, C11, A0, A1, B0, B1 };

constexpr int64_t kBlockRows = 2 * kTileRows;  // of x, that share the loads of a panel

// Configures all tiles, the upper and the lower ones for so many rows of x, and zeroes them.
inline void configure_tiles(int64_t upper, int64_t lower) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  const int64_t of_tile[] = {upper, upper, lower, lower, upper, lower, kTileRows, kTileRows};
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = of_tile[tile] ? kTileRowBytes : 0;
    config.rows[tile] = static_cast<uint8_t>(of_tile[tile]);
  }
  asm volatile("ldtilecfg %0" ::"m"(config));
}

// For 1 to 32 rows of x.
inline void configure_tiles(int64_t rows) {
  const int64_t upper = rows < kTileRows ? rows : kTileRows;
  configure_tiles(upper, rows - upper);
}

// Back to no tiles, which saves the operating system 8 KiB in every switch of threads.
inline void release_tiles() { asm volatile("tilerelease"); }

template <Tile tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}

// Rows lie `stride` bytes apart.
template <Tile tile>
inline void load_tile(const void* from, int64_t stride = kTileRowBytes) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(tile), "r"(from), "r"(stride) : "memory");
}

// The same of memory that is not needed again soon: the first cache keeps what it has.
template <Tile tile>
inline void stream_tile(const void* from, int64_t stride = kTileRowBytes) {
  asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(tile), "r"(from), "r"(stride) : "memory");
}

template <Tile tile>
inline void store_tile(void* to, int64_t stride = kTileRowBytes) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(tile), "r"(to), "r"(stride) : "memory");
}

// c += a b in float32: sums of the even and of the odd k of a step, then the two and c. Denormals count as zero.
template <Tile c, Tile a, Tile b>
inline void multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}

// c += a b, exact in int32.
template <Tile c, Tile a, Tile b>
inline void multiply_i8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}

}  // namespace quire::QUIRE_ISA
