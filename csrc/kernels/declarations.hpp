// Every kernel, declared in the namespace of the set of instructions that a file is compiled for.
#pragma once

#include "kernels.hpp"

namespace quire::QUIRE_ISA {

// out [rows, last], x [rows, last]: out = x, of one dtype; elements of a row lie side by side.
void copy(const Tensor* operands, const double* numbers, Worker& worker);

}  // namespace quire::QUIRE_ISA
