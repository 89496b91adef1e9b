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

from quire.graph.network import Network
from quire.graph.nodes import op_of, results, spec_argument
from quire.ops.op import Tactic
from quire.ops.spec import TensorSpec, num_bytes
from quire.plan.device import num_threads
from quire.plan.folding import constant_nodes
from quire.plan.programs import Group, Storage, arena_bytes, group, nodes_of, storages, with_sizes
from quire.plan.tactics import choose, prepared_key


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a step holds, in bytes.

    Attributes:
        peak: At once, at most.
        largest: The call in which that is.
        left: After the last call: the inputs, the outputs, and what programs keep.
        inputs: The inputs, and what programs keep.
    """

    peak: int
    largest: str
    left: int
    inputs: int


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
    tactics = {node: choose(node, constants, device, chosen) for node in calls}
    groups = group(calls, {node for node in calls if tactics[node].kernel is not None}, network.outputs.values())
    inputs = [node for node in network.graph.nodes if node.op == "placeholder" and not _is_mutated(node)]
    given = sum(num_bytes(with_sizes(result, sizes)) for node in inputs for result in results(node))
    kept = _kept_by_programs(groups, tactics, sizes)
    ends = _ends(network, groups)
    held = given + kept
    alive: dict[Storage, int] = {}
    prepared: set[Any] = set()
    peak, largest = held, ""
    for i, each in enumerate(groups):
        node = each.nodes[0] if isinstance(each, Group) else each
        now = held + sum(alive.values())
        if isinstance(each, Group):
            made = {storage: size for output in each.outputs for storage, size in _plain(output, sizes).items()}
            running = 0
        else:
            tactic, arguments = tactics[node], arguments_of(node, sizes)
            if tactic.prepare is not None and (key := prepared_key(node, tactic)) not in prepared:
                prepared.add(key)
                stays, making = tactic.prepared_bytes(**arguments) if tactic.prepared_bytes else (0, 0)
                peak, largest = max((peak, largest), (now + making, node.name))
                held, now = held + stays, now + stays
            made = _made(node, tactic, arguments, sizes)
            running = tactic.workspace_bytes(**arguments) if tactic.workspace_bytes else 0
        peak, largest = max((peak, largest), (now + max(running, sum(made.values())), node.name))
        alive = {storage: size for storage, size in {**alive, **made}.items() if ends[storage] > i}
    return StepMemory(peak, largest, given + kept + sum(alive.values()), given + kept)


def _kept_by_programs(
    groups: Sequence[fx.Node | Group], tactics: Mapping[fx.Node, Tactic], sizes: Mapping[str, int]
) -> int:
    """Return what programs share and keep: the largest arena, and the most that a kernel works in."""
    programs = [each for each in groups if isinstance(each, Group)]
    arena = max((arena_bytes(program, sizes) for program in programs), default=0)
    calls = [(tactics[node].kernel, node) for program in programs for node in program.nodes]
    scratch = {kernel.scratch_bytes(**arguments_of(node, sizes)) for kernel, node in calls if kernel is not None}
    own, shared = (max(bytes_, default=0) for bytes_ in zip(*scratch, strict=True)) if scratch else (0, 0)
    return _pages(arena) + num_threads() * _pages(own) + _pages(shared)


def _pages(size: int) -> int:
    return -(-size // 4096) * 4096


def _ends(network: Network, groups: Sequence[fx.Node | Group]) -> dict[Storage, int]:
    """Return after which call each piece of memory is free: the last use of any node that lies in it.

    Outputs are kept; so is, as the executor keeps its registers, what nobody uses.
    """
    last = {used: i for i, each in enumerate(groups) for node in nodes_of(each) for used in node.all_input_nodes}
    last.update(dict.fromkeys(network.outputs.values(), len(groups)))
    ends: dict[Storage, int] = {}
    for each in groups:
        for node in nodes_of(each):
            for storage in storages(node):
                ends[storage] = max(ends.get(storage, 0), last.get(node, len(groups)))
    return ends


def _made(node: fx.Node, tactic: Tactic, arguments: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[Storage, int]:
    """Return the memory that a call's results take."""
    plain = _plain(node, sizes)
    if tactic.result_bytes is not None:
        return dict.fromkeys(plain, tactic.result_bytes(**arguments))
    return plain


def _plain(node: fx.Node, sizes: Mapping[str, int]) -> dict[Storage, int]:
    """Return the memory that a call's own results take by their shapes."""
    places = zip(storages(node), results(node), strict=True)
    return {storage: num_bytes(with_sizes(result, sizes)) for storage, result in places if storage[0] is node}


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
