// Every kernel, declared in the namespace of the set of instructions that a file is compiled for.
#pragma once

#include "kernels.hpp"

namespace quire::QUIRE_ISA {

// out [rows, last], x [rows, last]: out = x, both contiguous, of one dtype.
void copy(const Tensor* operands, const double* numbers, Worker& worker);

// packed [panels, steps, 2, 16, 64 bytes] (see panels.hpp), weight [columns, depth] f32, bf16 or i8, or
// [columns, depth / 2] u8 of two int4 a byte; rows of weight may be strided.
void pack_linear(const Tensor* operands, const double* numbers, Worker& worker);

// out [*rows, columns], x [*rows, depth] f32, bf16 or f16, weight packed by pack_linear, scales, zero_points, bias
// [columns] of x's dtype or absent: out = x (weight scales)^T + bias, summed in float32 and rounded once. Rows of x and
// out may be strided. scales of weights of f32, bf16 and i8 are [columns] f32 or absent; those of int4 are
// [panels, groups, 32] of any float dtype, its zero_points [panels, groups, 32] u8, and its group a multiple of 32.
// Only x of f32 and f16 goes with a weight of f32.
void linear(const Tensor* operands, const double* numbers, Worker& worker);

}  // namespace quire::QUIRE_ISA
