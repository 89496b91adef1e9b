// Rows of tensors of any rank and any strides but the last, and how they are shared out.
#pragma once

#include "kernels.hpp"

namespace quire::QUIRE_ISA {

// Where row `row` of all but the last `inner` dimensions starts, in elements.
static inline int64_t row_offset(const Tensor& x, int64_t row, int inner = 1) {
  int64_t offset = 0;
  for (int i = x.rank - inner - 1; i > 0; --i) {
    offset += row % x.shape[i] * x.stride[i];
    row /= x.shape[i];
  }
  return x.rank > inner ? offset + row * x.stride[0] : 0;
}

template <class T>
static inline T* row_of(const Tensor& x, int64_t row, int inner = 1) {
  return x.as<T>() + row_offset(x, row, inner);
}

// Element i of a vector of int32 or int64.
static inline int64_t index_at(const Tensor& x, int64_t i) {
  return x.dtype == DType::i64 ? x.as<int64_t>()[i * x.stride[0]] : x.as<int32_t>()[i * x.stride[0]];
}

// Calls `item(row)` for each row. Short rows are taken several at once: sharing one out costs as much as computing some
// hundred elements.
template <class Item>
static inline void for_rows(Worker& worker, int64_t count, int64_t width, Item&& item) {
  constexpr int64_t kElements = 4096;
  worker.for_each(count, item, width < kElements ? kElements / (width < 1 ? 1 : width) : 1);
}

}  // namespace quire::QUIRE_ISA
