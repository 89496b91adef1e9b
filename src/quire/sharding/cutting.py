"""`Cutter`: a rank's part of a constant, made of parts of the weights below it wherever that gives the same.

    before                               after, rows 4..8 of 16
      w_gate   w_up                        w_gate[4:8]   w_up[4:8]
         \\     /                               \\         /
          concat                                concat
          |                                     |
          (all rows)                            (rows 4..8 and 20..24)

So a rank reads, and keeps, only what it needs. Where an op mixes what lies along the cut (a scale over a whole row),
its result is computed whole, and then cut.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import fx

from quire.graph.network import Network
from quire.graph.nodes import op_of, spec
from quire.ops.registry import OPS
from quire.ops.spec import dtype_name, sizes_of
from quire.plan.weight_source import Part, whole
from quire.sharding.pieces import Pieces


class Cutter:
    """Adds parts of constants to a network; the constants stay, for others that use them.

    Args:
        network: Mutated.

    Attributes:
        parts: By each weight that was added, the name of the weight that it is a part of, and which.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._made: dict[tuple[fx.Node, int, Pieces], fx.Node] = {}
        self.parts: dict[fx.Node, tuple[str, Part]] = {}

    def take(self, node: fx.Node, dim: int, pieces: Pieces) -> fx.Node:
        """Return a constant's part along a dimension; itself if that is all of it."""
        if pieces.is_whole(int(spec(node).shape[dim])):
            return node
        key = node, dim, pieces
        if key not in self._made:
            self._made[key] = self._weight(*key) if node.op == "get_attr" else self._call(*key)
        return self._made[key]

    def add(self, after: fx.Node, op: str, **arguments: Any) -> fx.Node:
        """Add a call behind a node."""
        with self._network.graph.inserting_after(after):
            return self._network.insert(OPS[op], arguments)

    def _weight(self, node: fx.Node, dim: int, pieces: Pieces) -> fx.Node:
        if node in self.parts:  # cut along another dimension already
            name, part = self.parts[node]
        else:
            name, part = str(node.target), whole(spec(node))
        assert part[dim] == whole(spec(node))[dim], f"{name} is cut along dimension {dim} already"
        part = (*part[:dim], pieces.ranges, *part[dim + 1 :])
        shape = (*spec(node).shape[:dim], pieces.size, *spec(node).shape[dim + 1 :])
        with self._network.graph.inserting_after(node):
            free = f"{name}.part{len(self.parts)}"
            made = self._network.add_weight(free, dtype_name(spec(node).dtype), shape).node
        self.parts[made] = name, part
        return made

    def _call(self, node: fx.Node, dim: int, pieces: Pieces) -> fx.Node:
        rule = _RULES.get(op_of(node).name)
        changed = None if rule is None else rule(self, node, dim, pieces)
        if changed is None:
            return self._sliced(node, dim, pieces)
        if isinstance(changed, fx.Node):
            return changed
        made = self.add(node, op_of(node).name, **{**node.kwargs, **changed})
        assert int(spec(made).shape[dim]) == pieces.size, f"{node} was cut to {spec(made)}"
        return made

    def _sliced(self, node: fx.Node, dim: int, pieces: Pieces) -> fx.Node:
        """Cut what was computed whole."""
        found: list[fx.Node] = []
        for start, stop in pieces.ranges:
            found.append(self.add(found[-1] if found else node, "slice", x=node, dim=dim, start=start, stop=stop))
        return found[0] if len(found) == 1 else self.add(found[-1], "concat", tensors=found, dim=dim)


_Rule = Callable[[Cutter, fx.Node, int, Pieces], "dict[str, Any] | fx.Node | None"]
"""Returns a call's part by the arguments that change, or as a node, or None where it must be computed whole."""


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node), f"{value} is no node"
    return value


def _axis(node: fx.Node, name: str = "dim") -> int:
    return int(str(node.kwargs[name])) % len(spec(node).shape)


def _same(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any]:
    return {"x": cutter.take(_node(node.kwargs["x"]), dim, pieces)}


def _concat(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any] | fx.Node:
    parts = [_node(part) for part in node.kwargs["tensors"]]  # type: ignore[union-attr]
    if dim != _axis(node):
        return {"tensors": [cutter.take(part, dim, pieces) for part in parts]}
    kept, start = [], 0
    for part in parts:
        stop = start + int(spec(part).shape[dim])
        if (inside := pieces.within(start, stop)).ranges:
            kept.append(cutter.take(part, dim, inside))
        start = stop
    return kept[0] if len(kept) == 1 else {"tensors": kept}


def _slice(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any] | fx.Node:
    if dim != _axis(node):
        return _same(cutter, node, dim, pieces)
    return cutter.take(_node(node.kwargs["x"]), dim, pieces.moved(int(str(node.kwargs["start"]))))


def _permute(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any]:
    dims = [int(str(each)) for each in node.kwargs["dims"]]  # type: ignore[union-attr]
    return {"x": cutter.take(_node(node.kwargs["x"]), dims[dim] % len(dims), pieces)}


def _transpose(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any]:
    first, second = _axis(node, "dim0"), _axis(node, "dim1")
    return _same(cutter, node, {first: second, second: first}.get(dim, dim), pieces)


def _view(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any] | None:
    """A dimension that was cut into several, or several of which all but one are 1."""
    x = _node(node.kwargs["x"])
    given, wanted = sizes_of(spec(x)), list(sizes_of(spec(node)))
    for inputs, outputs in _groups(given, tuple(wanted)):
        sources = [i for i in inputs if given[i] != 1]
        if dim in outputs and len(sources) == 1:
            outer = prod(wanted[i] for i in outputs if i < dim)
            inner = prod(wanted[i] for i in outputs if i > dim)
            own = pieces.times(inner)
            ranges = [each for o in range(outer) for each in own.moved(o * wanted[dim] * inner).ranges]
            wanted[dim] = pieces.size
            return {"x": cutter.take(x, sources[0], Pieces.of(ranges)), "shape": wanted}
    return None


def _groups(given: tuple[int, ...], wanted: tuple[int, ...]) -> list[tuple[range, range]]:
    """Return which neighbouring dimensions of one shape have the elements of which of another, the fewest at a time."""
    groups, i, j = [], 0, 0
    while i < len(given) or j < len(wanted):
        first, second = i + 1, j + 1
        while prod(given[i:first]) != prod(wanted[j:second]):
            if prod(given[i:first]) < prod(wanted[j:second]):
                first += 1
            else:
                second += 1
        while first < len(given) and given[first] == 1:
            first += 1
        while second < len(wanted) and wanted[second] == 1:
            second += 1
        groups.append((range(i, min(first, len(given))), range(j, min(second, len(wanted)))))
        i, j = first, second
    return groups


def _expand(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any]:
    x, shape = _node(node.kwargs["x"]), list(sizes_of(spec(node)))
    shape[dim] = pieces.size
    return {"x": x if spec(x).shape[dim] == 1 else cutter.take(x, dim, pieces), "shape": shape}


def _full(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any]:
    shape = list(sizes_of(spec(node)))
    shape[dim] = pieces.size
    return {"shape": shape}


def _elementwise(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any]:
    changed = {}
    for name in ("x", "y"):
        value = node.kwargs[name]
        own = dim - len(spec(node).shape) + (len(spec(value).shape) if isinstance(value, fx.Node) else 0)
        if isinstance(value, fx.Node) and own >= 0 and spec(value).shape[own] != 1:
            changed[name] = cutter.take(value, own, pieces)
    return changed


def _pack_int4(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any]:
    return {"values": cutter.take(_node(node.kwargs["values"]), dim, pieces.times(2) if dim == 1 else pieces)}


def _unpack_int32(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any] | None:
    if dim == node.kwargs["dim"]:
        per_word = 32 // int(str(node.kwargs["bits"]))
        if not pieces.is_multiple(per_word):
            return None
        pieces = pieces.over(per_word)
    return {"packed": cutter.take(_node(node.kwargs["packed"]), dim, pieces)}


def _index_select(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any]:
    if dim != _axis(node):
        return _same(cutter, node, dim, pieces)
    return {"index": cutter.take(_node(node.kwargs["index"]), 0, pieces)}


def _dequantize(cutter: Cutter, node: fx.Node, dim: int, pieces: Pieces) -> dict[str, Any] | None:
    size, each = int(spec(node).shape[dim]), [int(str(part)) for part in node.kwargs["block"]][dim]  # type: ignore[union-attr]
    changed = {"weight": cutter.take(_node(node.kwargs["weight"]), dim, pieces)}
    if each >= size:
        return changed
    if not all(start % each == 0 and (stop % each == 0 or stop == size) for start, stop in pieces.ranges):
        return None
    for name in ("scales", "zero_points"):
        if isinstance(value := node.kwargs[name], fx.Node):
            changed[name] = cutter.take(value, dim, pieces.over(each))
    return changed


_RULES: dict[str, _Rule] = {
    "concat": _concat,
    "slice": _slice,
    "permute": _permute,
    "transpose": _transpose,
    "view": _view,
    "expand": _expand,
    "full": _full,
    "cast": _same,
    "add": _elementwise,
    "sub": _elementwise,
    "mul": _elementwise,
    "div": _elementwise,
    "pack_int4": _pack_int4,
    "unpack_int32": _unpack_int32,
    "index_select": _index_select,
    "dequantize_weight": _dequantize,
}
