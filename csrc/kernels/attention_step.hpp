// A step of paged attention: where its keys and values lie, and how it is cut into items of work.
#pragma once

#include "kernels.hpp"

namespace quire::QUIRE_ISA {

constexpr int64_t kSpan = 256;  // keys of a softmax of its own, at multiples of it: scores of a row block fit in L1
constexpr int64_t kPanel = 32;  // columns of a product, and keys that are packed together, at multiples of it
constexpr int64_t kPanelsAhead = 2;  // asked of memory while one is computed with
constexpr int64_t kRowBlock = 32;  // rows of a product
constexpr int64_t kSharedRows = 128;  // query rows that share a packed span
constexpr int64_t kSharingTokens = 8;  // of a sequence, at most: one that decodes, with some guesses
constexpr int64_t kPartialRows = 16;  // peaks and totals of partial results start at multiples of it
constexpr int64_t kPartialFloats = 1 << 22;  // at most so many floats of partial results, 16 MiB
constexpr int64_t kHeadsTogether = 4;  // of a tile that a worker takes one after the other, if there is enough to do

inline int64_t round_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t int_at(const Tensor& tensor, int64_t index) {
  return tensor.dtype == DType::i64 ? tensor.as<int64_t>()[index] : tensor.as<int32_t>()[index];
}

// Operands and numbers of `attention` by name.
struct AttentionStep {
  AttentionStep(const Tensor* operands, const double* numbers)
      : out(operands[0]), query(operands[1]), cache(operands[2]), table(operands[3]), lens(operands[4]),
        starts(operands[5]), scales(operands[6]), scale(static_cast<float>(numbers[0])),
        window(static_cast<int64_t>(numbers[1])), soft_cap(static_cast<float>(numbers[2])) {}

  const Tensor &out, &query, &cache, &table, &lens, &starts, &scales;
  const float scale;
  const int64_t window;  // 0: all
  const float soft_cap;  // 0: none
  const int64_t num_seqs = lens.shape[0];
  const int64_t kv_heads = cache.shape[2], block_size = cache.shape[3], head_dim = cache.shape[4];
  const int64_t group = query.shape[1] / kv_heads;
  const int64_t width = round_up(head_dim, kPanel);
  const int64_t tile_tokens = larger(1, kSharedRows / group);
  const int64_t tile_rows = round_up(tile_tokens * group, kRowBlock);  // of memory; a tile may have fewer

  float key_scale(int64_t head) const { return scales ? scales.as<float>()[head] : 1.0f; }
  float value_scale(int64_t head) const { return scales ? scales.as<float>()[kv_heads + head] : 1.0f; }

  // What a query at `position` sees first.
  int64_t first_seen(int64_t position) const { return window > 0 ? larger(0, position - window + 1) : 0; }

  // Addresses of the keys (`which` = 0) or values (1) at kPanel positions; those at `length` and after are `zeros`.
  void locate(int64_t which, int64_t sequence, int64_t head, int64_t position, int64_t length, const std::byte* zeros,
              const std::byte** rows) const {
    const int64_t bytes = size_of(cache.dtype);
    int64_t block = position / block_size, offset = position % block_size;
    const int64_t present = smaller(kPanel, length - position);
    int64_t i = 0;
    for (; i < present; ++block, offset = 0) {
      const int64_t id = int_at(table, sequence * table.stride[0] + block);
      const std::byte* row = cache.data + (which * cache.stride[0] + id * cache.stride[1] + head * cache.stride[2] +
                                           offset * cache.stride[3]) * bytes;
      for (const int64_t stop = smaller(present, i + block_size - offset); i < stop; ++i) {
        rows[i] = row;
        row += cache.stride[3] * bytes;
      }
    }
    for (; i < kPanel; ++i) rows[i] = zeros;
  }
};

// Queries that are attended together, for every KV head: tokens of a sequence, or of several that begin alike.
struct QueryTile {
  int64_t sequence, token, num_tokens;  // `token`: its first row of `query`
  const int32_t* tokens;                // of several sequences: their rows of `query`
  int64_t position, length;             // of its first token; tokens of the sequence
  int64_t first_span, last_span;        // what it meets lies in [first_span, last_span)
  int64_t beginning, beginning_row;     // who met the spans before for it, and from which row on; or -1
  int64_t num_parts, part_spans;        // parts of so many spans are items of their own
  int64_t first_item, first_join;
  int64_t partials;  // where its partial results start: [kv_heads, num_partials()]

  bool is_shared() const { return tokens != nullptr; }
  int64_t token_of(int64_t index) const { return is_shared() ? tokens[index] : token + index; }
  // Those that share spans see all of them, as from their last position.
  int64_t position_of(int64_t index) const { return is_shared() ? position : position + index; }
  int64_t num_partials() const { return num_parts > 1 ? last_span - first_span : is_shared() ? 1 : 0; }
};

// What a cut is written to.
struct CutMemory {
  QueryTile* tiles;
  int32_t *tokens, *counts;  // of shared tiles; of those that have so many spans in common
  int32_t* first_blocks;     // of tiles that may share them, else -1
};

// All items of a step. Every worker cuts it for itself, alike. How it is cut changes no bit: what a part leaves behind
// is the result of each of its spans, and those are joined one after the other as they would be in one part.
//
// Sequences whose block tables begin alike meet those spans together, in a tile of their own that leaves results behind;
// each goes on from there. So what a hundred requests share is read once, and fills tiles of products.
struct Cut : CutMemory {
  int64_t num_tiles = 0, num_items = 0, num_joins = 0, partial_floats = 0;
  int64_t reserved_floats = 0;  // what shared tiles leave behind at least

  static int64_t most_tiles(const AttentionStep& step) {
    return step.num_seqs + step.num_seqs / 2 + step.query.shape[0] / step.tile_tokens + 1;
  }
  static int64_t most_tokens(const AttentionStep& step) { return step.query.shape[0]; }
  static int64_t most_spans(const AttentionStep& step) { return step.table.shape[1] * step.block_size / kSpan + 1; }

  // Floats of a partial result for a KV head: sums, peaks and totals.
  static int64_t floats_of_span(const AttentionStep& step, int64_t num_tokens) {
    const int64_t rows = num_tokens * step.group;
    return rows * step.width + 2 * round_up(rows, kPartialRows);
  }
  static int64_t floats_of_heads(const AttentionStep& step, int64_t num_tokens) {
    return floats_of_span(step, num_tokens) * step.kv_heads;
  }

  // What a tile costs a KV head: reading a span weighs as much as 64 rows.
  static int64_t cost(const AttentionStep& step, const QueryTile& tile) {
    return (tile.last_span - tile.first_span) * (64 + tile.num_tokens * step.group);
  }

  Cut(const AttentionStep& step, const CutMemory& memory, int num_workers) : CutMemory(memory) {
    for (int64_t i = 0; i < step.num_seqs; ++i) add_sequence(step, i);
    share_beginnings(step);
    int64_t total = 0;
    for (int64_t i = 0; i < num_tiles; ++i) total += cost(step, tiles[i]) * step.kv_heads;
    // An eighth of a worker's share is little enough to wait for at the end.
    const int64_t most = num_workers == 1 ? total : total / (8 * num_workers) + 1;
    for (int64_t i = 0; i < num_tiles; ++i) split(step, tiles[i], most);
  }

  // Its last tile comes first, as it sees the most.
  void add_sequence(const AttentionStep& step, int64_t sequence) {
    const int64_t start = int_at(step.starts, sequence), stop = int_at(step.starts, sequence + 1);
    const int64_t length = int_at(step.lens, sequence);
    const int64_t count = (stop - start + step.tile_tokens - 1) / step.tile_tokens;
    for (int64_t i = count - 1; i >= 0; --i) {
      const int64_t first = start + i * step.tile_tokens;
      QueryTile& tile = tiles[num_tiles++];
      tile = {};
      tile.sequence = sequence, tile.token = first, tile.num_tokens = smaller(step.tile_tokens, stop - first);
      tile.position = length - stop + first, tile.length = length;
      tile.last_span = larger(0, tile.position + tile.num_tokens + kSpan - 1) / kSpan;
      tile.first_span = smaller(step.first_seen(larger(0, tile.position)) / kSpan, tile.last_span);
      tile.beginning = -1;
    }
  }

  // Spans that all of a tile's tokens see whole, from the first on; 0 for one that has many rows already.
  static int64_t spans_to_share(const AttentionStep& step, const QueryTile& tile) {
    const bool sees_all = step.first_seen(tile.position + tile.num_tokens - 1) == 0;
    const bool has_few = tile.num_tokens <= kSharingTokens && tile.num_tokens * step.group <= kRowBlock;
    return sees_all && has_few ? larger(0, tile.position + 1) / kSpan : 0;
  }

  // Spans that lie in the same blocks for two sequences, at most `most`, from the first on.
  static int64_t spans_in_common(const AttentionStep& step, const QueryTile& a, const QueryTile& b, int64_t most) {
    const int64_t blocks = (most * kSpan + step.block_size - 1) / step.block_size, stride = step.table.stride[0];
    int64_t i = 0;
    while (i < blocks && int_at(step.table, a.sequence * stride + i) == int_at(step.table, b.sequence * stride + i)) ++i;
    return smaller(most, i * step.block_size / kSpan);
  }

  void share_beginnings(const AttentionStep& step) {
    const int64_t count = num_tiles;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = tiles[i].sequence * step.table.stride[0];
      first_blocks[i] = spans_to_share(step, tiles[i]) > 0 ? static_cast<int32_t>(int_at(step.table, row)) : -1;
    }
    for (int64_t i = 0; i < count; ++i) {
      if (first_blocks[i] < 0) continue;
      const int64_t spans = spans_worth_sharing(step, i, count);
      if (spans > 0 && !share(step, i, count, spans)) return;
    }
  }

  // How many of a tile's first spans it shares with later ones so that most are saved.
  int64_t spans_worth_sharing(const AttentionStep& step, int64_t index, int64_t count) const {
    const int64_t own = spans_to_share(step, tiles[index]);
    std::memset(counts, 0, (own + 1) * sizeof(*counts));
    for (int64_t i = index + 1; i < count; ++i) {
      if (first_blocks[i] != first_blocks[index]) continue;
      const int64_t most = smaller(own, spans_to_share(step, tiles[i]));
      ++counts[spans_in_common(step, tiles[index], tiles[i], most)];
    }
    int64_t best = 0, saved = 0, others = 0;
    for (int64_t spans = own; spans > 0; --spans) {
      others += counts[spans];
      if (others * spans > saved) best = spans, saved = others * spans;
    }
    return best;
  }

  // Makes tiles of the first `spans` of tile `index` and of all after it that have them too; false: no room is left.
  bool share(const AttentionStep& step, int64_t index, int64_t count, int64_t spans) {
    const int64_t most_floats = floats_of_heads(step, step.tile_tokens);
    const int32_t first_block = first_blocks[index];
    const QueryTile first = tiles[index];
    QueryTile* shared = nullptr;
    for (int64_t i = index; i < count; ++i) {
      QueryTile& tile = tiles[i];
      if (first_blocks[i] != first_block || spans_to_share(step, tile) < spans) continue;
      if (spans_in_common(step, first, tile, spans) < spans) continue;
      if (shared == nullptr || shared->num_tokens + tile.num_tokens > step.tile_tokens) {
        if (reserved_floats + most_floats > kPartialFloats) return false;
        shared = &tiles[num_tiles++];
        *shared = {};
        shared->sequence = first.sequence, shared->tokens = tokens, shared->beginning = -1;
        shared->last_span = spans, shared->length = spans * kSpan, shared->position = spans * kSpan - 1;
      }
      first_blocks[i] = -1;
      tile.first_span = spans;
      tile.beginning = shared - tiles, tile.beginning_row = shared->num_tokens * step.group;
      for (int64_t j = 0; j < tile.num_tokens; ++j) *tokens++ = static_cast<int32_t>(tile.token + j);
      reserved_floats -= floats_of_heads(step, shared->num_tokens);
      shared->num_tokens += tile.num_tokens;
      reserved_floats += floats_of_heads(step, shared->num_tokens);
    }
    return true;
  }

  void split(const AttentionStep& step, QueryTile& tile, int64_t most) {
    const int64_t spans = tile.last_span - tile.first_span;
    const int64_t floats = floats_of_heads(step, tile.num_tokens);
    if (tile.is_shared()) reserved_floats -= floats;
    int64_t parts = smaller(spans, (cost(step, tile) + most - 1) / larger(1, most));
    if (parts < 1 || partial_floats + reserved_floats + spans * floats > kPartialFloats) parts = 1;
    tile.part_spans = larger(1, (spans + parts - 1) / parts);
    tile.num_parts = larger(1, (spans + tile.part_spans - 1) / tile.part_spans);
    const bool is_split = tile.num_parts > 1, goes_on = tile.beginning >= 0;
    tile.first_item = num_items;
    if (is_split || !goes_on) num_items += step.kv_heads * tile.num_parts;
    tile.first_join = num_joins;
    if (!tile.is_shared() && (is_split || goes_on)) num_joins += step.kv_heads;
    tile.partials = partial_floats;
    partial_floats += tile.num_partials() * floats;
  }

  // The tile of an item (`which` = &QueryTile::first_item) or of a join.
  const QueryTile& tile_of(int64_t index, int64_t QueryTile::*which) const {
    int64_t low = 0, high = num_tiles;  // the last that starts at or before `index`
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (tiles[middle].*which <= index ? low : high) = middle;
    }
    return tiles[low];
  }
};

}  // namespace quire::QUIRE_ISA
