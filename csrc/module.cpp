// The Python module `quire._native`: tensors arrive as addresses, so nothing here knows torch.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "isa.hpp"
#include "program.hpp"

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

// What a kernel works in for operands of these shapes, whose contents it does not read before it begins.
std::pair<size_t, size_t> scratch_bytes(const std::string& name, const std::vector<std::optional<Operand>>& operands,
                                        const std::vector<double>& numbers) {
  const KernelEntry& entry = entry_of(name, "", operands.size(), numbers.size());
  std::vector<Tensor> tensors;
  for (const auto& operand : operands) tensors.push_back(tensor_of(operand));
  Team team(1);
  Scratch counted;
  Worker worker(team, counted);
  try {
    entry.run(tensors.data(), numbers.data(), worker);
  } catch (const Counted&) {
  }
  return {counted.own, counted.shared};
}

std::map<std::string, std::pair<int64_t, double>> stop_recording() {
  std::map<std::string, std::pair<int64_t, double>> found;
  for (const auto& [name, entry] : record().stop()) found[name] = {entry.calls, entry.seconds};
  return found;
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

// Sizes arrive as pairs: factor and symbol, the symbol negative where the factor is the size.
using Shape = std::vector<std::pair<int64_t, int>>;

Program::Register register_of(Program::Kind kind, int dtype, const Shape& shape) {
  Program::Register r{kind, static_cast<DType>(dtype), {}, {}};
  for (const auto& [factor, symbol] : shape) r.shape.push_back({factor, symbol});
  return r;
}

int add_view(Program& program, int source, int64_t offset, int dtype, const Shape& shape,
             const std::vector<int64_t>& stride) {
  Program::Register r = register_of(Program::Kind::view, dtype, shape);
  r.source = source;
  r.offset = offset;
  r.stride = stride;
  return program.add_register(std::move(r));
}

int add_constant(Program& program, const Operand& operand) {
  const auto& [address, dtype, shape, stride] = operand;
  Program::Register r{Program::Kind::constant, static_cast<DType>(dtype), {}, stride};
  for (int64_t size : shape) r.shape.push_back({size, -1});
  r.address = reinterpret_cast<std::byte*>(address);
  return program.add_register(std::move(r));
}

void add_call(Program& program, const std::string& name, const std::vector<int>& operands,
              const std::vector<double>& numbers) {
  program.add_call(&entry_of(name, "", operands.size(), numbers.size()), operands, numbers);
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("isas", &isas, "Sets of instructions that this processor has kernels for, best first.");
  m.def("kernel_names", &kernel_names, nb::arg("isa"), "Kernels of one set of instructions.");
  m.def("call", &call, nb::arg("name"), nb::arg("operands").none(), nb::arg("numbers"), nb::arg("num_threads"),
        nb::arg("isa") = "", "Run one kernel.");
  m.def("scratch_bytes", &scratch_bytes, "What a kernel works in: bytes of each thread, and of all together.");
  m.def("start_recording", [] { record().start(); }, "Measure every kernel that programs run from now on.");
  m.def("stop_recording", &stop_recording, "Calls and seconds by kernel and width; no more is measured.");
  nb::class_<Workspace>(m, "Workspace", "What programs that never run at once share.")
      .def(nb::init<>())
      .def("num_bytes", &Workspace::num_bytes);
  nb::class_<Program>(m, "Program", "Kernels one after the other; see csrc/program.hpp.")
      .def(nb::init<std::shared_ptr<Workspace>>())
      .def("outside", [](Program& p, int dtype, const Shape& shape) {
        return p.add_register(register_of(Program::Kind::outside, dtype, shape));
      })
      .def("result", [](Program& p, int dtype, const Shape& shape) {
        return p.add_register(register_of(Program::Kind::arena, dtype, shape));
      })
      .def("constant", &add_constant)
      .def("view", &add_view)
      .def("call", &add_call)
      .def("run", &Program::run, nb::call_guard<nb::gil_scoped_release>())
      .def("arena_bytes", &Program::arena_bytes);
}
