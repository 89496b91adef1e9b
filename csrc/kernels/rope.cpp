#include <cstring>

#include "kernels/declarations.hpp"
#include "kernels/eight_bits.hpp"
#include "kernels/rows.hpp"
#include "kernels/vectors.hpp"

namespace quire::QUIRE_ISA {
namespace {

// A head's pairs (i, i + half) turned by the angles of a row of cos, then sin; what lies past them as it is.
template <class T>
QUIRE_INLINE void turn(const T* x, T* out, const float* angles, int64_t half, int64_t head_dim) {
  for_vectors(half, [&](int64_t i, auto n) {
    const Floats a = load(x + i, n), b = load(x + half + i, n);
    const Floats cos = load(angles + i, n), sin = load(angles + half + i, n);
    store(out + i, a * cos - b * sin, n);
    store(out + half + i, b * cos + a * sin, n);
  });
  std::memcpy(out + 2 * half, x + 2 * half, (head_dim - 2 * half) * sizeof(T));
}

template <class T>
QUIRE_INLINE void turn_heads(const Tensor& out, const Tensor& x, const Tensor& table, int64_t token, int64_t position) {
  const float* angles = table.as<float>() + position * table.stride[0];
  for (int64_t head = 0; head < x.shape[1]; ++head) {
    turn(row_of<T>(x, token, 2) + head * x.stride[1], row_of<T>(out, token, 2) + head * out.stride[1], angles,
         table.shape[1] / 2, x.shape[2]);
  }
}

// A head of keys (0) or values (1) into its place in the cache, rounded to 8 bits where the cache is.
template <class T>
QUIRE_INLINE void append_head(const T* x, const Tensor& cache, const Tensor& scales, int side, int64_t slot,
                              int64_t head) {
  const int64_t block = slot / cache.shape[3], offset = slot % cache.shape[3], head_dim = cache.shape[4];
  const int64_t* stride = cache.stride;
  const int64_t at = side * stride[0] + block * stride[1] + head * stride[2] + offset * stride[3];
  if (!scales) {
    std::memcpy(cache.as<T>() + at, x, head_dim * sizeof(T));
    return;
  }
  const float scale = scales.as<float>()[side * scales.stride[0] + head * scales.stride[1]];
  const Floats by = broadcast(scale);
  by_eight_bits(cache.dtype, [&](auto q) {
    auto* to = cache.as<decltype(q)>() + at;
    for_vectors(head_dim, [&](int64_t i, auto n) { store_eight_bits(to + i, load(x + i, n) / by, n); });
  });
}

}  // namespace

void rope(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &out = operands[0], &x = operands[1], &positions = operands[2], &table = operands[3];
  by_float(x.dtype, [&](auto tag) {
    for_rows(worker, x.shape[0], x.shape[1] * x.shape[2], [&](int64_t token) {
      turn_heads<decltype(tag)>(out, x, table, token, index_at(positions, token));
    });
  });
}

void append_kv(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &cache = operands[0], &key = operands[1], &value = operands[2], &slots = operands[3];
  const Tensor& scales = operands[4];
  by_float(key.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_rows(worker, key.shape[0], 2 * key.shape[1] * key.shape[2], [&](int64_t token) {
      const int64_t slot = index_at(slots, token);
      if (slot < 0) return;
      for (int64_t head = 0; head < key.shape[1]; ++head) {
        append_head(row_of<T>(key, token, 2) + head * key.stride[1], cache, scales, 0, slot, head);
        append_head(row_of<T>(value, token, 2) + head * value.stride[1], cache, scales, 1, slot, head);
      }
    });
  });
}

void rope_append_kv(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &out = operands[0], &cache = operands[1], &query = operands[2], &key = operands[3];
  const Tensor &value = operands[4], &positions = operands[5], &table = operands[6], &slots = operands[7];
  const Tensor& scales = operands[8];
  const int64_t half = table.shape[1] / 2, head_dim = key.shape[2];
  by_float(query.dtype, [&](auto tag) {
    using T = decltype(tag);
    T* turned = worker.scratch<T>(head_dim);
    for_rows(worker, query.shape[0], (query.shape[1] + 2 * key.shape[1]) * head_dim, [&](int64_t token) {
      const int64_t position = index_at(positions, token), slot = index_at(slots, token);
      turn_heads<T>(out, query, table, token, position);
      if (slot < 0) return;
      for (int64_t head = 0; head < key.shape[1]; ++head) {
        const float* angles = table.as<float>() + position * table.stride[0];
        turn(row_of<T>(key, token, 2) + head * key.stride[1], turned, angles, half, head_dim);
        append_head(static_cast<const T*>(turned), cache, scales, 0, slot, head);
        append_head(row_of<T>(value, token, 2) + head * value.stride[1], cache, scales, 1, slot, head);
      }
    });
  });
}

}  // namespace quire::QUIRE_ISA
