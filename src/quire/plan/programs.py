"""Which calls of a network run as one program of compiled kernels, and what memory the program takes.

A call that only takes a part of a tensor, or sees it in another shape, is no work: in a program it is a view.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from torch import fx

from quire.core.errors import ShapeError
from quire.graph.nodes import is_call, op_of, results
from quire.ops.op import Fusion, Tactic
from quire.ops.spec import TensorSpec, num_bytes

ALIASES = {"view": "x", "slice": "x", "split": "x", "item": "results"}
"""Ops whose results are parts of an argument, and which: they take no memory."""

Storage = tuple[fx.Node, int]
"""A piece of memory: the call that makes it, and which of its results it is."""


def is_view(node: fx.Node) -> bool:
    """Return whether a call's results are parts of an argument."""
    return is_call(node, *ALIASES)


def storages(node: fx.Node) -> tuple[Storage, ...]:
    """Return the memory that each result of a node lies in; nothing for a call that only mutates."""
    if is_view(node):
        source = node.kwargs[ALIASES[op_of(node).name]]
        assert isinstance(source, fx.Node), f"{node} is a part of {source}, which is no node"
        found = storages(source)
        if is_call(node, "item"):
            index = node.kwargs["index"]
            assert isinstance(index, int)
            return found[index : index + 1]
        return found * len(results(node))
    return tuple((node, index) for index in range(len(results(node))))


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Calls that run as one program.

    Attributes:
        nodes: In order; views among them.
        outputs: Those, but for views, whose results are used outside.
    """

    nodes: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def group(nodes: Sequence[fx.Node], native: Collection[fx.Node], outputs: Collection[fx.Node]) -> list[fx.Node | Group]:
    """Put calls that can be one program together, in an order that is still right.

    A view of what a program makes belongs to it, and follows it once more if it is used outside; a view of anything
    else comes before the program, of which it reads nothing. Every other call ends the program.

    Args:
        nodes: Calls in order.
        native: Those of them that are compiled kernels.
        outputs: What the network returns.
    """
    grouped: list[fx.Node | Group] = []
    current: dict[fx.Node, None] = {}
    for node in nodes:
        is_inside = any(used in current for used in node.all_input_nodes)
        if node in native or (is_inside and is_view(node)):
            current[node] = None
            continue
        if current and not is_view(node):
            grouped += _closed(current, outputs)
            current = {}
        grouped.append(node)
    return [*grouped, *_closed(current, outputs)] if current else grouped


def _closed(nodes: dict[fx.Node, None], outputs: Collection[fx.Node]) -> list[fx.Node | Group]:
    """Return a program of calls, then those of its views that are used outside of it."""
    outside: dict[fx.Node, None] = {}
    for node in reversed(nodes):
        users = (user not in nodes or (user in outside and is_view(user)) for user in node.users)
        if node in outputs or any(users):
            outside[node] = None
    made = [node for node in nodes if node in outside]
    views = [node for node in made if is_view(node)]
    return [Group(tuple(nodes), tuple(node for node in made if not is_view(node))), *views]


@dataclass(frozen=True, slots=True, eq=False)
class FusedCalls(Group):
    """Two calls that run as one.

    Attributes:
        fusion: How.
    """

    fusion: Fusion


def fuse(
    groups: Sequence[fx.Node | Group],
    tactics: Mapping[fx.Node, Tactic],
    fusions: Sequence[Fusion],
    outputs: Collection[fx.Node],
) -> list[fx.Node | Group]:
    """Put calls together that can be one; the first then happens where the second did.

    Args:
        groups: Calls in order.
        tactics: What runs each.
        fusions: Which can be one.
        outputs: What the network returns.
    """
    fused: list[fx.Node | Group] = []
    for each in groups:
        for fusion in fusions if isinstance(each, fx.Node) else ():
            if _runs(each, fusion.second, tactics):
                first = each.kwargs[fusion.argument]
                if _runs(first, fusion.first, tactics) and len(first.users) == 1 and first not in outputs:
                    fused.remove(first)
                    each = FusedCalls((first, each), (each,), fusion)
                    break
        fused.append(each)
    return fused


def _runs(node: object, wanted: tuple[str, str], tactics: Mapping[fx.Node, Tactic]) -> TypeGuard[fx.Node]:
    """Return whether a value is a call of an op that runs by a tactic."""
    return is_call(node, wanted[0]) and node in tactics and tactics[node].name == wanted[1]


def nodes_of(each: fx.Node | Group) -> tuple[fx.Node, ...]:
    """Return the calls of a program, or the one call."""
    return each.nodes if isinstance(each, Group) else (each,)


_ALIGNMENT = 64


def arena_bytes(group: Group, sizes: Mapping[str, int]) -> int:
    """Return what the tensors between a program's calls take together: as `Program::place` in csrc/program.cpp does.

    At each call its results take the lowest gap that holds them, then what nobody reads later is free.

    Args:
        group: The calls.
        sizes: A number for every symbolic size.
    """
    outputs = set(group.outputs)
    ends = {
        storage: i
        for i, node in enumerate(group.nodes)
        if not is_view(node)
        for storage in (*_read(node), *storages(node))
    }
    alive: list[tuple[int, int, Storage]] = []  # offset, end, what
    most = 0
    for i, node in enumerate(group.nodes):
        if not is_view(node) and node not in outputs:
            for storage, result in zip(storages(node), results(node), strict=True):
                size = -(-num_bytes(with_sizes(result, sizes)) // _ALIGNMENT) * _ALIGNMENT
                offset = _lowest_gap(alive, size)
                alive = sorted([*alive, (offset, offset + size, storage)], key=lambda each: each[0])
                most = max(most, offset + size)
        alive = [each for each in alive if ends[each[2]] > i]
    return most


def _read(node: fx.Node) -> list[Storage]:
    return [storage for used in node.all_input_nodes if used.op == "call_function" for storage in storages(used)]


def _lowest_gap(alive: Sequence[tuple[int, int, Storage]], size: int) -> int:
    at = 0
    for offset, end, _ in alive:
        if at + size <= offset:
            break
        at = end
    return at


def with_sizes(declared: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    """Return a spec with numbers for its symbolic sizes.

    Raises:
        ShapeError: One has no number.
    """
    for size in declared.shape:
        if isinstance(size, str) and size not in sizes:
            raise ShapeError(f"memory plan: expected a number for every size of {declared}, got none for {size!r}.")
    return TensorSpec(tuple(sizes[size] if isinstance(size, str) else size for size in declared.shape), declared.dtype)
