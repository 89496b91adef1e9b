#include "program.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

namespace quire {

void Record::start() {
  entries_.clear();
  is_on_ = true;
}

std::map<std::string, Record::Entry> Record::stop() {
  is_on_ = false;
  return std::move(entries_);
}

void Record::add(const KernelEntry& kernel, const Tensor* operands, double seconds) {
  std::string name = kernel.name;
  for (int i = 1; i >= 0; --i) {
    if (i < kernel.num_operands && operands[i]) name += " " + std::to_string(operands[i].last());
  }
  Entry& entry = entries_[name];
  ++entry.calls;
  entry.seconds += seconds;
}

Record& record() {
  static Record instance;
  return instance;
}

int Program::add_register(Register r) {
  if (r.shape.size() > kMaxRank) throw std::invalid_argument("register: expected at most 5 sizes");
  outside_.push_back(r.kind == Kind::outside ? num_outside_++ : -1);
  registers_.push_back(std::move(r));
  is_laid_out_ = false;
  return static_cast<int>(registers_.size()) - 1;
}

void Program::add_call(const KernelEntry* kernel, std::vector<int> operands, std::vector<double> numbers) {
  calls_.push_back({kernel, std::move(operands), std::move(numbers)});
  is_laid_out_ = false;
}

int Program::root_of(int index) const {
  while (registers_[index].kind == Kind::view) index = registers_[index].source;
  return index;
}

Tensor Program::tensor_of(const Register& r, const std::vector<int64_t>& sizes) const {
  Tensor tensor;
  tensor.data = r.address;
  tensor.dtype = r.dtype;
  tensor.rank = static_cast<int32_t>(r.shape.size());
  int64_t step = 1;
  for (int i = tensor.rank - 1; i >= 0; --i) {
    tensor.shape[i] = r.shape[i].value(sizes);
    tensor.stride[i] = r.stride.empty() ? step : r.stride[i];
    step *= tensor.shape[i];
  }
  return tensor;
}

int64_t Program::bytes_of(const Register& r, const std::vector<int64_t>& sizes) const {
  int64_t count = size_of(r.dtype);
  for (const Size& size : r.shape) count *= size.value(sizes);
  return count;
}

// First fit: at each call its results take the lowest gap that holds them, then what nobody reads later is free.
std::vector<int64_t> Program::place(const std::vector<int64_t>& sizes, size_t* total) const {
  std::vector<int64_t> offsets(registers_.size(), -1);
  std::vector<size_t> last(registers_.size(), 0);
  for (size_t c = 0; c < calls_.size(); ++c) {
    for (int operand : calls_[c].operands) {
      if (operand >= 0) last[root_of(operand)] = c;
    }
  }
  std::vector<std::pair<int64_t, int>> alive;  // offset and register, by offset
  *total = 0;
  for (size_t c = 0; c < calls_.size(); ++c) {
    for (int operand : calls_[c].operands) {
      const int root = operand < 0 ? -1 : root_of(operand);
      if (root < 0 || registers_[root].kind != Kind::arena || offsets[root] >= 0) continue;
      const int64_t bytes = (bytes_of(registers_[root], sizes) + 63) / 64 * 64;
      int64_t at = 0;
      auto before = alive.begin();
      for (; before != alive.end() && at + bytes > before->first; ++before) {
        at = before->first + (bytes_of(registers_[before->second], sizes) + 63) / 64 * 64;
      }
      alive.insert(before, {at, root});
      offsets[root] = at;
      *total = std::max(*total, static_cast<size_t>(at + bytes));
    }
    std::erase_if(alive, [&](const auto& each) { return last[each.second] == c; });
  }
  return offsets;
}

void Program::lay_out(const std::vector<int64_t>& sizes) {
  const std::vector<int64_t> offsets = place(sizes, &arena_bytes_);
  arena_ = workspace_->arena(arena_bytes_);
  tensors_.clear();
  patches_.clear();
  for (Call& call : calls_) {
    call.first = tensors_.size();
    for (int operand : call.operands) {
      if (operand < 0) {
        tensors_.emplace_back();
        continue;
      }
      Tensor tensor = tensor_of(registers_[operand], sizes);
      int64_t offset = 0;
      int root = operand;
      for (; registers_[root].kind == Kind::view; root = registers_[root].source) {
        offset += registers_[root].offset * size_of(registers_[root].dtype);
      }
      if (registers_[root].kind == Kind::arena) tensor.data = arena_ + offsets[root] + offset;
      if (registers_[root].kind == Kind::constant) tensor.data = registers_[root].address + offset;
      if (registers_[root].kind == Kind::outside) patches_.push_back({tensors_.size(), outside_[root], offset});
      tensors_.push_back(tensor);
    }
  }
  sizes_ = sizes;
  is_laid_out_ = true;
}

void Program::run(const std::vector<int64_t>& sizes, const std::vector<uintptr_t>& addresses, int num_threads) {
  if (addresses.size() != static_cast<size_t>(num_outside_)) throw std::invalid_argument("wrong number of addresses");
  // Another program may have asked for a larger arena since.
  if (!is_laid_out_ || sizes != sizes_ || workspace_->arena(arena_bytes_) != arena_) lay_out(sizes);
  for (const Patch& patch : patches_) {
    tensors_[patch.tensor].data = reinterpret_cast<std::byte*>(addresses[patch.outside]) + patch.offset;
  }
  const bool is_recorded = record().is_on();
  workspace_->team(num_threads).run([&](Worker& worker) {
    for (const Call& call : calls_) {
      const Tensor* operands = tensors_.data() + call.first;
      const auto start = std::chrono::steady_clock::now();
      call.kernel->run(operands, call.numbers.data(), worker);  // returns when all workers have done
      if (!is_recorded || worker.index() != 0) continue;
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      record().add(*call.kernel, operands, took.count());
    }
  });
}

size_t Program::arena_bytes(const std::vector<int64_t>& sizes) {
  size_t total = 0;
  place(sizes, &total);
  return total;
}

}  // namespace quire
