#include "kernels/declarations.hpp"
#include "kernels/rows.hpp"
#include "kernels/vectors.hpp"

namespace quire::QUIRE_ISA {
namespace {

// `function` of floats and of integers; of the number where there is no y.
template <class Function>
QUIRE_INLINE void combine(const Tensor* operands, const double* numbers, Worker& worker, Function&& function) {
  const Tensor &out = operands[0], &x = operands[1], &y = operands[2];
  const int64_t width = x.last();
  const auto of_integers = [&](auto tag) {
    using T = decltype(tag);
    const T number = static_cast<T>(numbers[0]);
    for_rows(worker, x.rows(), width, [&](int64_t row) {
      const T *a = row_of<T>(x, row), *b = y ? row_of<T>(y, row) : nullptr;
      T* to = row_of<T>(out, row);
      for (int64_t i = 0; i < width; ++i) to[i] = function(a[i], b ? b[i] : number);
    });
  };
  if (x.dtype == DType::i32) return of_integers(int32_t{});
  if (x.dtype == DType::i64) return of_integers(int64_t{});
  by_float(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    const Floats number = broadcast(static_cast<float>(numbers[0]));
    for_rows(worker, x.rows(), width, [&](int64_t row) {
      const T *a = row_of<T>(x, row), *b = y ? row_of<T>(y, row) : nullptr;
      T* to = row_of<T>(out, row);
      for_vectors(width, [&](int64_t i, auto n) { store(to + i, function(load(a + i, n), b ? load(b + i, n) : number), n); });
    });
  });
}

}  // namespace

void add(const Tensor* operands, const double* numbers, Worker& worker) {
  combine(operands, numbers, worker, [](auto x, auto y) { return x + y; });
}

void mul(const Tensor* operands, const double* numbers, Worker& worker) {
  combine(operands, numbers, worker, [](auto x, auto y) { return x * y; });
}

}  // namespace quire::QUIRE_ISA
