#include "kernels/declarations.hpp"
#include "kernels/rows.hpp"
#include "kernels/vectors.hpp"

namespace quire::QUIRE_ISA {
namespace {

// Row `row` of `out`, of an operand that broadcasts to it in all dimensions but the last.
template <class T>
QUIRE_INLINE const T* broadcast_row(const Tensor& x, const Tensor& out, int64_t row) {
  int64_t offset = 0;
  for (int i = out.rank - 2, j = x.rank - 2; j >= 0; --i, --j) {
    if (x.shape[j] != 1) offset += row % out.shape[i] * x.stride[j];
    row /= out.shape[i];
  }
  return x.as<T>() + offset;
}

// Calls `item(a, b, to, width)` with rows of x, y and out; without a y, b is nullptr.
template <class T, class Item>
QUIRE_INLINE void for_pairs(const Tensor& out, const Tensor& x, const Tensor& y, Worker& worker, Item&& item) {
  for_rows(worker, out.rows(), out.last(), [&](int64_t row) {
    item(broadcast_row<T>(x, out, row), y ? broadcast_row<T>(y, out, row) : nullptr, row_of<T>(out, row), out.last());
  });
}

template <class T, class Function>
QUIRE_INLINE void of_integers(const Tensor* operands, const Tensor& y, T number, Worker& worker, Function&& function) {
  for_pairs<T>(operands[0], operands[1], y, worker, [&](const T* a, const T* b, T* to, int64_t width) {
    for (int64_t i = 0; i < width; ++i) to[i] = function(a[i], b ? b[i] : number);
  });
}

template <class Function>
QUIRE_INLINE void combine(const Tensor* operands, const Tensor& y, double number, Worker& worker, Function&& function) {
  const DType dtype = operands[1].dtype;
  if (dtype == DType::i32) return of_integers(operands, y, static_cast<int32_t>(number), worker, function);
  if (dtype == DType::i64) return of_integers(operands, y, static_cast<int64_t>(number), worker, function);
  by_float(dtype, [&](auto tag) {
    using T = decltype(tag);
    const Floats second = broadcast(static_cast<float>(number));
    for_pairs<T>(operands[0], operands[1], y, worker, [&](const T* a, const T* b, T* to, int64_t width) {
      for_vectors(width, [&](int64_t i, auto n) {
        store(to + i, function(load(a + i, n), b ? load(b + i, n) : second), n);
      });
    });
  });
}

constexpr auto kSum = [](auto x, auto y) { return x + y; };
constexpr auto kProduct = [](auto x, auto y) { return x * y; };

}  // namespace

void add(const Tensor* operands, const double*, Worker& worker) { combine(operands, operands[2], 0, worker, kSum); }

void mul(const Tensor* operands, const double*, Worker& worker) { combine(operands, operands[2], 0, worker, kProduct); }

void add_number(const Tensor* operands, const double* numbers, Worker& worker) {
  combine(operands, Tensor(), numbers[0], worker, kSum);
}

void mul_number(const Tensor* operands, const double* numbers, Worker& worker) {
  combine(operands, Tensor(), numbers[0], worker, kProduct);
}

}  // namespace quire::QUIRE_ISA
