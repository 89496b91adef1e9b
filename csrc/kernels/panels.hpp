// How matrix products lay weights out: in panels of 32 output columns, the same for every set of instructions.
//
// A weight [columns, depth] becomes [panels][steps][2 tiles][16 rows][16 columns][4 bytes]. A step is 64 bytes of a
// column: 16 float32, 32 bf16, 64 int8 or 128 int4, and 4 bytes are the 1, 2, 4 or 8 values that follow one another in
// k. What a weight lacks to whole steps and panels is zero. So one transposition of 4-byte words packs every dtype, and
// a tile is what AMX multiplies with.
//
// The eight int4 of a word lie in the order 0, 2, 4, 6, 1, 3, 5, 7: by 16-bit halves, a shift of both brings the next
// pair of neighbours down.
#pragma once

#include <cstdint>

namespace quire::QUIRE_ISA {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileRowBytes = 64;
constexpr int64_t kTileBytes = kTileRows * kTileRowBytes;
constexpr int64_t kTileColumns = 16;
constexpr int64_t kPanelColumns = 2 * kTileColumns;
constexpr int64_t kPanelStepBytes = 2 * kTileBytes;

// `row_bytes`: of one column, unpacked.
constexpr int64_t num_steps(int64_t row_bytes) { return (row_bytes + kTileRowBytes - 1) / kTileRowBytes; }
constexpr int64_t num_panels(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }
constexpr int64_t panel_bytes(int64_t row_bytes) { return num_steps(row_bytes) * kPanelStepBytes; }

}  // namespace quire::QUIRE_ISA
