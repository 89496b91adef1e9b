#include "kernels/declarations.hpp"
#include "kernels/eight_bits.hpp"
#include "kernels/rows.hpp"
#include "kernels/vectors.hpp"

namespace quire::QUIRE_ISA {
namespace {

// 1 / sqrt(mean(x**2) + eps)
template <class T>
QUIRE_INLINE float inverse_rms(const T* x, int64_t width, float eps) {
  const float squares = sum_over(width, [&](int64_t i, auto n) {
    const Floats wide = load(x + i, n);
    return wide * wide;
  });
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + eps);
}

// Calls `keep(i, n, y)` with every vector of the norm, before the last rounding.
template <class T, class Keep>
QUIRE_INLINE void normalize(const T* x, const T* weight, int64_t width, float eps, Keep&& keep) {
  const Floats factor = broadcast(inverse_rms(x, width, eps));
  for_vectors(width, [&](int64_t i, auto n) {
    keep(i, n, rounded_to<T>(load(x + i, n) * factor) * load(weight + i, n));
  });
}

template <class T>
QUIRE_INLINE void add_row(const T* x, const T* y, T* out, int64_t width) {
  for_vectors(width, [&](int64_t i, auto n) { store(out + i, load(x + i, n) + load(y + i, n), n); });
}

template <class T>
QUIRE_INLINE void normalize_row(const T* x, const T* weight, T* out, int64_t width, float eps) {
  normalize(x, weight, width, eps, [&](int64_t i, auto n, Floats y) { store(out + i, y, n); });
}

// The norm, rounded to its dtype and then to 8 bits; `wide` has room for a row.
template <class T>
QUIRE_INLINE void normalize_and_quantize(const T* x, const T* weight, const Tensor& out, const Tensor& scales,
                                         float* wide, int64_t row, float eps) {
  const int64_t width = out.last();
  normalize(x, weight, width, eps, [&](int64_t i, auto n, Floats y) { store(wide + i, rounded_to<T>(y), n); });
  by_eight_bits(out.dtype, [&](auto q) {
    *row_of<float>(scales, row) = quantize_row(wide, row_of<decltype(q)>(out, row), width);
  });
}

}  // namespace

void rms_norm(const Tensor* operands, const double* numbers, Worker& worker) {
  const Tensor &out = operands[0], &x = operands[1], &weight = operands[2];
  const float eps = static_cast<float>(numbers[0]);
  by_float(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_rows(worker, x.rows(), x.last(), [&](int64_t row) {
      normalize_row(row_of<T>(x, row), weight.as<T>(), row_of<T>(out, row), x.last(), eps);
    });
  });
}

void add_rms_norm(const Tensor* operands, const double* numbers, Worker& worker) {
  const Tensor &out = operands[0], &total = operands[1], &x = operands[2], &residual = operands[3];
  const Tensor& weight = operands[4];
  const float eps = static_cast<float>(numbers[0]);
  by_float(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_rows(worker, x.rows(), x.last(), [&](int64_t row) {
      T* sum = row_of<T>(total, row);
      add_row(row_of<T>(x, row), row_of<T>(residual, row), sum, x.last());
      normalize_row(sum, weight.as<T>(), row_of<T>(out, row), x.last(), eps);
    });
  });
}

void rms_norm_quant(const Tensor* operands, const double* numbers, Worker& worker) {
  const Tensor &out = operands[0], &scales = operands[1], &x = operands[2], &weight = operands[3];
  const float eps = static_cast<float>(numbers[0]);
  float* wide = worker.scratch<float>(x.last());
  by_float(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_rows(worker, x.rows(), x.last(), [&](int64_t row) {
      normalize_and_quantize(row_of<T>(x, row), weight.as<T>(), out, scales, wide, row, eps);
    });
  });
}

void add_rms_norm_quant(const Tensor* operands, const double* numbers, Worker& worker) {
  const Tensor &out = operands[0], &scales = operands[1], &total = operands[2], &x = operands[3];
  const Tensor &residual = operands[4], &weight = operands[5];
  const float eps = static_cast<float>(numbers[0]);
  float* wide = worker.scratch<float>(x.last());
  by_float(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_rows(worker, x.rows(), x.last(), [&](int64_t row) {
      T* sum = row_of<T>(total, row);
      add_row(row_of<T>(x, row), row_of<T>(residual, row), sum, x.last());
      normalize_and_quantize(sum, weight.as<T>(), out, scales, wide, row, eps);
    });
  });
}

void layer_norm(const Tensor* operands, const double* numbers, Worker& worker) {
  const Tensor &out = operands[0], &x = operands[1], &weight = operands[2], &bias = operands[3];
  const float eps = static_cast<float>(numbers[0]);
  const int64_t width = x.last();
  by_float(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_rows(worker, x.rows(), width, [&](int64_t row) {
      const T* in = row_of<T>(x, row);
      T* to = row_of<T>(out, row);
      const float count = static_cast<float>(width);
      const Floats mean = broadcast(sum_over(width, [&](int64_t i, auto n) { return load(in + i, n); }) / count);
      const float squares = sum_over(width, [&](int64_t i, auto n) {
        const Floats far = keep(load(in + i, n) - mean, n, zeros());
        return far * far;
      });
      const Floats factor = broadcast(1.0f / __builtin_sqrtf(squares / count + eps));
      for_vectors(width, [&](int64_t i, auto n) {
        const Floats added = bias ? load(bias.as<T>() + i, n) : zeros();
        store(to + i, fma((load(in + i, n) - mean) * factor, load(weight.as<T>() + i, n), added), n);
      });
    });
  });
}

void quantize_rows(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &out = operands[0], &scales = operands[1], &x = operands[2];
  const int64_t width = x.last();
  float* wide = worker.scratch<float>(width);
  by_float(x.dtype, [&](auto tag) {
    for_rows(worker, x.rows(), width, [&](int64_t row) {
      const auto* in = row_of<decltype(tag)>(x, row);
      for_vectors(width, [&](int64_t i, auto n) { store(wide + i, load(in + i, n), n); });
      by_eight_bits(out.dtype, [&](auto q) {
        *row_of<float>(scales, row) = quantize_row(wide, row_of<decltype(q)>(out, row), width);
      });
    });
  });
}

}  // namespace quire::QUIRE_ISA
