// `Team`: the threads that run a program. They enter one OpenMP region a program, not one a kernel, and meet at a barrier
// of our own between kernels: OpenMP shares its threads with torch, so the two never fight over cores, and a barrier that
// spins briefly costs a tenth of leaving and entering a region (0.3 against 3 us with two threads).
#pragma once

#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace quire {

// Memory that grows and is kept: 64-byte aligned, its old contents lost when it grows.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  std::byte* get(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + 4095) / 4096 * 4096;
      data_ = static_cast<std::byte*>(std::aligned_alloc(4096, size_));
      if (data_ == nullptr) std::abort();  // inside a parallel region nothing can be thrown
    }
    return data_;
  }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

class Worker;

// What a kernel asks for before it begins: bytes of each worker, and of the team.
struct Scratch {
  size_t own = 0, shared = 0;
};

// Ends a kernel that is only asked what it would ask for.
struct Counted {};

class Team {
 public:
  explicit Team(int num_threads) : size_(num_threads < 1 ? 1 : num_threads), scratch_(new Buffer[size_]) {}
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team() { delete[] scratch_; }

  int size() const { return size_; }

  // Calls `body(Worker&)` on every thread. OpenMP may give fewer threads than asked for; the team is then smaller.
  template <class Body>
  void run(Body&& body);

  size_t scratch_bytes() const {
    size_t total = shared_.size();
    for (int i = 0; i < size_; ++i) total += scratch_[i].size();
    return total;
  }

 private:
  friend class Worker;

  int size_;
  int present_ = 1;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  Buffer* scratch_;
  Buffer shared_;
};

// One thread of a team, inside a region. All workers of a team call the same functions in the same order.
class Worker {
 public:
  Worker(Team& team, int index) : team_(team), index_(index) {}
  // Notes what is asked for and gives none of it; throws `Counted` where the work would begin.
  Worker(Team& team, Scratch& counted) : team_(team), index_(0), counted_(&counted) {}

  int index() const { return index_; }
  int size() const { return team_.present_; }

  // Said by a kernel that reads memory before its first `for_each` or `barrier`, once it has asked for its own.
  void begin() const {
    if (counted_ != nullptr) throw Counted();
  }

  // Wait for all. What was written before is visible after.
  void barrier() {
    begin();
    if (team_.present_ == 1) {
      team_.next_.store(0, std::memory_order_relaxed);
      return;
    }
    const uint32_t generation = team_.generation_.load(std::memory_order_acquire);
    if (team_.arrived_.fetch_add(1, std::memory_order_acq_rel) == team_.present_ - 1) {
      team_.arrived_.store(0, std::memory_order_relaxed);
      team_.next_.store(0, std::memory_order_relaxed);
      team_.generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    // About 20 us of spinning, then give the core away: with more threads than cores others must get on.
    for (int spins = 0; team_.generation_.load(std::memory_order_acquire) == generation; ++spins) {
      if (spins < 512) _mm_pause();
      else sched_yield();
    }
  }

  // Call `item(i)` once for each i in [0, count), shared out as workers become free in groups of at most `group`, then
  // wait for all. Who computes an item must not change its bits. Towards the end groups become smaller: of two cores one
  // may be four times as slow as the other.
  template <class Item>
  void for_each(int64_t count, Item&& item, int64_t group = 1) {
    begin();
    int64_t start = team_.next_.load(std::memory_order_relaxed);
    while (start < count) {
      const int64_t share = (count - start) / (2 * size()), most = share < group ? share : group;
      const int64_t stop = start + (most > 1 ? most : 1);
      if (!team_.next_.compare_exchange_weak(start, stop, std::memory_order_relaxed)) continue;
      for (int64_t i = start; i < stop; ++i) item(i);
      start = team_.next_.load(std::memory_order_relaxed);
    }
    barrier();
  }

  // This worker's own memory, at least so many bytes, 64-byte aligned; valid until its next call.
  template <class T = std::byte>
  T* scratch(size_t count) {
    if (counted_ != nullptr) {
      counted_->own = count * sizeof(T);
      return nullptr;
    }
    return reinterpret_cast<T*>(team_.scratch_[index_].get(count * sizeof(T)));
  }

  // Memory that all workers of the team share; a barrier precedes and follows. Valid until the next call.
  template <class T = std::byte>
  T* shared(size_t count) {
    if (counted_ != nullptr) {
      counted_->shared = count * sizeof(T);
      return nullptr;
    }
    barrier();
    if (index_ == 0) team_.shared_.get(count * sizeof(T));
    barrier();
    return reinterpret_cast<T*>(team_.shared_.get(0));
  }

 private:
  Team& team_;
  int index_;
  Scratch* counted_ = nullptr;
};

template <class Body>
void Team::run(Body&& body) {
  if (size_ == 1) {
    present_ = 1;
    Worker worker(*this, 0);
    body(worker);
    return;
  }
#pragma omp parallel num_threads(size_)
  {
#pragma omp single
    present_ = omp_get_num_threads();
    Worker worker(*this, omp_get_thread_num());
    body(worker);
  }
}

}  // namespace quire
