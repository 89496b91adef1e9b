"""Calls in a row whose tactics are compiled kernels, as one program that runs without Python between them.

A call that only takes a part of a tensor, or sees it in another shape, is no work: it becomes a view in the program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx

from quire.graph.nodes import is_call, op_of, results, spec, spec_argument
from quire.ops.native.library import DTYPES, library, operand
from quire.ops.op import Kernel
from quire.ops.spec import Dim, TensorSpec

_STAND_IN = 100_003
"""The first size that stands for a symbolic one where strides are found; no real size is as large a prime."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a program.

    Attributes:
        node: The call.
        kernel: What computes it; None for a view.
        packed: By argument name what the tactic packed.
    """

    node: fx.Node
    kernel: Kernel | None
    packed: Mapping[str, Any]


class NativeProgram:
    """Some calls of a network, compiled into a program.

    Args:
        workspace: A `quire._native.Workspace`, shared by programs that never run at once.
        steps: The calls in order.
        inputs: Nodes whose values come with each run; all symbolic sizes occur in their specs.
        outputs: Nodes of `steps`, no views, whose values are wanted; their results follow each other.
        constants: By node the value of each constant that a call takes unpacked. The caller keeps all constants alive.

    Attributes:
        inputs: As given.
        outputs: As given.
    """

    def __init__(
        self,
        workspace: Any,
        steps: Sequence[Step],
        inputs: Sequence[fx.Node],
        outputs: Sequence[fx.Node],
        constants: Mapping[fx.Node, Any],
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._program = library().Program(workspace)
        self._symbols: dict[str, int] = {}
        self._sources: list[tuple[int, int]] = []
        self._constants = constants
        self._registers: dict[fx.Node, tuple[int, ...]] = {}
        self._layouts: dict[int, torch.Tensor] = {}
        self._of_constant: dict[object, int] = {}
        for place, node in enumerate(inputs):
            self._bind_symbols(place, spec(node))
            self._registers[node] = (self._add(self._program.outside, spec(node)),)
        for node in outputs:
            self._registers[node] = tuple(self._add(self._program.outside, result) for result in results(node))
        self._made = [[(self._shape(result.shape), result.dtype) for result in results(node)] for node in outputs]
        for step in steps:
            if step.kernel is None:
                self._registers[step.node] = self._view(step.node)
            else:
                self._call(step.node, step.kernel, step.packed)

    def run(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        """Run the calls; returns what each of `outputs` returns."""
        sizes = [inputs[place].shape[dim] for place, dim in self._sources]
        made = [
            [
                torch.empty([size if symbol < 0 else sizes[symbol] for size, symbol in shape], dtype=dtype)
                for shape, dtype in each
            ]
            for each in self._made
        ]
        given = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in inputs]
        addresses = [tensor.data_ptr() for tensor in given]
        addresses += [tensor.data_ptr() for each in made for tensor in each]
        self._program.run(sizes, addresses, torch.get_num_threads())
        return tuple(each[0] if len(each) == 1 else tuple(each) for each in made)

    def _bind_symbols(self, place: int, declared: TensorSpec) -> None:
        for dim, size in enumerate(declared.shape):
            if isinstance(size, str) and size not in self._symbols:
                self._symbols[size] = len(self._symbols)
                self._sources.append((place, dim))

    def _add(self, add: Any, declared: TensorSpec) -> int:
        """Add a contiguous register; returns its number."""
        register: int = add(DTYPES.index(declared.dtype), self._shape(declared.shape))
        sizes = [self._stand_in(size) for size in declared.shape]
        self._layouts[register] = torch.empty(sizes, dtype=declared.dtype, device="meta")
        return register

    def _shape(self, shape: Sequence[Dim]) -> list[tuple[int, int]]:
        return [(1, self._symbols[size]) if isinstance(size, str) else (size, -1) for size in shape]

    def _stand_in(self, size: Dim) -> int:
        return _STAND_IN + 2 * self._symbols[size] if isinstance(size, str) else size

    def _view(self, node: fx.Node) -> tuple[int, ...]:
        """Return the registers of a view's results: the same memory with the strides that torch finds."""
        if is_call(node, "item"):
            source, index = node.kwargs["results"], node.kwargs["index"]
            assert isinstance(source, fx.Node) and isinstance(index, int)
            return (self._registers[source][index],)
        arguments = dict(node.kwargs)
        source = arguments.pop("x")
        assert isinstance(source, fx.Node)
        register = self._registers[source][0]
        shapes = [[self._stand_in(size) for size in result.shape] for result in results(node)]
        if is_call(node, "view"):
            arguments["shape"] = shapes[0]
            register = self._viewable(register, spec(source), shapes[0])
        layout = self._layouts[register]
        found = op_of(node).reference(layout, **arguments)
        parts = found if isinstance(found, tuple) else (found,)
        return tuple(
            self._add_view(register, layout, part, result) for part, result in zip(parts, results(node), strict=True)
        )

    def _viewable(self, register: int, declared: TensorSpec, shape: Sequence[int]) -> int:
        """Return a register that can be seen in another shape: itself, or a copy of a part whose rows lie apart."""
        try:
            self._layouts[register].view(tuple(shape))
        except RuntimeError:
            copied = self._add(self._program.result, declared)
            self._program.call("copy", [copied, register], [])
            return copied
        return register

    def _add_view(self, register: int, layout: torch.Tensor, part: torch.Tensor, declared: TensorSpec) -> int:
        offset = part.storage_offset() - layout.storage_offset()
        view: int = self._program.view(
            register, offset, DTYPES.index(declared.dtype), self._shape(declared.shape), list(part.stride())
        )
        self._layouts[view] = part
        return view

    def _call(self, node: fx.Node, kernel: Kernel, packed: Mapping[str, Any]) -> None:
        if node not in self._registers:
            self._registers[node] = tuple(self._add(self._program.result, result) for result in results(node))
        taken = [self._operand(name, node, packed) for name in kernel.operands]
        numbers = kernel.numbers(**{name: spec_argument(value) for name, value in node.kwargs.items()})
        self._program.call(kernel.name, [*self._registers[node], *taken], numbers)

    def _operand(self, name: str, node: fx.Node, packed: Mapping[str, Any]) -> int:
        """Return the register of an argument, -1 for one that is None."""
        argument, _, field = name.partition(".")
        value: Any = packed[argument] if argument in packed else node.kwargs.get(argument)
        if isinstance(value, fx.Node):
            if value not in self._constants:
                return self._registers[value][0]
            value = self._constants[value]
        return self._constant(attrgetter(field)(value) if field else value)

    def _constant(self, value: torch.Tensor | None) -> int:
        if value is None:
            return -1
        key = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in self._of_constant:
            self._of_constant[key] = self._program.constant(operand(value))
        return self._of_constant[key]
