#include "kernels/declarations.hpp"
#include "kernels/w8a8.hpp"

namespace quire::QUIRE_ISA {
namespace {

// AMX reads rows where they lie, 64 bytes at a time; of a width that is no multiple of 64, the end from a padded copy.
class TileRows {
 public:
  TileRows(std::byte* scratch, int64_t width)
      : whole_(width / kTileRowBytes), rest_(width % kTileRowBytes), ends_(reinterpret_cast<int8_t*>(scratch)) {}
  TileRows(const TileRows&) = delete;
  ~TileRows() { release_tiles(); }

  static int64_t scratch_bytes(int64_t rows, int64_t width) { return width % kTileRowBytes ? rows * kTileRowBytes : 0; }

  void prepare(const int8_t* x, int64_t stride, int64_t rows) {
    x_ = x;
    stride_ = stride;
    if (rest_ == 0) return;
    std::memset(ends_, 0, rows * kTileRowBytes);
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(ends_ + row * kTileRowBytes, x + row * stride + whole_ * kTileRowBytes, rest_);
    }
  }

  // So many steps of all rows, then the next ones: that part of the panel, 16 KiB, stays in the first cache beside as
  // much of the rows that pass by. A panel that is used once is asked for ahead instead.
  void multiply(int64_t rows, const Int8Panel& panel, int32_t* sums) {
    const bool is_streamed = rows <= kBlockRows;
    const int64_t chunk = is_streamed ? panel.steps : 8;
    for (int64_t step = 0; step < panel.steps; step += chunk) {
      const int64_t stop = step + chunk < panel.steps ? step + chunk : panel.steps;
      for (int64_t row = 0; row < rows; row += kBlockRows) {
        const int64_t some = rows - row < kBlockRows ? rows - row : kBlockRows;
        if (some != configured_) configure_tiles(some);
        configured_ = some;
        const auto add = some > kTileRows ? is_streamed ? &TileRows::add_up<true, true> : &TileRows::add_up<true, false>
                         : is_streamed    ? &TileRows::add_up<false, true>
                                          : &TileRows::add_up<false, false>;
        (this->*add)(row, step, stop, panel.weights, sums + row * kPanelColumns);
      }
    }
  }

 private:
  static constexpr int64_t kSumBytes = kPanelColumns * sizeof(int32_t);

  template <bool is_tall, bool is_streamed>
  void add_up(int64_t first, int64_t step, int64_t stop, const int8_t* weights, int32_t* sums) const {
    if (step == 0) zero_sums<is_tall>();
    else load_sums<is_tall>(sums);
    const int8_t *x = x_ + first * stride_ + step * kTileRowBytes, *w = weights + step * kPanelStepBytes;
    const int64_t whole = stop < whole_ ? stop : whole_;
    for (; step < whole; ++step, x += kTileRowBytes, w += kPanelStepBytes) add<is_tall, is_streamed>(x, stride_, w);
    if (step < stop) add<is_tall, is_streamed>(ends_ + first * kTileRowBytes, kTileRowBytes, w);
    store_tile<C00>(sums, kSumBytes);
    store_tile<C01>(sums + kTileColumns, kSumBytes);
    if constexpr (is_tall) store_tile<C10>(sums + kTileRows * kPanelColumns, kSumBytes);
    if constexpr (is_tall) store_tile<C11>(sums + kTileRows * kPanelColumns + kTileColumns, kSumBytes);
  }

  template <bool is_tall>
  static void zero_sums() {
    zero_tile<C00>();
    zero_tile<C01>();
    if constexpr (is_tall) zero_tile<C10>();
    if constexpr (is_tall) zero_tile<C11>();
  }

  template <bool is_tall>
  static void load_sums(const int32_t* sums) {
    load_tile<C00>(sums, kSumBytes);
    load_tile<C01>(sums + kTileColumns, kSumBytes);
    if constexpr (is_tall) load_tile<C10>(sums + kTileRows * kPanelColumns, kSumBytes);
    if constexpr (is_tall) load_tile<C11>(sums + kTileRows * kPanelColumns + kTileColumns, kSumBytes);
  }

  template <bool is_tall, bool is_streamed>
  static inline __attribute__((always_inline)) void add(const int8_t* x, int64_t stride, const int8_t* w) {
    if constexpr (is_streamed) {
      constexpr int64_t kAhead = 8192;  // bytes
      for (int64_t line = 0; line < kPanelStepBytes; line += 64) _mm_prefetch(w + kAhead + line, _MM_HINT_T0);
    }
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
