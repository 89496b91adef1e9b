// Attention over a paged cache, but for its two products, which `Products` computes (FloatProducts in attention.cpp,
// TileProducts in amx/attention.cpp).
//
// A query row (a head of a token) meets keys by spans of kSpan positions, at multiples of kSpan whatever is scheduled:
//
//     scores = keys . query               a product over head_dim
//     peak = max(scores), weights = exp(scores - peak), total = sum(weights)
//     sums = weights . values             a product over the span's keys
//
// and spans are joined in order of position, by flash attention's rule (Dao et al. 2022,
// https://arxiv.org/abs/2205.14135): `join`. All of it sums in an order that the key's position alone decides; a key
// that a row does not see weighs exactly 0 and leaves peaks, totals and sums as they are. So a row's bits depend neither
// on rows beside it nor on which keys are computed for its neighbours, nor on who computes a span.
#pragma once

#include "kernels/attention_step.hpp"
#include "kernels/vectors.hpp"

namespace quire::QUIRE_ISA {

// Asks for a line of memory in the first cache, which then reads it beside what is computed.
QUIRE_INLINE void fetch(const std::byte* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

constexpr float kLowest = -1e30f;  // the peak of no keys: finite, so that differences are

// 2**x within 2 units in the last place for x <= 1, exactly 1 for 0; 0 below -150. A polynomial on |r| <= 1/2 whose
// greatest relative error, 9.2e-8, is the least that five coefficients besides 1 allow (found by Lawson's iteration).
QUIRE_INLINE Floats power_of_two(Floats x) {
  if constexpr (kLanes == 8) x = max(broadcast(-150.0f), x);  // `scale_by_power` has no more; AVX-512's has
  const Floats n = round(x), r = x - n;
  Floats p = broadcast(1.3264727262e-3f);
  p = fma(p, r, broadcast(9.6715127104e-3f));
  p = fma(p, r, broadcast(5.5507337437e-2f));
  p = fma(p, r, broadcast(2.4022242084e-1f));
  p = fma(p, r, broadcast(6.9314697760e-1f));
  return scale_by_power(fma(p, r, broadcast(1.0f)), n);
}

// From products of queries and keys to exponents of two.
struct Scoring {
  float factor;      // exponent of two = score * factor
  float cap_factor;  // score = tanh(product * cap_factor), or the product itself where it is 0

  Scoring(const AttentionStep& step, int64_t head) {
    constexpr float kLog2E = 1.44269504088896341f;
    const float scale = step.scale * step.key_scale(head);
    factor = (step.soft_cap > 0 ? step.soft_cap : scale) * kLog2E;
    cap_factor = step.soft_cap > 0 ? scale / step.soft_cap : 0.0f;
  }
};

// Results of some rows for some keys: [rows, width], [rows], [rows].
struct Sums {
  float *sums, *peaks, *totals;

  Sums from(int64_t row, int64_t width) const { return {sums + row * width, peaks + row, totals + row}; }

  void clear(int64_t rows, int64_t width) const {
    std::memset(sums, 0, rows * width * sizeof(float));
    std::memset(totals, 0, rows * sizeof(float));
    for (int64_t i = 0; i < rows; ++i) peaks[i] = kLowest;
  }
};

// into = into joined with `next`, whose keys come later, for at most kRowBlock rows.
QUIRE_INLINE void join(Sums into, Sums next, int64_t rows, int64_t width, float factor) {
  alignas(64) float old_weights[kRowBlock], new_weights[kRowBlock];
  const Floats exponent = broadcast(factor);
  for (int64_t i = 0; i < rows; i += kLanes) {
    const Floats before = load(into.peaks + i), other = load(next.peaks + i), peak = max(before, other);
    const Floats a = power_of_two((before - peak) * exponent), b = power_of_two((other - peak) * exponent);
    store(old_weights + i, a);
    store(new_weights + i, b);
    store(into.peaks + i, peak);
    store(into.totals + i, fma(load(next.totals + i), b, load(into.totals + i) * a));
  }
  for (int64_t row = 0; row < rows; ++row) {
    const Floats a = broadcast(old_weights[row]), b = broadcast(new_weights[row]);
    float* to = into.sums + row * width;
    const float* from = next.sums + row * width;
    for (int64_t i = 0; i < width; i += kLanes) store(to + i, fma(load(from + i), b, load(to + i) * a));
  }
}

// Calls `visit(i, is_edge)` for the vectors that hold keys in [low, high), in order; at an edge not all are of it.
template <class Visit>
QUIRE_INLINE void for_visible(int64_t low, int64_t high, Visit&& visit) {
  int64_t i = low & -kLanes;
  if (i < low && i < high) visit(i, std::true_type{}), i += kLanes;
  for (; i + kLanes <= high; i += kLanes) visit(i, std::false_type{});
  if (i < high) visit(i, std::true_type{});
}

// Turns a row of products with the keys [first, last) of a span, of which it sees [low, high), into weights, which
// replace them from the row's start on; sets the row's peak and total.
template <class Products>
QUIRE_INLINE void weigh(float* scores, int64_t first, int64_t last, int64_t low, int64_t high, Scoring scoring,
                        float* peak, float* total) {
  auto* weights = reinterpret_cast<typename Products::Element*>(scores);
  low = smaller(larger(low, first), last), high = smaller(high, last);
  const auto keep_visible = [&](int64_t i, Floats x, Floats other) {
    x = keep(x, static_cast<int>(smaller(kLanes, high - i)), other);
    return keep(other, static_cast<int>(larger(0, low - i)), x);
  };
  if (scoring.cap_factor != 0) {
    const Floats by = broadcast(scoring.cap_factor);
    for (int64_t i = low & -kLanes; i < high; i += kLanes) store(scores + i, tanh(load(scores + i) * by));
  }
  Floats most = broadcast(kLowest);
  for_visible(low, high, [&](int64_t i, auto is_edge) {
    const Floats x = load(scores + i);
    most = max(most, is_edge ? keep_visible(i, x, broadcast(kLowest)) : x);
  });
  *peak = max(most);
  const Floats factor = broadcast(scoring.factor), shift = broadcast(-(*peak * scoring.factor));
  int64_t i = first;
  for (; i + kLanes <= low; i += kLanes) Products::store_weights(weights + i, zeros());
  Floats sum_of_weights = zeros();
  for_visible(low, high, [&](int64_t at, auto is_edge) {
    Floats x = power_of_two(fma(load(scores + at), factor, shift));
    if (is_edge) x = keep_visible(at, x, zeros());
    sum_of_weights += x;
    Products::store_weights(weights + at, x);
    i = at + kLanes;
  });
  *total = sum(sum_of_weights);
  for (; i < last; i += kLanes) Products::store_weights(weights + i, zeros());
}

// A worker's memory, laid out from an address on; from 0 on it only counts.
template <class Element>
struct AttentionScratch {
  // Floats of a row of scores: rows start in different sets of the cache.
  static constexpr int64_t kStride = kSpan + 16;

  CutMemory cut;
  std::byte* zeros;  // a key or value past the end of its sequence
  Element *queries;  // [tile_rows, width]
  Element* query_tiles;  // of a row block of few rows: [width / kPanel, 2, kPanel / 2, kPanel]
  Element *keys;     // [kSpan / kPanel, width, kPanel]
  Element *values;   // [width / kPanel, kSpan, kPanel]
  float* scores;     // [kRowBlock, kStride]
  Sums tile, block;  // of a tile's rows, so far, and of a row block with one span
  size_t bytes = 0;

  AttentionScratch(const AttentionStep& step, std::byte* memory) {
    const auto take = [&](auto*& pointer, int64_t count) {
      const uintptr_t address = reinterpret_cast<uintptr_t>(memory) + bytes;
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(address);
      bytes += round_up(count * sizeof(*pointer), 64);
    };
    take(cut.tiles, Cut::most_tiles(step));
    take(cut.tokens, Cut::most_tokens(step));
    take(cut.counts, Cut::most_spans(step));
    take(cut.first_blocks, Cut::most_tiles(step));
    take(zeros, step.head_dim * sizeof(float));
    take(queries, step.tile_rows * step.width);
    take(query_tiles, kPanel * step.width);
    take(keys, kSpan * step.width);
    take(values, kSpan * step.width);
    take(scores, kRowBlock * kStride);
    for (auto [sums, rows] : {std::pair(&tile, step.tile_rows), std::pair(&block, kRowBlock)}) {
      take(sums->sums, rows * step.width);
      take(sums->peaks, rows);
      take(sums->totals, rows);
    }
  }
};

// One worker's part of a step.
template <class Products>
class Attention {
  using Element = typename Products::Element;
  using Scratch = AttentionScratch<Element>;

 public:
  static void run(const AttentionStep& step, Worker& worker) {
    std::byte* memory = worker.scratch(Scratch(step, nullptr).bytes);
    worker.begin();
    Attention attention(step, Scratch(step, memory), worker.size());
    const Cut& cut = attention.cut_;
    // A vector of peaks or totals is read from any row on, so past the last.
    if (cut.num_joins) attention.partials_ = worker.shared<float>(cut.partial_floats + kLanes);
    const auto run = [&](int64_t count) { return smaller(kHeadsTogether, larger(1, count / (8 * worker.size()))); };
    worker.for_each(cut.num_items, [&](int64_t item) { attention.attend(item); }, run(cut.num_items));
    if (cut.num_joins) {
      worker.for_each(cut.num_joins, [&](int64_t index) { attention.finish(index); }, run(cut.num_joins));
    }
    Products::end();
  }

 private:
  Attention(const AttentionStep& step, const Scratch& scratch, int num_workers)
      : step_(step), scratch_(scratch), cut_(step, scratch.cut, num_workers) {
    std::memset(scratch_.zeros, 0, step.head_dim * sizeof(float));
    scratch_.block.clear(kRowBlock, step.width);  // rows past the last are computed with, and must be numbers
  }

  void attend(int64_t item) {
    const QueryTile& tile = cut_.tile_of(item, &QueryTile::first_item);
    const int64_t head = (item - tile.first_item) / tile.num_parts, part = (item - tile.first_item) % tile.num_parts;
    const int64_t first = tile.first_span + part * tile.part_spans;
    const int64_t last = smaller(tile.last_span, first + tile.part_spans);
    const int64_t rows = tile.num_tokens * step_.group;
    load_queries(tile, head);
    const int64_t partials = tile.num_partials();
    Sums into = partials > 0 ? partial(tile, head, first) : scratch_.tile;
    into.clear(rows, step_.width);
    for (int64_t span = first; span < last; ++span) {
      if (partials > 1 && span > first) into = partial(tile, head, span), into.clear(rows, step_.width);
      attend_span(tile, head, span * kSpan, into);
    }
    if (partials == 0) store_rows(tile, head);
  }

  // Where a tile leaves what it has of a span, or of all, if it is not split.
  Sums partial(const QueryTile& tile, int64_t head, int64_t span) const {
    const int64_t rows = tile.num_tokens * step_.group, count = tile.num_partials();
    const int64_t index = count > 1 ? span - tile.first_span : 0;
    float* start = partials_ + tile.partials + (head * count + index) * Cut::floats_of_span(step_, tile.num_tokens);
    float* peaks = start + rows * step_.width;
    return {start, peaks, peaks + round_up(rows, kPartialRows)};
  }

  // Joins what a tile left behind, from `row` on, into a tile's sums.
  void join_partials(const QueryTile& tile, int64_t head, int64_t first_row, int64_t rows) {
    const float factor = Scoring(step_, head).factor;
    for (int64_t index = 0; index < tile.num_partials(); ++index) {
      const Sums next = partial(tile, head, tile.first_span + index).from(first_row, step_.width);
      for (int64_t row = 0; row < rows; row += kRowBlock) {
        join(scratch_.tile.from(row, step_.width), next.from(row, step_.width), smaller(kRowBlock, rows - row),
             step_.width, factor);
      }
    }
  }

  // A tile whose first spans were met with others', or that was split.
  void finish(int64_t index) {
    const QueryTile& tile = cut_.tile_of(index, &QueryTile::first_join);
    const int64_t head = index - tile.first_join, rows = tile.num_tokens * step_.group;
    scratch_.tile.clear(rows, step_.width);
    if (tile.beginning >= 0) join_partials(cut_.tiles[tile.beginning], head, tile.beginning_row, rows);
    if (tile.num_parts > 1) {
      join_partials(tile, head, 0, rows);
    } else {
      load_queries(tile, head);
      for (int64_t span = tile.first_span; span < tile.last_span; ++span) {
        attend_span(tile, head, span * kSpan, scratch_.tile);
      }
    }
    store_rows(tile, head);
  }

  static constexpr int64_t kWeightStride = Scratch::kStride * sizeof(float) / sizeof(Element);

  struct Range {
    int64_t first, last;
  };

  // What a tile sees of a span: `keys` are counted from its `start`.
  struct Part {
    const QueryTile& tile;
    int64_t head, start;
    Range keys;
  };

  // Whole panels that hold what the tokens from `a` to `b` of a tile see of the span at `start`, counted from there.
  Range seen(const QueryTile& tile, int64_t a, int64_t b, int64_t start) const {
    const int64_t first = step_.first_seen(tile.position_of(a)) - start, last = tile.position_of(b) + 1 - start;
    return {larger(0, first) & -kPanel, smaller(kSpan, round_up(larger(0, last), kPanel))};
  }

  // All rows with the span at `start`. Several row blocks share packed keys and values; for a single one, each panel is
  // packed when it is its turn, in memory that stays in the first cache.
  void attend_span(const QueryTile& tile, int64_t head, int64_t start, Sums into) {
    const Part part{tile, head, start, seen(tile, 0, tile.num_tokens - 1, start)};
    const int64_t rows = tile.num_tokens * step_.group;
    if (rows > kRowBlock) {
      for (int64_t key = part.keys.first; key < part.keys.last; key += kPanel) {
        pack_keys(part, key, scratch_.keys + key * step_.width);
        pack_values(part, key, {0, step_.width}, scratch_.values + key * kPanel, kSpan * kPanel);
      }
    }
    for (int64_t row = 0; row < rows; row += kRowBlock) {
      attend_block(part, row, smaller(kRowBlock, rows - row), rows > kRowBlock, into.from(row, step_.width));
    }
  }

  // Keys are read in order, then values, then the next span's keys, and at last the next head's: the panel `index` of
  // that order.
  void locate(const Part& part, int64_t index, const std::byte** rows) const {
    const int64_t panels = (part.keys.last - part.keys.first) / kPanel;
    const bool is_value = index >= panels && index < 2 * panels;
    const int64_t key = part.keys.first + (index >= panels ? index - panels : index) * kPanel;
    int64_t head = part.head, position = part.start + key;
    if (const int64_t end = round_up(part.tile.length, kPanel); position >= end && head + 1 < step_.kv_heads) {
      ++head, position += part.tile.first_span * kSpan - end;
    }
    step_.locate(is_value, part.tile.sequence, head, position, part.tile.length, scratch_.zeros, rows);
  }

  void pack_keys(const Part& part, int64_t key, Element* to) const {
    const std::byte *rows[kPanel], *ahead[kPanel];
    const int64_t index = (key - part.keys.first) / kPanel;
    locate(part, index, rows);
    locate(part, index + kPanelsAhead, ahead);
    Products::pack_keys(rows, ahead, step_.head_dim, to);
  }

  // Scores of a tile of few rows with keys that are read where they lie: (keys . queries), transposed, which sums in
  // the order of (queries . keys).
  void score_keys(const Part& part, Range keys, int64_t count) const {
    const std::byte *rows[kPanel], *ahead[kPanel];
    Products::use_queries(scratch_.query_tiles, step_.head_dim);
    for (int64_t key = keys.first; key < keys.last; key += kPanel) {
      const int64_t index = (key - part.keys.first) / kPanel;
      locate(part, index, rows);
      locate(part, index + kPanelsAhead, ahead);
      Products::score_keys(rows, ahead, step_.head_dim, scratch_.query_tiles, scratch_.keys, count,
                           scratch_.scores + key, Scratch::kStride);
    }
  }

  // Of kPanel values the channels in `columns`, panel by panel.
  void pack_values(const Part& part, int64_t key, Range columns, Element* to, int64_t panel_stride) const {
    const std::byte *rows[kPanel], *ahead[kPanel];
    const int64_t index = (key - part.keys.first + part.keys.last - part.keys.first) / kPanel;
    locate(part, index, rows);
    locate(part, index + kPanelsAhead, ahead);
    Products::pack_values(rows, ahead, columns.first, smaller(columns.last, step_.head_dim), to, panel_stride);
  }

  void attend_block(const Part& part, int64_t row, int64_t rows, bool is_packed, Sums into) {
    const QueryTile& tile = part.tile;
    const Range keys = seen(tile, row / step_.group, (row + rows - 1) / step_.group, part.start);
    if (keys.first >= keys.last) return;
    const int64_t width = step_.width;
    float* scores = scratch_.scores;
    const bool in_place = Products::reads_keys(step_, tile.num_tokens * step_.group);
    if (in_place) score_keys(part, keys, rows);
    else Products::use_rows(rows);
    for (int64_t key = keys.first; key < keys.last && !in_place; key += kPanel) {
      if (!is_packed) pack_keys(part, key, scratch_.keys);
      Products::multiply(rows, scratch_.queries + row * width, width, scratch_.keys + (is_packed ? key * width : 0),
                         width, scores + key, Scratch::kStride, false);
    }
    const Scoring scoring(step_, part.head);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t position = tile.position_of((row + i) / step_.group);
      weigh<Products>(scores + i * Scratch::kStride, keys.first, keys.last, step_.first_seen(position) - part.start,
                      position + 1 - part.start, scoring, scratch_.block.peaks + i, scratch_.block.totals + i);
    }
    add_values(part, keys, rows, is_packed);
    join(into, scratch_.block, rows, width, scoring.factor);
  }

  // The sums of a row block from its weights, which lie where its scores were.
  void add_values(const Part& part, Range keys, int64_t rows, bool is_packed) {
    if constexpr (Products::kHeldRows > 0) {
      if (rows <= Products::kHeldRows && !is_packed) return add_values_at_once(part, keys, rows);
    }
    const Element* weights = reinterpret_cast<const Element*>(scratch_.scores);
    const int64_t width = step_.width, depth = is_packed ? keys.last - keys.first : kPanel;
    for (int64_t key = keys.first; key < keys.last; key += depth) {
      if (!is_packed) pack_values(part, key, {0, width}, scratch_.values, kPanel * kPanel);
      for (int64_t column = 0; column < width; column += kPanel) {
        const Element* panel = scratch_.values + (is_packed ? column * kSpan + key * kPanel : column * kPanel);
        Products::multiply(rows, weights + key, kWeightStride, panel, depth, scratch_.block.sums + column, width,
                           key > keys.first);
      }
    }
  }

  // The same of few rows, whose sums of some columns stay in registers from the first key to the last.
  void add_values_at_once(const Part& part, Range keys, int64_t rows) {
    const auto* weights = reinterpret_cast<const Element*>(scratch_.scores);
    for (int64_t column = 0; column < step_.width; column += Products::kHeldColumns) {
      const int64_t columns = smaller(Products::kHeldColumns, step_.width - column);
      Products::hold_sums(rows);
      for (int64_t key = keys.first; key < keys.last; key += kPanel) {
        pack_values(part, key, {column, column + columns}, scratch_.values, kPanel * kPanel);
        Products::add_to_held(weights + key, kWeightStride, scratch_.values, columns);
      }
      Products::store_held(scratch_.block.sums + column, step_.width, columns);
    }
  }

  void load_queries(const QueryTile& tile, int64_t head) {
    by_float(step_.query.dtype, [&](auto type) {
      const auto* query = step_.query.as<decltype(type)>();
      Element* to = scratch_.queries;
      for (int64_t row = 0; row < tile.num_tokens * step_.group; ++row, to += step_.width) {
        const auto* from = query + tile.token_of(row / step_.group) * step_.query.stride[0] +
                           (head * step_.group + row % step_.group) * step_.query.stride[1];
        if constexpr (std::is_same_v<decltype(type), Element>) std::memcpy(to, from, step_.head_dim * sizeof(Element));
        else for_vectors(step_.head_dim, [&](int64_t i, auto n) { store(to + i, load(from + i, n), n); });
        std::memset(to + step_.head_dim, 0, (step_.width - step_.head_dim) * sizeof(Element));
      }
    });
    const int64_t rows = tile.num_tokens * step_.group, width = step_.width;
    if (Products::reads_keys(step_, rows)) Products::pack_queries(scratch_.queries, rows, width, scratch_.query_tiles);
  }

  void store_rows(const QueryTile& tile, int64_t head) {
    const float scale = step_.value_scale(head);
    by_float(step_.out.dtype, [&](auto type) {
      auto* out = step_.out.as<decltype(type)>();
      const float* sums = scratch_.tile.sums;
      for (int64_t row = 0; row < tile.num_tokens * step_.group; ++row, sums += step_.width) {
        const float total = scratch_.tile.totals[row];
        const Floats factor = broadcast(total == 0 ? 0.0f : scale / total);  // 0: it sees no key
        auto* to = out + tile.token_of(row / step_.group) * step_.out.stride[0] +
                   (head * step_.group + row % step_.group) * step_.out.stride[1];
        // Adding 0 leaves only +0 as a zero: which zero the sums hold depends on how they were joined.
        for_vectors(step_.head_dim, [&](int64_t i, auto n) {
          store(to + i, fma(Products::sums_at(sums, i), factor, zeros()), n);
        });
      }
    });
  }

  const AttentionStep& step_;
  const Scratch scratch_;
  const Cut cut_;
  float* partials_ = nullptr;
};

}  // namespace quire::QUIRE_ISA
