#include <cstring>

#include "kernels/declarations.hpp"
#include "kernels/rows.hpp"

namespace quire::QUIRE_ISA {

void gather_rows(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &out = operands[0], &table = operands[1], &ids = operands[2];
  int64_t width = 1;  // all that follows the first dimension of the table, which is contiguous
  for (int i = 1; i < table.rank; ++i) width *= table.shape[i];
  const int64_t size = size_of(table.dtype);
  for_rows(worker, ids.shape[0], width, [&](int64_t row) {
    const int64_t from = index_at(ids, row) * table.stride[0];
    std::memcpy(out.data + row * out.stride[0] * size, table.data + from * size, width * size);
  });
}

}  // namespace quire::QUIRE_ISA
