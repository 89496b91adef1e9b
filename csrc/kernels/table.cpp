#include "kernels/declarations.hpp"

#define QUIRE_TEXT_(x) #x
#define QUIRE_TEXT(x) QUIRE_TEXT_(x)

namespace quire::QUIRE_ISA {

static constexpr KernelEntry kEntries[] = {
    {"copy", copy, 2, 0},
    {"linear", linear, 6, 0},
    {"pack_linear", pack_linear, 2, 0},
};

extern const KernelTable kernels = {QUIRE_TEXT(QUIRE_ISA), kEntries, sizeof(kEntries) / sizeof(kEntries[0])};

}  // namespace quire::QUIRE_ISA
