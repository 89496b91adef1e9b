"""Regions: the parts of a network whose channels ranks may share, between column- and row-parallel linear layers.

      x                                  whole: every rank has all channels
      |
    linear   linear                      column-parallel: each rank makes some of the output channels
      |        |
     silu      |                         a region: no op in it mixes channels of one rank with those of another
        \\     /
          mul
          |
        linear                           row-parallel: each rank sums over its own input channels
          |
      (sum over ranks)                   whole again

They are read off the graph, not off names or marks, so that fused, quantized and saved networks are cut, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from math import gcd

from torch import fx

from quire.core.errors import ConfigError
from quire.core.mapping import Mapping
from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of, spec
from quire.ops.collective.exchange import piece_start
from quire.sharding.channels import is_maker, is_reordering, is_rounding, needs_of, num_channels, operands
from quire.sharding.pieces import Pieces


@dataclass(slots=True)
class Region:
    """Nodes whose channels ranks share.

    Attributes:
        nodes: All of them, in order, KV caches included.
        columns: The calls that make their channels, linear layers mostly.
        rows: The linear layers that sum over them, and the calls that need them from all ranks: to put them in another
            order, or to round them.
        needs: By node, which channels a rank has; of nodes of several results, the first's.
    """

    nodes: list[fx.Node] = field(default_factory=list)
    columns: list[fx.Node] = field(default_factory=list)
    rows: list[fx.Node] = field(default_factory=list)
    needs: dict[fx.Node, Pieces] = field(default_factory=dict)


class _Groups:
    """Nodes whose channels are the same ones, by union-find."""

    def __init__(self) -> None:
        self._parents: dict[fx.Node, fx.Node] = {}
        self._whole: set[fx.Node] = set()

    def of(self, node: fx.Node) -> fx.Node:
        """Return the node that stands for a node's group."""
        while (parent := self._parents.setdefault(node, node)) is not node:
            self._parents[node] = self._parents[parent]
            node = parent
        return node

    def join(self, nodes: Iterable[fx.Node]) -> None:
        """Make one group of the groups of some nodes."""
        first, *others = nodes
        for other in others:
            self._parents[self.of(other)] = self.of(first)

    def keep_whole(self, node: fx.Node) -> None:
        """Let every rank have all channels of a node."""
        self._whole.add(node)

    def wholes(self) -> set[fx.Node]:
        """Return who stands for groups of which every rank has all channels."""
        return {self.of(node) for node in self._whole}


def find_regions(network: Network, constants: Collection[fx.Node], whole: Collection[fx.Node] = ()) -> list[Region]:
    """Return all regions of a network in order, without needs.

    Args:
        network: The graph.
        constants: Its constant nodes.
        whole: Nodes of which every rank is to have all channels, whatever may be.
    """
    groups = _Groups()
    for node in (*whole, *network.outputs.values()):
        groups.keep_whole(node)
    for node in network.calls():
        if node not in constants:
            _connect(groups, node, constants)
    found: dict[fx.Node, Region] = {}
    for node in network.graph.nodes:
        if node not in constants and (node.op == "call_function" or is_cache(node)):
            found.setdefault(groups.of(node), Region()).nodes.append(node)
            if is_maker(node, constants):
                found[groups.of(node)].columns.append(node)
            if is_maker(node, constants) or is_rounding(node):
                x = node.kwargs["x"]
                assert isinstance(x, fx.Node)
                found.setdefault(groups.of(x), Region()).rows.append(node)
    return _chosen(found, groups)


def is_cache(node: fx.Node) -> bool:
    """Return whether a node is the KV cache of a layer."""
    return node.op == "placeholder" and str(node.target).startswith("kv_cache.")


def _connect(groups: _Groups, node: fx.Node, constants: Collection[fx.Node]) -> None:
    found = operands(node, constants)
    has_result = node.meta["spec"] is not None
    if found.passed:
        groups.join([*found.passed, *([node] if has_result else [])])
    for operand in found.whole:
        groups.keep_whole(operand)
    is_whole = has_result and not found.contracted and not found.is_result_free and (found.whole or not found.passed)
    if is_whole or is_rounding(node):
        groups.keep_whole(node)


def _chosen(found: dict[fx.Node, Region], groups: _Groups) -> list[Region]:
    """Return the regions that ranks can share: one layer is not cut both ways, the first region in order decides.

    What only reorders channels makes a region only where it ends another: then they were to be gathered anyway.
    """
    whole, chosen, gathered = groups.wholes(), [], set[fx.Node]()
    for group, region in found.items():
        orders = {node for node in region.columns if is_reordering(node)}
        if group not in whole and region.columns and region.rows and orders <= gathered:
            chosen.append(region)
            gathered.update(row for row in region.rows if is_reordering(row))
            whole.update(groups.of(row) for row in region.rows if not is_reordering(row))
    return chosen


def deal_out(region: Region, mapping: Mapping, constants: Collection[fx.Node]) -> str | None:
    """Fill in the needs of a region for one rank; returns why it cannot be shared, or None.

    Raises:
        ConfigError: There are not enough heads or channels for so many ranks.
    """
    needs: dict[fx.Node, Pieces] = {}
    members = set(region.nodes)
    gathered = {row.kwargs["x"]: is_gathered(row) for row in region.rows}
    for row in region.rows:
        x = row.kwargs["x"]
        assert isinstance(x, fx.Node)
        pieces = _pieces(region, row, mapping)
        if needs.setdefault(x, pieces) != pieces or gathered[x] != is_gathered(row):
            return f"{row.name} would be cut in another way than the layers beside it"
    asked = []
    for node in sorted({*region.nodes, *(user for each in region.nodes for user in each.users)}, reverse=True):
        passed = [each for each in operands(node, constants).passed if each in members]
        for need in needs_of(node, passed, needs):
            needs[need.operand] = needs.get(need.operand, Pieces(())) | need.pieces
            asked.append((node, need))
    for node, need in asked:
        start, stop = need.window
        if needs[need.operand].within(start, stop).moved(start) != need.pieces:
            return f"{node.name} needs other channels of {need.operand.name} than others do"
    if missing := [node.name for node in region.nodes if node not in needs]:
        return f"nobody says which channels of {missing[0]} are needed"
    region.needs = needs
    return None


def is_gathered(row: fx.Node) -> bool:
    """Return whether what ends a region needs its channels from all ranks, and is no sum over them."""
    return is_reordering(row) or is_rounding(row)


def _pieces(region: Region, row: fx.Node, mapping: Mapping) -> Pieces:
    x, unit = row.kwargs["x"], _unit(region, row, mapping)
    assert isinstance(x, fx.Node)
    width = num_channels(x)
    if not is_gathered(row):
        return Pieces.dealt(width, unit, mapping.tp_rank, mapping.tp_size)
    size = -(-width // unit // mapping.tp_size) * unit
    start = piece_start(width, size, mapping.tp_rank)
    return Pieces.of([(start, start + size)])


def _unit(region: Region, row: fx.Node, mapping: Mapping) -> int:
    """Return how many input channels of a row-parallel layer stay together.

    Raises:
        ConfigError: There are fewer of them than ranks, or heads do not divide.
    """
    x = row.kwargs["x"]
    assert isinstance(x, fx.Node)
    width, group = num_channels(x), _group_size(row)
    heads = [node for node in region.nodes if is_call(node, "attention")]
    for attention in heads:
        check_heads(num_channels(attention), kv_heads_of(attention), mapping.tp_size)
    if heads:
        return width // gcd(*map(num_channels, heads))
    if is_reordering(row) and width % mapping.tp_size:
        raise ConfigError(
            f"tensor_parallel_size: expected a divisor of the {width} channels that {row.name} puts in another order, "
            f"got {mapping.tp_size}."
        )
    unit = group if width // group >= mapping.tp_size else min(group, 2)  # two values of four bits are one byte
    if width // unit < mapping.tp_size:
        raise ConfigError(
            f"tensor_parallel_size: expected at most {width // unit}, since {row.name} has {width} input channels, got "
            f"{mapping.tp_size}."
        )
    return unit


def _group_size(row: fx.Node) -> int:
    """Return how many input channels of a layer share a scale."""
    if not is_call(row, "linear_w4a16"):
        return 1
    scales, x = row.kwargs["scales"], row.kwargs["x"]
    assert isinstance(scales, fx.Node) and isinstance(x, fx.Node)
    return num_channels(x) // int(spec(scales).shape[1])


def kv_heads_of(attention: fx.Node) -> int:
    """Return the number of KV heads that an attention reads."""
    cache = attention.kwargs["kv_cache"]
    assert isinstance(cache, fx.Node), f"{op_of(attention).name} without a KV cache"
    return num_channels(cache)


def possible_tp_sizes(num_heads: int, num_kv_heads: int) -> list[int]:
    """Return over how many ranks heads can be dealt out: a KV head to one rank, or to some that all have it."""
    divisors = [size for size in range(1, num_heads + 1) if num_heads % size == 0]
    return [size for size in divisors if num_kv_heads % size == 0 or size % num_kv_heads == 0]


def check_heads(num_heads: int, num_kv_heads: int, tp_size: int) -> None:
    """Check that every rank gets as many query heads, and KV heads, as every other.

    Raises:
        ConfigError: It does not.
    """
    possible = possible_tp_sizes(num_heads, num_kv_heads)
    if tp_size not in possible:
        raise ConfigError(
            f"tensor_parallel_size: expected one of {', '.join(map(str, possible))} for {num_heads} query heads and "
            f"{num_kv_heads} KV heads, got {tp_size}."
        )
