#include "kernels/declarations.hpp"
#include "kernels/w8a8.hpp"

namespace quire::QUIRE_ISA {
namespace {

// AMX reads rows where they lie, 64 bytes at a time; of a width that is no multiple of 64, the end from a padded copy.
class TileRows {
 public:
  static constexpr int64_t kRows = kBlockRows;

  TileRows(Worker& worker, int64_t rows, int64_t width)
      : whole_(width / kTileRowBytes), rest_(width % kTileRowBytes), ends_(worker.scratch<int8_t>(rows * kTileRowBytes)) {}
  TileRows(const TileRows&) = delete;
  ~TileRows() { release_tiles(); }

  void prepare(const int8_t* x, int64_t stride, int64_t rows) {
    x_ = x;
    stride_ = stride;
    if (rest_ == 0) return;
    std::memset(ends_, 0, rows * kTileRowBytes);
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(ends_ + row * kTileRowBytes, x + row * stride + whole_ * kTileRowBytes, rest_);
    }
  }

  void multiply(int64_t first, int64_t rows, const Int8Panel& panel, int32_t* sums) {
    if (rows != configured_) configure_tiles(rows);
    configured_ = rows;
    if (rows > kTileRows) add_up<true>(first, panel, sums);
    else add_up<false>(first, panel, sums);
  }

 private:
  template <bool is_tall>
  void add_up(int64_t first, const Int8Panel& panel, int32_t* sums) const {
    constexpr int64_t kSumBytes = kPanelColumns * sizeof(int32_t);
    zero_tile<C00>();
    zero_tile<C01>();
    if constexpr (is_tall) zero_tile<C10>();
    if constexpr (is_tall) zero_tile<C11>();
    const int8_t *x = x_ + first * stride_, *w = panel.weights;
    for (int64_t step = 0; step < whole_; ++step, x += kTileRowBytes, w += kPanelStepBytes) add<is_tall>(x, stride_, w);
    if (rest_ != 0) add<is_tall>(ends_ + first * kTileRowBytes, kTileRowBytes, w);
    store_tile<C00>(sums, kSumBytes);
    store_tile<C01>(sums + kTileColumns, kSumBytes);
    if constexpr (is_tall) store_tile<C10>(sums + kTileRows * kPanelColumns, kSumBytes);
    if constexpr (is_tall) store_tile<C11>(sums + kTileRows * kPanelColumns + kTileColumns, kSumBytes);
  }

  template <bool is_tall>
  static inline __attribute__((always_inline)) void add(const int8_t* x, int64_t stride, const int8_t* w) {
    load_tile<B0>(w);
    load_tile<A0>(x, stride);
    multiply_i8<C00, A0, B0>();
    load_tile<B1>(w + kTileBytes);
    multiply_i8<C01, A0, B1>();
    if constexpr (is_tall) {
      load_tile<A1>(x + kTileRows * stride, stride);
      multiply_i8<C10, A1, B0>();
      multiply_i8<C11, A1, B1>();
    }
  }

  int64_t whole_, rest_, stride_ = 0, configured_ = 0;
  const int8_t* x_ = nullptr;
  int8_t* ends_;
};

}  // namespace

void linear_w8a8_tiles(const Tensor* operands, Worker& worker) { multiply_int8<TileRows>(operands, worker); }

}  // namespace quire::QUIRE_ISA
