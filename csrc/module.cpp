// The Python module `quire._native`: tensors arrive as addresses, so nothing here knows torch.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "isa.hpp"

namespace nb = nanobind;
using namespace quire;

namespace {

// Address, dtype number, shape, strides in elements.
using Operand = std::tuple<uintptr_t, int, std::vector<int64_t>, std::vector<int64_t>>;

Tensor tensor_of(const std::optional<Operand>& operand) {
  Tensor tensor;
  if (!operand) return tensor;
  const auto& [address, dtype, shape, stride] = *operand;
  if (shape.size() > kMaxRank || shape.size() != stride.size()) {
    throw std::invalid_argument("operand: expected at most 5 sizes and as many strides");
  }
  tensor.data = reinterpret_cast<std::byte*>(address);
  tensor.dtype = static_cast<DType>(dtype);
  tensor.rank = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), tensor.shape);
  std::copy(stride.begin(), stride.end(), tensor.stride);
  return tensor;
}

const KernelEntry& entry_of(const std::string& name, const std::string& isa, size_t operands, size_t numbers) {
  const KernelEntry* entry = find_kernel(name, isa);
  if (entry == nullptr) throw std::invalid_argument("kernel: expected a known name, got " + name + " " + isa);
  if (operands != static_cast<size_t>(entry->num_operands) || numbers != static_cast<size_t>(entry->num_numbers)) {
    throw std::invalid_argument("kernel " + name + ": wrong number of operands or numbers");
  }
  return *entry;
}

void call(const std::string& name, const std::vector<std::optional<Operand>>& operands,
          const std::vector<double>& numbers, int num_threads, const std::string& isa) {
  const KernelEntry& entry = entry_of(name, isa, operands.size(), numbers.size());
  std::vector<Tensor> tensors;
  for (const auto& operand : operands) tensors.push_back(tensor_of(operand));
  nb::gil_scoped_release released;
  Team team(num_threads);
  team.run([&](Worker& worker) { entry.run(tensors.data(), numbers.data(), worker); });
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : tables()) names.push_back(table->isa);
  return names;
}

std::vector<std::string> kernel_names(const std::string& isa) {
  std::vector<std::string> names;
  for (const KernelTable* table : tables()) {
    if (isa != table->isa) continue;
    for (int i = 0; i < table->size; ++i) names.push_back(table->entries[i].name);
  }
  return names;
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("isas", &isas, "Sets of instructions that this processor has kernels for, best first.");
  m.def("kernel_names", &kernel_names, nb::arg("isa"), "Kernels of one set of instructions.");
  m.def("call", &call, nb::arg("name"), nb::arg("operands").none(), nb::arg("numbers"), nb::arg("num_threads"),
        nb::arg("isa") = "", "Run one kernel.");
}
