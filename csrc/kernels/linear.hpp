// The product of rows with a packed weight, the same for every set of instructions: who computes what, in which order.
//
// An element of the result is summed over k in ascending order, in float32, by an engine: AMX tiles or vectors. Neither
// engine's order depends on how many rows there are or where a sum is put down and taken up again, so a row's bits
// depend on its values alone. Only int4 sums by group: from zero within a group, then scaled and added.
//
// With one block of rows a worker takes a panel through all of k, as fast as memory brings it. With more, the rows'
// part of a chunk of k stays in the second cache, and so does a panel's, for all these rows; what comes next is fetched
// meanwhile. Weights of fewer bits are widened once for all these rows.
#pragma once

#include "kernels.hpp"
#include "kernels/panels.hpp"
#include "kernels/vectors.hpp"

namespace quire::QUIRE_ISA {

// Two values of four bits, as packed.
struct int4x2 {
  uint8_t bits;
};

// How many values of T are in the 4 bytes of a word.
template <class T>
constexpr int64_t kPerWord = 4 / sizeof(T);
template <>
inline constexpr int64_t kPerWord<int4x2> = 8;

template <class T>
constexpr bool kIsInt4 = std::is_same_v<T, int4x2>;

constexpr int64_t kFewRows = 32;          // up to here each worker prepares x for itself
constexpr int64_t kGroupRows = 512;       // that share a panel, if all of it fits beside them
constexpr int64_t kLongRows = 256;        // that share one, or a chunk of one, if they are too long for that
constexpr int64_t kPanelsTogether = 8;    // that share a chunk of these rows, if there are several chunks
constexpr int64_t kStreamedBytes = 4 << 20;  // of results, which are then written past the caches
constexpr int64_t kMostAhead = 8;         // lines of the next chunk that a block asks for in a step
constexpr int64_t kRunsPerWorker = 4;     // of neighbouring panels: more would break streams, fewer be waited for

struct Product {
  const Tensor& out;
  const Tensor& x;
  const Tensor& weight;
  const Tensor& scales;  // [columns] float32, or with int4 [panels, groups, 32]
  const Tensor& zero_points;
  const Tensor& bias;
  int64_t rows, columns, depth, groups;
  const Tensor* x_scales = nullptr;  // [rows, 1] float32, of x in int8
  // Whether results are more than the second cache holds: their lines need not be read before they are written.
  bool streams_out = is_streamed(out, rows);

  static bool is_streamed(const Tensor& out, int64_t rows) {
    const int64_t stride = out.rank > 1 ? out.stride[out.rank - 2] * size_of(out.dtype) : 0;
    return rows * stride >= kStreamedBytes && stride % 64 == 0 && reinterpret_cast<uintptr_t>(out.data) % 64 == 0;
  }

  int64_t group() const { return groups ? depth / groups : depth; }
  int64_t row_stride() const { return x.rank > 1 ? x.stride[x.rank - 2] : depth; }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a < b ? b : a; }
constexpr int64_t whole_lines(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// The sums of a row's groups, which zero points are multiplied by.
template <class T>
QUIRE_INLINE void sum_groups(const T* row, const Product& product, float* sums) {
  const int64_t group = product.group();  // a multiple of 32
  for (int64_t i = 0; i < product.groups; ++i) {
    Floats total = zeros();
    for (int64_t k = 0; k < group; k += kLanes) total = total + load(row + i * group + k);
    sums[i] = sum(total);
  }
}

// What a worker knows of x: as its engine reads it, and the sums of its groups. For few rows its own, else the team's.
template <class Engine>
class Prepared {
 public:
  static int64_t bytes(const Product& product) {
    return whole_lines(Engine::row_bytes(product) * ceil_div(product.rows, Engine::kRows) * Engine::kRows) +
           whole_lines(product.rows * product.groups * sizeof(float));
  }

  Prepared(const Product& product, std::byte* memory) : product_(product) {
    sums_ = reinterpret_cast<float*>(memory);
    rows_ = memory + whole_lines(product.rows * product.groups * sizeof(float));
  }

  void prepare(int64_t block) const {
    const int64_t first = block * Engine::kRows, count = least(Engine::kRows, product_.rows - first);
    Engine::prepare(product_, first, count, rows_);
    if (product_.groups == 0) return;
    by_float(product_.x.dtype, [&](auto element) {
      const auto* x = product_.x.template as<decltype(element)>();
      for (int64_t row = first; row < first + count; ++row) {
        sum_groups(x + row * product_.row_stride(), product_, sums_ + row * product_.groups);
      }
    });
  }

  const std::byte* rows() const { return rows_; }
  const float* sums_of(int64_t row, int64_t group) const { return sums_ + row * product_.groups + group; }

 private:
  const Product& product_;
  float* sums_;
  std::byte* rows_;
};

QUIRE_INLINE Floats load_u8(const uint8_t* p) {
#ifdef __AVX512F__
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#endif
}

// A group of int4 of a panel, for values that are more by `base`, and what its products made of some rows.
struct GroupSums {
  static constexpr int64_t kVectors = kPanelColumns / kLanes;

  const float* partial;    // [rows, 32]
  const float* sums_of_x;  // of the group's x, `x_stride` apart
  int64_t x_stride;
  Floats scales[kVectors], offsets[kVectors];

  // `at`: where the panel's 32 scales and zero points of the group are.
  GroupSums(const Product& product, int64_t at, float base, const float* partial, const float* sums_of_x)
      : partial(partial), sums_of_x(sums_of_x), x_stride(product.groups) {
    const uint8_t* zero_points = product.zero_points.as<uint8_t>() + at;
    by_float(product.scales.dtype, [&](auto element) {
      const auto* from = product.scales.template as<decltype(element)>() + at;
      for (int64_t v = 0; v < kVectors; ++v) {
        scales[v] = load(from + v * kLanes), offsets[v] = broadcast(-base) - load_u8(zero_points + v * kLanes);
      }
    });
  }

  // sums += (partial - (base + zero point) * sum of the group's x) * scale
  void add_to(float* sums, int64_t rows, bool is_first) const {
#pragma GCC unroll 4
    for (int64_t row = 0; row < rows; ++row) {
      const Floats sum_of_x = broadcast(sums_of_x[row * x_stride]);
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t at = row * kPanelColumns + v * kLanes;
        const Floats value = fma(offsets[v], sum_of_x, load(partial + at));
        store(sums + at, fma(scales[v], value, is_first ? zeros() : load(sums + at)));
      }
    }
  }
};

// Stores `value(i, n)` of a row of a panel, at `to`: a whole line at once where there is one.
template <class T, class Value>
QUIRE_INLINE void store_row(const Product& product, T* to, int64_t columns, Value&& value) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, bf16>) {
    if (columns == kPanelColumns) {
      constexpr std::integral_constant<int, kLanes> whole;
      const Ints line = both_quickly(value(0, whole), value(kLanes, whole));
      if (product.streams_out) _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
      else _mm512_storeu_si512(to, line);
      return;
    }
  }
#endif
  for_vectors(columns, [&](int64_t i, auto n) { store_quickly(to + i, value(i, n), n); });
}

// A row of a panel's sums as the result: scaled, with the bias added, rounded once.
template <class T>
QUIRE_INLINE void finish_row(const Product& product, int64_t panel, int64_t row, const float* sums) {
  const int64_t begin = panel * kPanelColumns, end = least(product.columns, begin + kPanelColumns);
  const int64_t stride = product.out.rank > 1 ? product.out.stride[product.out.rank - 2] : product.columns;
  const float* scales = product.groups ? nullptr : product.scales.as<float>();
  T* out = product.out.as<T>() + row * stride;
  const auto value = [&](int64_t i, auto n) {
    Floats x = load(sums + i);
    if (scales != nullptr) x = x * load(scales + begin + i, n);
    if (product.bias) x = x + load(product.bias.as<T>() + begin + i, n);
    return x;
  };
  store_row(product, out + begin, end - begin, value);
}

// Sums of a panel with rows [next, end), to be stored as results.
struct PanelSums {
  int64_t panel = 0, next = 0, end = 0;
  const float* of_next = nullptr;

  // The next `count` rows of them, if there are so many, each by `finish_row`.
  template <class FinishRow>
  inline __attribute__((always_inline)) void finish(int64_t count, FinishRow&& finish_row) {
    for (const int64_t stop = least(end, next + count); next < stop; ++next, of_next += kPanelColumns) {
      finish_row(panel, next, of_next);
    }
  }
};

// How the product is cut.
template <class Engine, class Weight>
struct Cut {
  explicit Cut(const Product& product, int64_t workers)
      : steps(ceil_div(product.depth, Engine::kStep)),
        group_steps(kIsInt4<Weight> ? product.group() / Engine::kStep : 1),
        panels(num_panels(product.columns)),
        blocks(ceil_div(product.rows, Engine::kRows)),
        blocks_together(least(blocks, kGroupRows / Engine::kRows)),
        is_packed(!Engine::template kIsDirect<Weight> && product.rows <= Engine::kPackedRows) {
    const auto fits = [&] {
      return steps * (kPanelStepBytes + blocks_together * Engine::kRows * kTileRowBytes) <= Engine::kCachedBytes;
    };
    if (!fits()) blocks_together = least(blocks, kLongRows / Engine::kRows);
    row_groups = ceil_div(blocks, blocks_together);
    if (blocks == 1 ? is_direct || is_packed : fits()) chunk = steps;
    else chunk = ceil_div(blocks == 1 ? Engine::kFirstCache : Engine::kSecondCache, group_steps) * group_steps;
    panels_together = blocks == 1 || chunk >= steps ? 1 : kPanelsTogether;
    panel_groups = ceil_div(panels, panels_together);
    run = most(1, row_groups * panel_groups / (workers * kRunsPerWorker));
  }

  int64_t widened_bytes() const { return is_direct || is_packed ? 0 : chunk * Engine::kStepBytes; }
  int64_t block_floats() const { return Engine::kRows * kPanelColumns; }
  // Of a block that is complete at once, and of the one before it, which may not be stored yet.
  int64_t num_sums() const { return chunk >= steps ? least(blocks, 2) : blocks_together * panels_together; }
  int64_t floats() const { return (num_sums() + kIsInt4<Weight>)*block_floats(); }

  static constexpr bool is_direct = Engine::template kIsDirect<Weight>;
  int64_t steps, group_steps, panels, blocks, blocks_together, row_groups;
  bool is_packed;  // rows are so few that a weight is widened where it is multiplied
  int64_t chunk, panels_together, panel_groups, run;
};

QUIRE_INLINE void prefetch(const std::byte* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// Memory to fetch while other things are computed: so many lines in each step.
struct Ahead {
  const std::byte* from;
  int64_t lines;
};

template <class Engine, class Weight>
class Item {
 public:
  using Plan = Cut<Engine, Weight>;

  Item(const Product& product, const Plan& cut, const Prepared<Engine>& x, std::byte* memory)
      : product_(product), cut_(cut), x_(x), widened_(memory) {
    sums_ = reinterpret_cast<float*>(memory + cut.widened_bytes());
    partial_ = sums_ + cut.num_sums() * cut.block_floats();
    panel_bytes_ = panel_bytes(ceil_div(product.depth, kPerWord<Weight>) * 4);
  }

  void operator()(int64_t index) {
    first_block_ = index / cut_.panel_groups * cut_.blocks_together;
    end_block_ = least(cut_.blocks, first_block_ + cut_.blocks_together);
    first_panel_ = index % cut_.panel_groups * cut_.panels_together;
    end_panel_ = least(cut_.panels, first_panel_ + cut_.panels_together);
    for (int64_t step = 0; step < cut_.steps; step += cut_.chunk) {
      for (int64_t panel = first_panel_; panel < end_panel_; ++panel) add_chunk(panel, step);
    }
    engine_.finish(product_, {});
    if (product_.streams_out) _mm_sfence();
  }

 private:
  void add_chunk(int64_t panel, int64_t step) {
    const int64_t steps = least(cut_.chunk, cut_.steps - step);
    const std::byte* values =
        cut_.is_packed ? nullptr : Engine::template widen<Weight>(packed(panel, 0), step, steps, widened_);
    for (int64_t block = first_block_; block < end_block_; ++block) {
      float* sums = sums_of(panel, block);
      const Ahead ahead = ahead_of(panel, step, block);
      if constexpr (kIsInt4<Weight>) add_groups(panel, block, step, steps, values, ahead, sums);
      else add(panel, block, step, steps, values, ahead, sums, step == 0, step + steps == cut_.steps);
      if (step + steps < cut_.steps) continue;
      const int64_t first = block * Engine::kRows;
      engine_.finish(product_, {panel, first, first + rows_of(block), sums});
      turn_ ^= cut_.num_sums() == 2;
    }
  }

  inline __attribute__((always_inline)) void add(int64_t panel, int64_t block, int64_t step, int64_t steps,
                                                 const std::byte* values, Ahead ahead, float* sums, bool from_zero,
                                                 bool is_complete) {
    const int64_t rows = rows_of(block);
    if constexpr (Engine::kPackedRows > 0 && !Plan::is_direct) {
      if (cut_.is_packed) {
        return Engine::template add_packed<Weight>(product_, x_.rows(), rows, step, steps, packed(panel, 0), sums,
                                                   from_zero);
      }
    }
    engine_.add(product_, x_.rows(), block, rows, step, steps, values, ahead, sums, from_zero, is_complete);
  }

  // A group's partial sums are taken up at once: the first cache has no room for those of two.
  void add_groups(int64_t panel, int64_t block, int64_t step, int64_t steps, const std::byte* values, Ahead ahead,
                  float* sums) {
    const int64_t rows = rows_of(block), count = cut_.group_steps;
    for (int64_t s = 0; s < steps; s += count) {
      const std::byte* of_group = cut_.is_packed ? nullptr : values + s * Engine::kStepBytes;
      add(panel, block, step + s, count, of_group, ahead, partial_, true, true);
      ahead.from += count * ahead.lines * 64;
      const int64_t group = (step + s) / count, at = (panel * product_.groups + group) * kPanelColumns;
      const float* sums_of_x = x_.sums_of(block * Engine::kRows, group);
      GroupSums(product_, at, Engine::kInt4Base, partial_, sums_of_x).add_to(sums, rows, group == 0);
    }
  }

  // What to ask for beside a block's products. The first block reads a chunk from memory, so it asks for what it needs
  // soon; meanwhile others find it in a cache, and ask for the chunk that comes after, or the beginning of it: all of it
  // would be too much, as whoever takes a panel may not go on to the next.
  Ahead ahead_of(int64_t panel, int64_t step, int64_t block) const {
    const int64_t index = block - first_block_ - 1, others = end_block_ - first_block_ - 1;
    if (index < 0) return {packed(panel, step) + Engine::kAhead, cut_.is_direct ? kPanelStepBytes / 64 : 0};
    const bool is_last = panel + 1 == end_panel_, is_end = step + cut_.chunk >= cut_.steps;
    const std::byte* next = !is_last ? packed(panel + 1, step)
                            : is_end ? packed(panel + 1, 0)  // as if this worker went on there
                                     : packed(first_panel_, step + cut_.chunk);
    const int64_t all = kPanelStepBytes / 64 * kPerWord<typename Engine::Element> / kPerWord<Weight>;
    const int64_t lines = least(kMostAhead, ceil_div(all, others));
    return {next + index * lines * cut_.chunk * 64, lines};
  }

  const std::byte* packed(int64_t panel, int64_t step) const {
    const int64_t bytes = step * kPanelStepBytes * kPerWord<typename Engine::Element> / kPerWord<Weight>;
    return product_.weight.data + panel * panel_bytes_ + bytes;
  }
  int64_t rows_of(int64_t block) const { return least(Engine::kRows, product_.rows - block * Engine::kRows); }
  float* sums_of(int64_t panel, int64_t block) const {
    if (cut_.chunk >= cut_.steps) return sums_ + turn_ * cut_.block_floats();
    return sums_ + ((panel - first_panel_) * cut_.blocks_together + block - first_block_) * cut_.block_floats();
  }

  const Product& product_;
  const Plan& cut_;
  const Prepared<Engine>& x_;
  std::byte* widened_;
  float *sums_, *partial_;
  int64_t panel_bytes_, first_block_ = 0, end_block_ = 0, first_panel_ = 0, end_panel_ = 0, turn_ = 0;
  Engine engine_;
};

template <class Engine, class Weight>
void multiply(const Product& product, Worker& worker) {
  if (product.rows == 0 || product.columns == 0) return worker.barrier();
  const Cut<Engine, Weight> cut(product, worker.size());
  const int64_t x_bytes = Prepared<Engine>::bytes(product);
  const bool is_shared = product.rows > kFewRows && x_bytes > 0;
  const int64_t own_bytes = cut.widened_bytes() + cut.floats() * static_cast<int64_t>(sizeof(float));
  std::byte* own = worker.scratch(own_bytes + (is_shared ? 0 : x_bytes));
  const Prepared<Engine> x(product, is_shared ? worker.shared(x_bytes) : own + own_bytes);
  worker.begin();
  if (is_shared) worker.for_each(cut.blocks, [&](int64_t block) { x.prepare(block); });
  else for (int64_t block = 0; block < cut.blocks; ++block) x.prepare(block);
  worker.for_each(cut.row_groups * cut.panel_groups, Item<Engine, Weight>(product, cut, x, own), cut.run);
}

}  // namespace quire::QUIRE_ISA
