#include "isa.hpp"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace quire {
namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
}

// CPUID.7.0:EDX bits 22, 24, 25 are AMX-BF16, AMX-TILE and AMX-INT8; CPUID.7.1:EAX bit 5 is AVX512-BF16.
bool has_amx() {
  unsigned a, b, c, d;
  if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTiles = 1u << 22 | 1u << 24 | 1u << 25;
  if ((d & kTiles) != kTiles) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // Linux: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

std::vector<const KernelTable*> supported() {
  std::vector<const KernelTable*> found;
  if (has_amx()) found.push_back(&amx::kernels);
  if (has_avx512()) found.push_back(&avx512::kernels);
  if (has_avx2()) found.push_back(&avx2::kernels);
  return found;
}

}  // namespace

const std::vector<const KernelTable*>& tables() {
  static const std::vector<const KernelTable*> found = supported();
  return found;
}

const KernelEntry* find_kernel(std::string_view name, std::string_view isa) {
  for (const KernelTable* table : tables()) {
    if (!isa.empty() && isa != table->isa) continue;
    for (int i = 0; i < table->size; ++i) {
      if (name == table->entries[i].name) return &table->entries[i];
    }
  }
  return nullptr;
}

}  // namespace quire
