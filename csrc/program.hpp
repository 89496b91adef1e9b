// `Program`: kernels one after the other over registers, with all tensors between them in one piece of memory.
//
// Sizes may be symbolic ("num_tokens" is symbol 0, say); what they are is said at each run. Registers are
//   outside   memory of the caller, whose address comes with each run: inputs and outputs;
//   constant  memory of the caller that stays: weights;
//   arena     results that live from the instruction that writes them to the last that reads them;
//   view      a part of another register in another shape.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels.hpp"

namespace quire {

// `factor * sizes[symbol]`, or `factor` alone where symbol is negative.
struct Size {
  int64_t factor = 1;
  int symbol = -1;

  int64_t value(const std::vector<int64_t>& sizes) const { return symbol < 0 ? factor : factor * sizes[symbol]; }
};

// Seconds that kernels took in programs, by kernel and the width of its first two operands; for one who measures.
class Record {
 public:
  struct Entry {
    int64_t calls = 0;
    double seconds = 0;
  };

  // From now on programs add to it, from nothing.
  void start();
  // What was added; from now on nothing is.
  std::map<std::string, Entry> stop();

  bool is_on() const { return is_on_; }
  void add(const KernelEntry& kernel, const Tensor* operands, double seconds);

 private:
  bool is_on_ = false;
  std::map<std::string, Entry> entries_;
};

// The one of this process.
Record& record();

// What programs that never run at once share: the memory of their arenas, and their threads with what these work in.
class Workspace {
 public:
  // Memory of at least so many bytes; it stays where it is until more is asked for.
  std::byte* arena(size_t bytes) { return arena_.get(bytes < 64 ? 64 : bytes); }

  Team& team(int num_threads) {
    if (!team_ || team_->size() != num_threads) team_ = std::make_unique<Team>(num_threads);
    return *team_;
  }

  // Bytes held now.
  size_t num_bytes() const { return arena_.size() + (team_ ? team_->scratch_bytes() : 0); }

 private:
  Buffer arena_;
  std::unique_ptr<Team> team_;
};

class Program {
 public:
  explicit Program(std::shared_ptr<Workspace> workspace) : workspace_(std::move(workspace)) {}

  enum class Kind { outside, constant, arena, view };

  struct Register {
    Kind kind;
    DType dtype;
    std::vector<Size> shape;
    std::vector<int64_t> stride;  // in elements; empty: contiguous
    std::byte* address = nullptr;  // of a constant
    int source = -1;               // of a view
    int64_t offset = 0;            // of a view, in elements of its dtype
  };

  // Returns the number of the new register.
  int add_register(Register r);
  // Operands are register numbers, -1 for an absent one. The first `num_results` are written.
  void add_call(const KernelEntry* kernel, std::vector<int> operands, std::vector<double> numbers);

  // Run all calls. `addresses`: of the outside registers in the order in which they were added.
  void run(const std::vector<int64_t>& sizes, const std::vector<uintptr_t>& addresses, int num_threads);

  // Bytes of the arena for these sizes.
  size_t arena_bytes(const std::vector<int64_t>& sizes);

 private:
  struct Call {
    const KernelEntry* kernel;
    std::vector<int> operands;
    std::vector<double> numbers;
    size_t first = 0;  // of its tensors in tensors_
  };
  struct Patch {
    size_t tensor;   // in tensors_
    int outside;     // which address
    int64_t offset;  // bytes
  };

  int root_of(int index) const;
  void lay_out(const std::vector<int64_t>& sizes);
  std::vector<int64_t> place(const std::vector<int64_t>& sizes, size_t* total) const;
  Tensor tensor_of(const Register& r, const std::vector<int64_t>& sizes) const;
  int64_t bytes_of(const Register& r, const std::vector<int64_t>& sizes) const;

  std::vector<Register> registers_;
  std::vector<int> outside_;  // per register which outside one it is, or -1
  int num_outside_ = 0;
  std::vector<Call> calls_;
  std::vector<Tensor> tensors_;  // operands of all calls
  std::vector<Patch> patches_;
  std::vector<int64_t> sizes_;
  bool is_laid_out_ = false;
  std::shared_ptr<Workspace> workspace_;
  size_t arena_bytes_ = 0;
  std::byte* arena_ = nullptr;
};

}  // namespace quire
