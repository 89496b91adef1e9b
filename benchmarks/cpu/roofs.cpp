// What this machine can do at most: read memory, and multiply AMX tiles that are in registers already. Compiled by
// roofs.py.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#define QUIRE_ISA amx
#include "kernels/amx/tiles.hpp"

using namespace quire::amx;

using Line = int32_t __attribute__((vector_size(64), aligned(4)));

extern "C" int allow_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return static_cast<int>(syscall(SYS_arch_prctl, kRequestPermission, kTileData));
}

// Reads `bytes`, a multiple of 256, in pieces of 64 KiB.
extern "C" int read_all(const char* data, size_t bytes, int threads) {
  constexpr size_t kPiece = 1 << 16, kAhead = 8192;
  int total = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) reduction(+ : total)
  for (size_t piece = 0; piece < bytes; piece += kPiece) {
    const size_t end = piece + kPiece < bytes ? piece + kPiece : bytes;
    Line sums[4] = {};
    for (size_t at = piece; at < end; at += 256) {
      for (int i = 0; i < 4; ++i) {
        _mm_prefetch(data + at + 64 * i + kAhead, _MM_HINT_T0);
        sums[i] += *reinterpret_cast<const Line*>(data + at + 64 * i);
      }
    }
    for (const Line& sum : sums) {
      for (int i = 0; i < 16; ++i) total += sum[i];
    }
  }
  return total;
}

// Each thread multiplies four pairs of tiles `times` times: 65,536 operations each time.
extern "C" void multiply_tiles(int64_t times, int threads) {
#pragma omp parallel num_threads(threads)
  {
    configure_tiles(32);
    for (int64_t i = 0; i < times; ++i) {
      multiply_bf16<C00, A0, B0>();
      multiply_bf16<C01, A0, B1>();
      multiply_bf16<C10, A1, B0>();
      multiply_bf16<C11, A1, B1>();
    }
    release_tiles();
  }
}
