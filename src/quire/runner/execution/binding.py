"""A network's calls bound to tactics: constants folded, weights packed, compiled kernels joined to programs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from quire.graph.network import Network
from quire.graph.nodes import op_of
from quire.ops.native.library import library
from quire.ops.op import Tactic
from quire.ops.tactics import fusions_for
from quire.plan.device import torch_device
from quire.plan.folding import Constants, constant_nodes
from quire.plan.programs import FusedCalls, Group, fuse, group, is_view, nodes_of
from quire.plan.tactics import choose, prepared_key
from quire.plan.weight_source import WeightSource
from quire.runner.execution.native_program import NativeProgram, Step


@dataclass(frozen=True, slots=True)
class Call:
    """One instruction: `registers[result] = run(*arguments)`, then forget what is dead.

    Attributes:
        run: What to call.
        arguments: Register numbers, or tuples of them for a list of tensors.
        is_flat: Whether there are no such tuples.
        prepared: Register of what was prepared for this step, or None.
        result: Where the result goes; several registers for a program with several results.
        dead: Registers that nobody reads any more.
    """

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    is_flat: bool
    prepared: int | None
    result: int | tuple[int, ...]
    dead: tuple[int, ...]


def _used_by(bound: fx.Node | Group) -> list[fx.Node]:
    return list(dict.fromkeys(used for node in nodes_of(bound) for used in node.all_input_nodes))


def _last_uses(groups: Sequence[fx.Node | Group], network: Network) -> dict[fx.Node, fx.Node | Group]:
    """Return by value who reads it last; nothing of inputs and outputs of the network, which are kept."""
    kept = set(network.outputs.values())
    uses = {used: each for each in groups for used in _used_by(each)}
    return {used: each for used, each in uses.items() if used not in kept and used.op == "call_function"}


def _counting(on_progress: Callable[[int], None] | None) -> Callable[[], None]:
    """Return what to call for each weight that was read: it tells how many there were."""
    counter = itertools.count(1)
    return (lambda: on_progress(next(counter))) if on_progress is not None else lambda: None


class Binder:
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
        self.workspace = native.Workspace() if (native := library()) is not None else None
        self.calls: list[Call] = []
        # Nothing here refers back to the binder: weights are gone when their executor is, not at some later collection.
        self._constants = Constants(network, weights, _counting(on_progress), torch_device(device))
        self._of_node: dict[fx.Node, int] = {}
        self._of_constant: dict[Any, int] = {}
        self._prepared: dict[Any, int] = {}
        self._constant_nodes = constant_nodes(network)
        self.inputs = {str(n.target): self.register(n) for n in network.graph.nodes if n.op == "placeholder"}
        nodes = [node for node in network.calls() if node not in self._constant_nodes]
        tactics = {node: choose(node, self._constant_nodes, device, chosen) for node in nodes}
        self.reads_unwritten = any(tactic.reads_unwritten for tactic in tactics.values())
        groups = group(nodes, {node for node in nodes if tactics[node].kernel is not None}, network.outputs.values())
        groups = fuse(groups, tactics, fusions_for(device), network.outputs.values())
        self._last_use = _last_uses(groups, network)
        for each in groups:
            if isinstance(each, FusedCalls):
                self._bind_fused(each, tactics[each.nodes[1]])
            elif isinstance(each, Group):
                self._bind_program(each, tactics)
            else:
                self._bind(each, tactics[each])
        self._fold_outputs(network)

    def register(self, node: fx.Node) -> int:
        """Return the register of a node's value."""
        if node not in self._of_node:
            self._of_node[node] = self._new(None)
        return self._of_node[node]

    def _new(self, value: Any) -> int:
        self.registers.append(value)
        return len(self.registers) - 1

    def _bind(self, node: fx.Node, tactic: Tactic) -> None:
        packed = self._pack(node, tactic)
        arguments = tuple(
            packed[name] if name in packed else self._argument(node.kwargs[name])
            for name in op_of(node).signature.parameters
        )
        prepared = self._prepare(node, tactic, arguments) if tactic.prepare else None
        self._release(node)
        is_flat = not any(isinstance(argument, tuple) for argument in arguments)
        self.calls.append(Call(tactic.run, arguments, is_flat, prepared, self.register(node), self._dead(node)))

    def _bind_fused(self, fused: FusedCalls, tactic: Tactic) -> None:
        """Bind two calls that are one; `tactic` is that of the second."""
        first, second = fused.nodes
        taken = {name: self._argument(first.kwargs[name]) for name in op_of(first).signature.parameters}
        rest = {name: self._argument(second.kwargs[name]) for name in op_of(second).signature.parameters
                if name != fused.fusion.argument}  # fmt: skip
        prepared = None
        if tactic.prepare:
            whole = {fused.fusion.argument: taken[fused.fusion.argument], **rest}
            prepared = self._prepare(second, tactic, tuple(whole[name] for name in op_of(second).signature.parameters))
        for node in fused.nodes:
            self._release(node)
        arguments = (*taken.values(), *rest.values())
        self.calls.append(Call(fused.fusion.run, arguments, True, prepared, self.register(second), self._dead(fused)))

    def _bind_program(self, group: Group, tactics: Mapping[fx.Node, Tactic]) -> None:
        constants: dict[fx.Node, Any] = {}
        steps = [self._step(node, tactics[node], constants) for node in group.nodes]
        inside = {*group.nodes, *self._constant_nodes}
        inputs = [each for each in _used_by(group) if each not in inside]
        program = NativeProgram(self.workspace, steps, inputs, group.outputs, constants)
        results, arguments = tuple(map(self.register, group.outputs)), tuple(map(self.register, inputs))
        self.calls.append(Call(program.run, arguments, True, None, results, self._dead(group)))

    def _step(self, node: fx.Node, tactic: Tactic, constants: dict[fx.Node, Any]) -> Step:
        """Pack a call's constants, and add those that it takes as they are to `constants`; then let go of the rest."""
        packed = {name: self.registers[register] for name, register in self._pack(node, tactic).items()}
        for name, value in node.kwargs.items():
            if name not in packed and isinstance(value, fx.Node) and value in self._constant_nodes:
                constants[value] = self.registers[self._argument(value)]
        self._release(node)
        return Step(node, None if is_view(node) else tactic.kernel, packed)

    def _release(self, node: fx.Node) -> None:
        for used in node.all_input_nodes:
            self._constants.release(used)

    def _dead(self, bound: fx.Node | Group) -> tuple[int, ...]:
        """Return the registers that nobody reads after a call."""
        return tuple(
            self._of_node[each]
            for each in _used_by(bound)
            if self._last_use.get(each) is bound and each in self._of_node and each not in self._constant_nodes
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
            self.calls.append(Call(tactic.prepare, arguments, True, None, self._prepared[key], ()))
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

    def _fold_outputs(self, network: Network) -> None:
        for node in network.outputs.values():
            if node in self._constant_nodes:
                self.registers[self.register(node)] = self._constants.value(node)
