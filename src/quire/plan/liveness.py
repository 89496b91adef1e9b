"""Most bytes alive at once in a step, computed over the graph in the order and with the tactics of the executor.

A call's result is memory of its own, or a part of an argument's: memory is counted once, from the call that makes it to
the last use of anything that lies in it. Beside that are the step's inputs, what tactics prepare once per step, and
what a call needs while it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from quire.core.errors import ShapeError
from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of, results, spec_argument
from quire.ops.op import Tactic
from quire.ops.spec import TensorSpec, num_bytes
from quire.plan.folding import constant_nodes
from quire.plan.tactics import choose, prepared_key

ALIASES = {"view": "x", "slice": "x", "split": "x", "item": "results"}
"""Ops whose results are parts of an argument, and which: they take no memory."""

Storage = tuple[fx.Node, int]
"""A piece of memory: the call that makes it, and which of its results it is."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a step holds, in bytes.

    Attributes:
        peak: At once, at most.
        largest: The call in which that is.
        left: After the last call: the inputs and the outputs.
        inputs: The inputs alone.
    """

    peak: int
    largest: str
    left: int
    inputs: int


def storages(node: fx.Node) -> tuple[Storage, ...]:
    """Return the memory that each result of a node lies in; nothing for a call that only mutates."""
    if is_call(node, *ALIASES):
        source = node.kwargs[ALIASES[op_of(node).name]]
        assert isinstance(source, fx.Node), f"{node} is a part of {source}, which is no node"
        found = storages(source)
        if is_call(node, "item"):
            index = node.kwargs["index"]
            assert isinstance(index, int)
            return found[index : index + 1]
        return found * len(results(node))
    return tuple((node, index) for index in range(len(results(node))))


def step_memory(
    network: Network, sizes: Mapping[str, int], device: str = "cpu", chosen: Mapping[str, str] | None = None
) -> StepMemory:
    """Return what a step holds beside weights and KV caches.

    Args:
        network: The network.
        sizes: A number for every symbolic size.
        device: Kind of device.
        chosen: Names of measured tactics, by what `plan.tactics.describe` says of a call.

    Raises:
        ShapeError: A size has no number.
    """
    constants = constant_nodes(network)
    calls = [node for node in network.calls() if node not in constants]
    inputs = [node for node in network.graph.nodes if node.op == "placeholder" and not _is_mutated(node)]
    ends = _ends(network, calls)
    given = sum(num_bytes(with_sizes(result, sizes)) for node in inputs for result in results(node))
    held = given
    alive: dict[Storage, int] = {}
    prepared: set[Any] = set()
    peak, largest = held, ""
    for i, node in enumerate(calls):
        tactic, arguments = choose(node, constants, device, chosen), arguments_of(node, sizes)
        now = held + sum(alive.values())
        if tactic.prepare is not None and (key := prepared_key(node, tactic)) not in prepared:
            prepared.add(key)
            kept, making = tactic.prepared_bytes(**arguments) if tactic.prepared_bytes else (0, 0)
            peak, largest = max((peak, largest), (now + making, node.name))
            held, now = held + kept, now + kept
        made = _made(node, tactic, arguments, sizes)
        running = tactic.workspace_bytes(**arguments) if tactic.workspace_bytes else 0
        peak, largest = max((peak, largest), (now + max(running, sum(made.values())), node.name))
        alive = {storage: size for storage, size in {**alive, **made}.items() if ends[storage] > i}
    return StepMemory(peak, largest, given + sum(alive.values()), given)


def _ends(network: Network, calls: Sequence[fx.Node]) -> dict[Storage, int]:
    """Return after which call each piece of memory is free: the last use of any node that lies in it.

    Outputs are kept; so is, as the executor keeps its registers, what nobody uses.
    """
    last = {used: i for i, node in enumerate(calls) for used in node.all_input_nodes}
    last.update(dict.fromkeys(network.outputs.values(), len(calls)))
    ends: dict[Storage, int] = {}
    for node in calls:
        for storage in storages(node):
            ends[storage] = max(ends.get(storage, 0), last.get(node, len(calls)))
    return ends


def _made(node: fx.Node, tactic: Tactic, arguments: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[Storage, int]:
    """Return the memory that a call's results take."""
    own = [
        (storage, result) for storage, result in zip(storages(node), results(node), strict=True) if storage[0] is node
    ]
    if tactic.result_bytes is not None:
        return {storage: tactic.result_bytes(**arguments) for storage, _ in own}
    return {storage: num_bytes(with_sizes(result, sizes)) for storage, result in own}


def _is_mutated(node: fx.Node) -> bool:
    """Return whether a call writes into an input: a KV cache, which is there between steps, too."""
    return any(user.kwargs.get(name) is node for user in node.users for name in op_of(user).mutates)


def arguments_of(node: fx.Node, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return a call's arguments by name, tensors as specs with numbers for sizes."""

    def fix(value: Any) -> Any:
        if isinstance(value, TensorSpec):
            return with_sizes(value, sizes)
        return type(value)(map(fix, value)) if isinstance(value, (list, tuple)) else value

    return {name: fix(spec_argument(value)) for name, value in node.kwargs.items()}


def with_sizes(declared: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    """Return a spec with numbers for its symbolic sizes.

    Raises:
        ShapeError: One has no number.
    """
    for size in declared.shape:
        if isinstance(size, str) and size not in sizes:
            raise ShapeError(f"memory plan: expected a number for every size of {declared}, got none for {size!r}.")
    return TensorSpec(tuple(sizes[size] if isinstance(size, str) else size for size in declared.shape), declared.dtype)
