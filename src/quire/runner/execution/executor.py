"""The executor: a Plan's graph bound to tactics, weights packed, as a flat list of calls. No dispatch when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import fx

from quire.graph.network import Network
from quire.graph.nodes import is_call
from quire.plan.folding import constant_nodes
from quire.plan.storage.read_ahead import ReadAhead
from quire.plan.weight_source import WeightSource
from quire.runner.execution.binding import Binder


class Executor:
    """Runs a network on one device.

    Args:
        network: What to compute.
        weights: Its weights; each is read once, packed, and the original dropped before the next where possible.
        device: Kind of device.
        on_progress: Called with the number of weights done so far.
        chosen: Names of measured tactics, by what `plan.tactics.describe` says of a call.

    Attributes:
        reads_unwritten: Whether a call reads what no token has written yet of a KV cache's blocks; see `Tactic`.

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
            binder = Binder(network, ahead, device, on_progress, chosen or {})
        self.reads_unwritten = binder.reads_unwritten
        self._calls = binder.calls
        self._workspace = binder.workspace
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
                result = call.run(*arguments)
            else:
                result = call.run(*arguments, prepared=registers[call.prepared])
            if isinstance(call.result, int):
                registers[call.result] = result
            else:
                for register, each in zip(call.result, result, strict=True):
                    registers[register] = each
            for register in call.dead:
                registers[register] = None
        return {name: registers[register] for name, register in self._outputs.items()}

    def workspace_bytes(self) -> int:
        """Return what programs of compiled kernels keep between steps: as much as the largest step so far took."""
        return self._workspace.num_bytes() if self._workspace is not None else 0

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
