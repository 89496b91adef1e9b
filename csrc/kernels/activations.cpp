#include "kernels/declarations.hpp"
#include "kernels/eight_bits.hpp"
#include "kernels/rows.hpp"
#include "kernels/vectors.hpp"

namespace quire::QUIRE_ISA {
namespace {

// erf(x) within 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26).
QUIRE_INLINE Floats erf(Floats x) {
  const Floats at = abs(x), t = reciprocal(fma(broadcast(0.3275911f), min(broadcast(1e6f), at), broadcast(1.0f)));
  Floats p = broadcast(1.061405429f);
  p = fma(p, t, broadcast(-1.453152027f));
  p = fma(p, t, broadcast(1.421413741f));
  p = fma(p, t, broadcast(-0.284496736f));
  p = fma(p, t, broadcast(0.254829592f));
  const Floats positive = broadcast(1.0f) - p * t * exp(zeros() - x * x);
  return floats_of(bits_of(positive) | (bits_of(x) & bits_of(broadcast(-0.0f))));
}

QUIRE_INLINE Floats gelu_erf(Floats x) {
  return broadcast(0.5f) * x * (broadcast(1.0f) + erf(x * broadcast(0.70710678118654752f)));
}

// x * (1 + tanh(u)) / 2 = x / (1 + e**-2u), u = sqrt(2 / pi) * (x + 0.044715 x**3)
QUIRE_INLINE Floats gelu_tanh(Floats x) {
  const Floats twice = broadcast(1.5957691216057308f) * fma(broadcast(0.044715f) * x * x, x, x);
  return gated(max(broadcast(-1e4f), x), twice);  // below -1e4 it is 0 all the more
}

template <class Function>
QUIRE_INLINE void map(const Tensor& out, const Tensor& x, Worker& worker, Function&& function) {
  by_float(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_rows(worker, x.rows(), x.last(), [&](int64_t row) {
      const T* in = row_of<T>(x, row);
      T* to = row_of<T>(out, row);
      for_vectors(x.last(), [&](int64_t i, auto n) { store(to + i, function(load(in + i, n)), n); });
    });
  });
}

// silu(gate) * up, before the last rounding; the halves of a row lie one after the other.
template <class T, class N>
QUIRE_INLINE Floats silu_times_up(const T* gate, const T* up, N n) {
  return rounded_to<T>(silu(load(gate, n))) * load(up, n);
}

}  // namespace

void silu(const Tensor* operands, const double*, Worker& worker) {
  map(operands[0], operands[1], worker, [](Floats x) { return silu(x); });
}

void gelu(const Tensor* operands, const double* numbers, Worker& worker) {
  if (numbers[0] != 0) map(operands[0], operands[1], worker, [](Floats x) { return gelu_tanh(x); });
  else map(operands[0], operands[1], worker, [](Floats x) { return gelu_erf(x); });
}

void relu(const Tensor* operands, const double*, Worker& worker) {
  map(operands[0], operands[1], worker, [](Floats x) { return max(zeros(), x); });  // NaN stays
}

void silu_mul(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &out = operands[0], &x = operands[1];
  const int64_t width = out.last();
  by_float(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_rows(worker, x.rows(), width, [&](int64_t row) {
      const T *gate = row_of<T>(x, row), *up = gate + width;
      T* to = row_of<T>(out, row);
      for_vectors(width, [&](int64_t i, auto n) { store(to + i, silu_times_up(gate + i, up + i, n), n); });
    });
  });
}

void silu_mul_quant(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &out = operands[0], &scales = operands[1], &x = operands[2];
  const int64_t width = out.last();
  float* wide = worker.scratch<float>(width);
  by_float(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_rows(worker, x.rows(), width, [&](int64_t row) {
      const T *gate = row_of<T>(x, row), *up = gate + width;
      for_vectors(width, [&](int64_t i, auto n) {
        store(wide + i, rounded_to<T>(silu_times_up(gate + i, up + i, n)), n);
      });
      by_eight_bits(out.dtype, [&](auto q) {
        *row_of<float>(scales, row) = quantize_row(wide, row_of<decltype(q)>(out, row), width);
      });
    });
  });
}

}  // namespace quire::QUIRE_ISA
