#include "kernels/choice.hpp"
#include "kernels/declarations.hpp"
#include "kernels/rows.hpp"

namespace quire::QUIRE_ISA {
namespace {

constexpr float kNone = -__builtin_inff();

enum Edit : uint8_t { kKeep, kBan, kAdd, kPenalize };

// What a row asks for; see declarations.hpp.
struct Params {
  float temperature;
  double top_p, min_p;
  int64_t top_k;
  uint64_t bits;

  Params(const Tensor& reals, const Tensor& integers, int64_t row)
      : temperature(static_cast<float>(real(reals, 0, row))),
        top_p(real(reals, 1, row)),
        min_p(real(reals, 2, row)),
        top_k(integers.as<int64_t>()[row]),
        bits(integers.as<uint64_t>()[integers.stride[0] + row]) {}

 private:
  static double real(const Tensor& reals, int64_t which, int64_t row) {
    return __builtin_bit_cast(double, reals.as<int64_t>()[which * reals.stride[0] + row]);
  }
};

// Room for a row of a vocabulary.
struct Room {
  float *x, *values, *rest;
  int64_t *ids, *weights, *sums;

  Room(Worker& worker, int64_t vocab_size) {
    const int64_t size = (vocab_size + 127) / 64 * 64;
    ids = worker.scratch<int64_t>(3 * size + 3 * size / 2);
    weights = ids + size;
    sums = weights + size;
    x = reinterpret_cast<float*>(sums + size);
    values = x + size;
    rest = values + size;
  }
};

template <class T>
QUIRE_INLINE void widen(const T* from, float* to, int64_t length) {
  for_vectors(length, [&](int64_t i, auto n) { store(to + i, load(from + i, n), n); });
}

// The edits of a row, one after the other, on its logits in float.
struct Edits {
  const Tensor &starts, &ids, &kinds, &values, &penalties;

  bool any(int64_t row) const { return starts && starts.as<int64_t>()[row] < starts.as<int64_t>()[row + 1]; }

  void apply(int64_t row, float* x, float* kept, int64_t length) const {
    const int64_t first = starts.as<int64_t>()[row], last = starts.as<int64_t>()[row + 1];
    const float* penalty = penalties.as<float>() + row * penalties.stride[0];
    if (kinds.as<uint8_t>()[first] == kKeep) {
      std::memcpy(kept, x, length * sizeof(float));
      for (int64_t i = 0; i < length; ++i) x[i] = kNone;
    }
    for (int64_t i = first; i < last; ++i) {
      const int64_t id = ids.as<int64_t>()[i];
      const float value = values.as<float>()[i];
      switch (kinds.as<uint8_t>()[i]) {
        case kKeep: x[id] = kept[id]; break;
        case kBan: x[id] = kNone; break;
        case kAdd: x[id] += value; break;
        default: {
          x[id] = x[id] > 0 ? x[id] / penalty[0] : x[id] * penalty[0];
          x[id] -= penalty[1] * value;
          if (value > 0) x[id] -= penalty[2];
        }
      }
    }
  }
};

// x = (x - most) / temperature, at most 0, exactly rounded where it is above -1000; no weight is left below.
void cool(float* x, int64_t length, float most, float temperature) {
  const Floats from = broadcast(most), by = broadcast(temperature), inverse = broadcast(1.0f / temperature);
  const Floats lowest = broadcast(-1000.0f);
  for_vectors(length, [&](int64_t i, auto n) {
    const Floats far = load(x + i, n) - from;
    // In this order: of a NaN, which infinities leave, `max` takes the second.
    store(x + i, max(divide(far, by, inverse), max(far * inverse, lowest)), n);
  });
}

// Where the random bits point in a sum of weights.
int64_t target_of(uint64_t bits, int64_t total) {
  return static_cast<int64_t>(static_cast<unsigned __int128>(bits) * static_cast<uint64_t>(total) >> 64);
}

// The first of some weights at which their sum exceeds `target`.
int64_t first_beyond(const int64_t* weights, int64_t target) {
  int64_t i = 0;
  for (; weights[i] <= target; ++i) target -= weights[i];
  return i;
}

int64_t choose_among_all(const Room& room, int64_t length, uint64_t bits) {
  int64_t target = target_of(bits, total_weight(room.x, length, room.sums));
  const int64_t block = first_beyond(room.sums, target), start = block * kBlock;
  for (int64_t i = 0; i < block; ++i) target -= room.sums[i];
  weigh(room.x + start, length - start < kBlock ? length - start : kBlock, room.weights);
  return start + first_beyond(room.weights, target);
}

struct Bound {
  float y;        // that all tokens reach which the filters keep
  int64_t total;  // of all weights, where top_p is the only filter; else 0
};

Bound bound_of_filters(const Params& params, const Room& room, int64_t length) {
  constexpr double kSlack = 1e-4;  // more than rounding of exp and log
  const double unit = static_cast<double>(1LL << kWeightBits);
  const bool has_top_k = params.top_k > 0 && params.top_k < length;
  float bound = kNone;
  if (params.min_p > 0) bound = static_cast<float>(__builtin_log(params.min_p) - kSlack);
  if (has_top_k) {
    const float of_k = bound_of(room.x, length, params.top_k, room.values, room.rest, room.weights);
    bound = of_k > bound ? of_k : bound;
  }
  if (has_top_k || params.min_p > 0) return {bound, 0};
  // Weights of less than what may go, shared out among all, sum to less than that.
  const int64_t total = total_weight(room.x, length, room.sums);
  const double spare = static_cast<double>(total) * (1 - params.top_p) / static_cast<double>(length);
  return {spare < 1 ? kNone : static_cast<float>(__builtin_log(spare / unit) - kSlack), total};
}

void drop_below(const Room& room, int64_t size, float bound) {
  for (int64_t i = 0; i < size; ++i) {
    if (room.values[i] < bound) room.weights[i] = 0;
  }
}

int64_t sum_of(const int64_t* weights, int64_t size) {
  int64_t sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += weights[i];
  return sum;
}

// min_p, then top_k, then top_p; all that tie with the last that is kept are kept.
int64_t choose_filtered(const Params& params, const Room& room, int64_t length) {
  const Bound bound = bound_of_filters(params, room, length);
  const int64_t size = collect(room.x, length, bound.y, room.values, room.ids);
  float* const y = room.x;  // what is not collected is not needed any more
  for (int64_t i = 0; i < size; i += kBlock) {
    weigh(room.values + i, size - i < kBlock ? size - i : kBlock, room.weights + i);
  }
  const auto least = static_cast<int64_t>(__builtin_ceil(params.min_p * static_cast<double>(1LL << kWeightBits)));
  for (int64_t i = 0; i < size; ++i) room.weights[i] = room.weights[i] < least ? 0 : room.weights[i];
  if (params.top_k > 0 && params.top_k < size) {
    drop_below(room, size, place_of({room.values, nullptr, size}, params.top_k, y, room.sums));
  }
  if (params.top_p < 1) {
    const int64_t total = bound.total > 0 ? bound.total : sum_of(room.weights, size);
    const auto needed = static_cast<int64_t>(__builtin_ceil(params.top_p * static_cast<double>(total)));
    drop_below(room, size, place_of({room.values, room.weights, size}, needed < 1 ? 1 : needed, y, room.sums));
  }
  return room.ids[first_beyond(room.weights, target_of(params.bits, sum_of(room.weights, size)))];
}

// The chosen token, -1 if there is none; `most` is then what the largest logit is.
template <class T>
int64_t choose(const T* logits, int64_t length, const Params& params, const Edits& edits, int64_t row, const Room& room,
               float& most) {
  Largest largest = largest_of(logits, length);
  most = largest.value;
  if (!__builtin_isfinite(most)) return -1;
  const bool has_edits = edits.any(row);
  if (has_edits || params.temperature > 0) widen(logits, room.x, length);
  if (has_edits) {
    edits.apply(row, room.x, room.values, length);
    largest = largest_of(room.x, length);
    most = largest.value;
    if (!__builtin_isfinite(most)) return -1;
  }
  if (params.temperature == 0) return largest.index;
  cool(room.x, length, most, params.temperature);
  const bool has_filters = params.min_p > 0 || params.top_p < 1 || (params.top_k > 0 && params.top_k < length);
  return has_filters ? choose_filtered(params, room, length) : choose_among_all(room, length, params.bits);
}

}  // namespace

void choose_tokens(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &ids = operands[0], &most = operands[1], &logits = operands[2], &reals = operands[3];
  const Tensor& integers = operands[4];
  const Edits edits{operands[5], operands[6], operands[7], operands[8], operands[9]};
  const int64_t length = logits.last();
  const Room room(worker, length);
  by_float(logits.dtype, [&](auto tag) {
    worker.for_each(logits.shape[0], [&](int64_t row) {
      const Params params(reals, integers, row);
      const auto* x = row_of<decltype(tag)>(logits, row);
      ids.as<int64_t>()[row] = choose(x, length, params, edits, row, room, most.as<float>()[row]);
    });
  });
}

namespace {

// How many of a row are above a value.
template <class T>
int64_t count_above(const T* x, int64_t length, float value) {
  int64_t count = 0;
  for_vectors(length, [&](int64_t i, auto n) {
    const Floats some = keep(load(x + i, n), n, broadcast(value));
#ifdef __AVX512F__
    count += __builtin_popcount(_mm512_cmp_ps_mask(some, broadcast(value), _CMP_GT_OQ));
#else
    count += __builtin_popcount(_mm256_movemask_ps(_mm256_cmp_ps(some, broadcast(value), _CMP_GT_OQ)));
#endif
  });
  return count;
}

template <class T>
void swap(T*& a, T*& b) {
  T* const c = a;
  a = b;
  b = c;
}

// Runs of `run` merge into runs of twice that, the larger first; the first among equals stays the first.
void merge_runs(const float* values, const int64_t* ids, float* to, int64_t* to_ids, int64_t size, int64_t run) {
  for (int64_t start = 0; start < size; start += 2 * run) {
    const int64_t middle = start + run < size ? start + run : size;
    const int64_t stop = middle + run < size ? middle + run : size;
    for (int64_t at = start, left = start, right = middle; at < stop; ++at) {
      const bool from_left = right == stop || (left < middle && values[left] >= values[right]);
      const int64_t from = from_left ? left++ : right++;
      to[at] = values[from];
      to_ids[at] = ids[from];
    }
  }
}

// The `num` largest of a row of numbers up to 0 into the front of values and ids, in order, the first id among equals.
void take_largest(Room& room, int64_t length, int64_t num) {
  float bound = bound_of(room.x, length, num, room.values, room.rest, room.weights);
  const int64_t size = collect(room.x, length, bound, room.values, room.ids);
  if (num < size) bound = place_of({room.values, nullptr, size}, num, room.rest, room.weights);
  int64_t ties = num, kept = 0;
  for (int64_t i = 0; i < size; ++i) ties -= room.values[i] > bound;
  for (int64_t i = 0; i < size; ++i) {
    if (room.values[i] < bound || (room.values[i] == bound && ties-- <= 0)) continue;
    room.values[kept] = room.values[i];
    room.ids[kept++] = room.ids[i];
  }
  for (int64_t run = 1; run < kept; run *= 2) {
    merge_runs(room.values, room.ids, room.rest, room.weights, kept, run);
    swap(room.values, room.rest);
    swap(room.ids, room.weights);
  }
}

}  // namespace

void token_logprobs(const Tensor* operands, const double*, Worker& worker) {
  const Tensor &ids = operands[0], &logprobs = operands[1], &ranks = operands[2], &logits = operands[3];
  const Tensor &tokens = operands[4], &nums = operands[5];
  const int64_t length = logits.last();
  Room room(worker, length);
  by_float(logits.dtype, [&](auto tag) {
    worker.for_each(logits.shape[0], [&](int64_t row) {
      const auto* x = row_of<decltype(tag)>(logits, row);
      const int64_t num = nums.as<int64_t>()[row], token = tokens.as<int64_t>()[row];
      int64_t* const id = ids.as<int64_t>() + row * ids.stride[0];
      int64_t* const rank = ranks.as<int64_t>() + row * ranks.stride[0];
      float* const logprob = logprobs.as<float>() + row * logprobs.stride[0];
      widen(x, room.x, length);
      const Floats most = broadcast(largest_of(x, length).value);
      for_vectors(length, [&](int64_t i, auto n) { store(room.x + i, load(room.x + i, n) - most, n); });
      const double unit = static_cast<double>(1LL << kWeightBits);
      const double log_total = __builtin_log(static_cast<double>(total_weight(room.x, length, room.sums)) / unit);
      id[0] = token;
      logprob[0] = static_cast<float>(room.x[token] - log_total);
      rank[0] = 1 + count_above(room.x, length, room.x[token]);
      if (num > 0) take_largest(room, length, num);
      for (int64_t i = 0; i < num; ++i) {
        id[1 + i] = room.ids[i];
        logprob[1 + i] = static_cast<float>(room.values[i] - log_total);
        rank[1 + i] = i > 0 && room.values[i] == room.values[i - 1] ? rank[i] : 1 + i;
      }
    });
  });
}

}  // namespace quire::QUIRE_ISA
