#include <cstring>

#include "kernels/declarations.hpp"

namespace quire::QUIRE_ISA {

void copy(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &out = operands[0], &x = operands[1];
  const int64_t size = size_of(x.dtype);
  worker.for_each(x.rows(), [&](int64_t row) {
    std::memcpy(out.data + out.row_offset(row) * size, x.data + x.row_offset(row) * size, x.last() * size);
  });
}

}  // namespace quire::QUIRE_ISA
