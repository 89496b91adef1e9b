// Which instructions this processor has, and which kernel serves a name on it.
#pragma once

#include <string_view>
#include <vector>

#include "kernels.hpp"

namespace quire {

// Tables of kernels that this processor runs, best first. The first call asks the operating system for AMX's registers.
const std::vector<const KernelTable*>& tables();

// The best kernel of a name, or nullptr. `isa` empty: of any set of instructions.
const KernelEntry* find_kernel(std::string_view name, std::string_view isa = {});

}  // namespace quire
