"""The executor: a Plan's graph bound to tactics, weights packed, as a flat list of calls. No dispatch when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import fx

from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of
from quire.ops.op import Tactic
from quire.plan.device import torch_device
from quire.plan.folding import Constants, constant_nodes
from quire.plan.read_ahead import ReadAhead
from quire.plan.tactics import choose, prepared_key
from quire.plan.weight_source import WeightSource


@dataclass(frozen=True, slots=True)
class _Call:
    """One instruction: `registers[result] = run(*arguments)`, then forget what is dead."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]  # register numbers, or tuples of them for a list of tensors
    is_flat: bool
    prepared: int | None
    result: int
    dead: tuple[int, ...]


class Executor:
    """Runs a network on one device.

    Args:
        network: What to compute.
        weights: Its weights; each is read once, packed, and the original dropped before the next where possible.
        device: Kind of device.
        on_progress: Called with the number of weights done so far.
        chosen: Names of measured tactics, by what `plan.tactics.describe` says of a call.

    Raises:
        PlanError: A weight is missing or damaged.
    """

    def __init__(
        self,
        network: Network,
        weights: WeightSource,
        device: str = "cpu",
        on_progress: Callable[[int], None] | None = None,
        chosen: Mapping[str, str] | None = None,
    ) -> None:
        with ReadAhead(weights, _reading_order(network), _joined(network)) as ahead:
            binder = _Binder(network, ahead, device, on_progress, chosen or {})
        self._calls = binder.calls
        self._constants = binder.registers
        self._inputs = binder.inputs
        self._outputs = {name: binder.register(node) for name, node in network.outputs.items()}

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run one step; inputs that the network mutates are written to."""
        registers = self._constants.copy()
        for name, register in self._inputs.items():
            registers[register] = inputs[name]
        for call in self._calls:
            if call.is_flat:
                arguments = [registers[i] for i in call.arguments]
            else:
                arguments = [_load(i, registers) for i in call.arguments]
            if call.prepared is None:
                registers[call.result] = call.run(*arguments)
            else:
                registers[call.result] = call.run(*arguments, prepared=registers[call.prepared])
            for register in call.dead:
                registers[register] = None
        return {name: registers[register] for name, register in self._outputs.items()}

    def num_bytes(self) -> int:
        """Return the bytes of all constants as they are held, packed layouts included."""
        held = {id(tensor): tensor for constant in self._constants for tensor in _tensors(constant)}
        return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def _reading_order(network: Network) -> list[str]:
    """Return the weights in the order in which binding the calls reads them."""
    constants, found = constant_nodes(network), dict[str, None]()

    def visit(node: fx.Node) -> None:
        if node.op == "get_attr":
            found[str(node.target)] = None
        elif node in constants:
            for used in node.all_input_nodes:
                visit(used)

    for node in network.calls():
        if node not in constants:
            for used in node.all_input_nodes:
                visit(used)
    return list(found)


def _joined(network: Network) -> list[list[str]]:
    """Return the weights that are used for nothing but being joined along their first dimension, group by group."""
    found = []
    for node in network.calls():
        parts = node.all_input_nodes
        is_group = is_call(node, "concat") and node.kwargs["dim"] == 0
        if is_group and all(part.op == "get_attr" and len(part.users) == 1 for part in parts):
            found.append([str(part.target) for part in parts])
    return found


def _load(index: Any, registers: list[Any]) -> Any:
    return [registers[i] for i in index] if isinstance(index, tuple) else registers[index]


def _tensors(constant: Any) -> Iterable[torch.Tensor]:
    """Return the tensors that a constant consists of: itself, or the fields of what a tactic packed."""
    if isinstance(constant, torch.Tensor):
        return [constant]
    if isinstance(constant, tuple):
        return [tensor for item in constant for tensor in _tensors(item)]
    if not is_dataclass(constant):
        return []
    return [tensor for each in fields(constant) for tensor in _tensors(getattr(constant, each.name))]


class _Binder:
    """Builds the list of calls: folds constants, packs weights, shares what is prepared per step."""

    def __init__(
        self,
        network: Network,
        weights: WeightSource,
        device: str,
        on_progress: Callable[[int], None] | None,
        chosen: Mapping[str, str],
    ) -> None:
        self.registers: list[Any] = []
        self.calls: list[_Call] = []
        self._constants = Constants(network, weights, self._count_read, torch_device(device))
        self._device = device
        self._chosen = chosen
        self._on_progress = on_progress or (lambda done: None)
        self._num_read = 0
        self._of_node: dict[fx.Node, int] = {}
        self._of_constant: dict[Any, int] = {}
        self._prepared: dict[Any, int] = {}
        self._constant_nodes = constant_nodes(network)
        self.inputs = {str(n.target): self.register(n) for n in network.graph.nodes if n.op == "placeholder"}
        last_use = self._last_uses(network)
        for node in network.calls():
            if node not in self._constant_nodes:
                self._bind(node, last_use)
        self._fold_outputs(network)

    def register(self, node: fx.Node) -> int:
        """Return the register of a node's value."""
        if node not in self._of_node:
            self._of_node[node] = self._new(None)
        return self._of_node[node]

    def _new(self, value: Any) -> int:
        self.registers.append(value)
        return len(self.registers) - 1

    def _last_uses(self, network: Network) -> dict[fx.Node, fx.Node]:
        kept = set(network.outputs.values())
        uses = {used: node for node in network.calls() for used in node.all_input_nodes}
        return {used: node for used, node in uses.items() if used not in kept and used.op == "call_function"}

    def _bind(self, node: fx.Node, last_use: Mapping[fx.Node, fx.Node]) -> None:
        op, tactic = op_of(node), choose(node, self._constant_nodes, self._device, self._chosen)
        packed = self._pack(node, tactic)
        arguments = tuple(
            packed[name] if name in packed else self._argument(node.kwargs[name]) for name in op.signature.parameters
        )
        prepared = self._prepare(node, tactic, arguments) if tactic.prepare else None
        for used in node.all_input_nodes:
            self._constants.release(used)
        dead = [
            used for used in node.all_input_nodes if last_use.get(used) is node and used not in self._constant_nodes
        ]
        is_flat = not any(isinstance(argument, tuple) for argument in arguments)
        self.calls.append(
            _Call(tactic.run, arguments, is_flat, prepared, self.register(node), tuple(map(self.register, dead)))
        )

    def _pack(self, node: fx.Node, tactic: Tactic) -> dict[str, int]:
        """Return the registers of a tactic's packed arguments; nodes with the same constants share them."""
        if tactic.pack is None:
            return {}
        pack, values = tactic.pack, [node.kwargs[name] for name in tactic.pack_args]
        fold = self._constants.value
        made = self._constant(
            (pack, *values), lambda: pack(*(fold(v) if isinstance(v, fx.Node) else v for v in values))
        )
        return {**dict.fromkeys(tactic.pack_args, self._argument(None)), tactic.pack_args[0]: made}

    def _prepare(self, node: fx.Node, tactic: Tactic, arguments: tuple[Any, ...]) -> int:
        """Return the register of what the tactic prepares, adding the call that fills it unless a node before did."""
        assert tactic.prepare is not None
        key = prepared_key(node, tactic)
        if key not in self._prepared:
            self._prepared[key] = self._new(None)
            self.calls.append(_Call(tactic.prepare, arguments, True, None, self._prepared[key], ()))
        return self._prepared[key]

    def _argument(self, value: Any) -> Any:
        """Return the register (or a tuple of them) that holds an argument."""
        if isinstance(value, (list, tuple)) and any(isinstance(item, fx.Node) for item in value):
            return tuple(self._argument(item) for item in value)
        if not isinstance(value, fx.Node):
            return self._constant(("value", type(value), str(value)), lambda: value)
        if value not in self._constant_nodes:
            return self.register(value)
        return self._constant(value, lambda: self._constants.value(value))

    def _constant(self, key: Any, make: Callable[[], Any]) -> int:
        if key not in self._of_constant:
            self._of_constant[key] = self._new(make())
        return self._of_constant[key]

    def _count_read(self) -> None:
        self._num_read += 1
        self._on_progress(self._num_read)

    def _fold_outputs(self, network: Network) -> None:
        for node in network.outputs.values():
            if node in self._constant_nodes:
                self.registers[self.register(node)] = self._constants.value(node)
