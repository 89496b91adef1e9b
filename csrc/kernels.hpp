// What a kernel is, and the tables of them, one for each set of instructions.
#pragma once

#include <cstdint>

#include "team.hpp"
#include "tensor.hpp"

namespace quire {

// All workers of a team call a kernel with the same arguments; it returns when its results are complete for all of them
// (it ends with `for_each` or `barrier`).
//
// operands: results first, then arguments, in the order that the kernel's declaration states; absent ones are empty.
// numbers: attributes, integers included.
using Kernel = void (*)(const Tensor* operands, const double* numbers, Worker& worker);

struct KernelEntry {
  const char* name;
  Kernel run;
  int num_operands;
  int num_numbers;
};

struct KernelTable {
  const char* isa;
  const KernelEntry* entries;
  int size;
};

namespace avx2 {
extern const KernelTable kernels;
}
namespace avx512 {
extern const KernelTable kernels;
}
namespace amx {
extern const KernelTable kernels;
}

}  // namespace quire
