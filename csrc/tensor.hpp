// `Tensor`: memory with a dtype, a shape and strides, as kernels see it. Nobody here owns memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire {

enum class DType : int32_t { f32, bf16, f16, i8, u8, i32, i64, f8e4m3, b8 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    default: return 1;
  }
}

// Sixteen bits that stand for the upper half of a float.
struct bf16 {
  uint16_t bits;
};

constexpr int kMaxRank = 5;

struct Tensor {
  std::byte* data = nullptr;  // nullptr: no such argument
  DType dtype = DType::f32;
  int32_t rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride[kMaxRank] = {};  // in elements

  explicit operator bool() const { return data != nullptr; }

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }

  // Product of all sizes but the last `inner`: the rows of a matrix.
  int64_t rows(int inner = 1) const {
    int64_t count = 1;
    for (int i = 0; i < rank - inner; ++i) count *= shape[i];
    return count;
  }
  int64_t last() const { return shape[rank - 1]; }

  // Elements before the first of row `row`, for any strides.
  int64_t row_offset(int64_t row, int inner = 1) const {
    int64_t offset = 0;
    for (int i = rank - inner - 1; i >= 0; --i) {
      offset += row % shape[i] * stride[i];
      row /= shape[i];
    }
    return offset;
  }
};

}  // namespace quire
