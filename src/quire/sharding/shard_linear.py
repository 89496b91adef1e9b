"""Deal out the channels of linear layers, heads and the vocabulary to the ranks of a stage.

before (4 heads, 2 KV heads)                  after, on each of 2 ranks
  x                                             x
  |                                             |
  linear (w_qkv: 8 heads)                       linear (4 heads of w_qkv: 2 of q, 1 of k, 1 of v)
  |                                             |
  view [-1, 8, 16]                              view [-1, 4, 16]
  |-- slice 0..4 (q)                            |-- slice 0..2
  |-- slice 4..6 (k)                            |-- slice 2..3
  |-- slice 6..8 (v)                            |-- slice 3..4
  append_kv, attention (kv_cache.0: 2 heads)    append_kv, attention (kv_cache.0: 1 head)
  |                                             |
  view [-1, 64]                                 view [-1, 32]
  |                                             |
  linear (w_o)                                  linear (32 input channels of w_o)    one term of a sum over ranks
  |                                             |

Likewise MLPs, between their first and their last layer, and mixtures of experts inside each expert. A last layer whose
input `round_whole_rows` marked has no sum over ranks: they gather the input, round it as one rank would, and make some
output channels each, so that every number is the one of one rank, to the bit:

  silu_mul (12 channels)                        silu_mul (6 channels)      a piece of each row, gathered
  |                                             |
  quantize_rows (12 channels)                   quantize_rows (12 channels)
  |-- rows, scales                              |-- rows, scales
  linear_w8a8 (w_down: 8 x 12)                  linear_w8a8 (4 output channels of w_down)    a piece, gathered

The tables of
tokens are dealt out by rows: a lookup gives zeros for rows of other ranks, and the last layer a piece of the logits.
What each rank then has is only a term of a sum, or a piece; `insert_collectives` makes it whole.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import gcd
from typing import Any

from torch import fx

from quire.core.errors import ConfigError
from quire.core.mapping import Mapping
from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of, results, spec, spec_argument
from quire.ops.collective.exchange import piece_start
from quire.ops.collective.share import sharded_embedding
from quire.ops.registry import OPS
from quire.ops.spec import TensorSpec
from quire.plan.folding import constant_nodes
from quire.plan.weight_source import WeightSource
from quire.sharding.channels import (
    ELEMENTWISE,
    LINEAR,
    channel_dim,
    is_maker,
    is_reordering,
    num_channels,
    window,
)
from quire.sharding.cutting import Cutter
from quire.sharding.local_weights import LocalWeights
from quire.sharding.pieces import Pieces
from quire.sharding.regions import Region, deal_out, find_regions, is_cache, is_gathered

SHARE = "share"
"""Key of a node's `meta`: its `Share`, where its result is one rank's share of what it was."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank has of a tensor.

    Attributes:
        width: Of the whole tensor, of which it has a piece along the last dimension; None: it has a term of a sum.
    """

    width: int | None = None


def shard_linear(network: Network, weights: WeightSource, mapping: Mapping) -> tuple[Matches, WeightSource]:
    """Cut a network to the share of one rank of a stage.

    Args:
        network: Mutated.
        weights: Its weights.
        mapping: Which rank, of how many.

    Returns:
        The matches, and the weights of the network as it is now.

    Raises:
        ConfigError: There are not enough heads, channels or tokens for so many ranks.
    """
    pass_ = _Sharding(network, mapping)
    pass_.vocabulary()
    pass_.regions()
    pass_.experts()
    pass_.marked()
    pass_.infer()
    return pass_.matches, pass_.weights(weights)


class _Sharding:
    """The pass at work on one network."""

    def __init__(self, network: Network, mapping: Mapping) -> None:
        self._network = network
        self._mapping = mapping
        self._constants = constant_nodes(network)
        self._cutter = Cutter(network)
        self._head = _head(network, self._constants)
        self.matches = Matches()

    def vocabulary(self) -> None:
        """Deal out the rows of the table that tokens are looked up in, and of the one that makes logits."""
        for node in self._network.calls():
            ids = node.kwargs.get("ids")
            if is_call(node, "embedding") and isinstance(ids, fx.Node) and ids.target == "input_ids":
                self._embedding(node)
        if self._head is not None:
            self._gathered(self._head)

    def _rows(self, size: int) -> tuple[Pieces, int]:
        """Return this rank's rows of a table, and how many of them the rank before has, too."""
        each = -(-size // self._mapping.tp_size)
        if size < self._mapping.tp_size:
            raise ConfigError(f"tensor_parallel_size: expected at most the {size} tokens there are, got "
                              f"{self._mapping.tp_size}.")  # fmt: skip
        wanted, start = self._mapping.tp_rank * each, piece_start(size, each, self._mapping.tp_rank)
        return Pieces.of([(start, start + each)]), min(wanted - start, each)

    def _embedding(self, node: fx.Node) -> None:
        weight = node.kwargs["weight"]
        if not isinstance(weight, fx.Node) or weight not in self._constants:
            self.matches.missed[node.name] = "its table is computed at run time"
            return
        pieces, skip = self._rows(int(spec(weight).shape[0]))
        table = self._cutter.take(weight, 0, pieces)
        node.target = sharded_embedding
        node.kwargs = {"ids": node.kwargs["ids"], "weight": table, "start": pieces.ranges[0][0], "skip": skip}
        node.meta[SHARE] = Share()
        self.matches.done.append(node.name)

    def _gathered(self, linear: fx.Node) -> None:
        """Leave a piece of a layer's output channels; all ranks' are gathered behind it."""
        width = int(spec(linear).shape[-1])
        self._columns(linear, self._rows(width)[0])
        linear.meta[SHARE] = Share(width)
        self.matches.done.append(linear.name)

    def marked(self) -> None:
        """Deal out what is in no region, but was marked by who defined the network (`ColumnLinear`, `RowLinear`)."""
        for node in self._network.calls():
            weight = node.kwargs.get("weight")
            if node.name in self.matches.done or not is_call(node, *LINEAR) or weight not in self._constants:
                continue
            mark = _mark(_node(weight))
            if mark == 0 or (mark == 1 and is_call(node, "linear_w8a8")):
                self._gathered(node)
            elif mark == 1:
                self._of_whole(node)

    def _of_whole(self, linear: fx.Node) -> None:
        """Let each rank sum over some channels of an input that all have whole."""
        x = _node(linear.kwargs["x"])
        pieces = Pieces.dealt(num_channels(x), 1, self._mapping.tp_rank, self._mapping.tp_size)
        start, stop = pieces.ranges[0]
        with self._network.graph.inserting_before(linear):
            arguments = {"x": x, "dim": -1, "start": start, "stop": stop}
            linear.update_kwarg("x", self._network.insert(OPS["slice"], arguments, f"{linear.name}_x"))
        self._sums(linear, pieces, num_channels(x))
        self.matches.done.append(linear.name)

    def regions(self) -> None:
        """Deal out heads and channels."""
        head = [] if self._head is None else [_node(self._head.kwargs["x"])]
        rounded: list[fx.Node] = []
        for region in find_regions(self._network, self._constants, head):
            reason = deal_out(region, self._mapping, self._constants)
            if reason is not None:
                self.matches.missed[region.columns[0].name] = reason
                continue
            for column in region.columns:
                self._columns(column, region.needs[column])
            for row in region.rows:
                x = _node(row.kwargs["x"])
                if is_gathered(row):
                    x.meta[SHARE] = Share(num_channels(x))
                    rounded.extend(user for item in row.users for user in item.users if is_call(item, "item"))
                else:
                    self._sums(row, region.needs[x], num_channels(x))
            for node in region.nodes:
                self._inside(node, region)
            self.matches.done.extend(node.name for node in (*region.columns, *region.rows))
        for node in rounded:
            if node.name not in self.matches.done and is_maker(node, self._constants):
                self._gathered(node)

    def _columns(self, linear: fx.Node, pieces: Pieces) -> None:
        """Leave some output channels of a layer."""
        if is_reordering(linear):
            self._take(linear, "index", 0, pieces)
            return
        for name in ("weight", "scales", "zero_points", "bias"):
            self._take(linear, name, 0, pieces)

    def _sums(self, linear: fx.Node, pieces: Pieces, width: int) -> None:
        """Leave some of the input channels of a layer, of which there are `width`."""
        linear.meta[SHARE] = Share()
        if not is_call(linear, "linear_w4a16"):
            self._take(linear, "weight", 1, pieces)
            return
        num_groups = int(spec(_node(linear.kwargs["scales"])).shape[1])
        group = width // num_groups
        each = gcd(group, *(bound for bounds in pieces.ranges for bound in bounds))
        self._take(linear, "weight", 1, pieces.over(2))
        for name in ("scales", "zero_points"):
            if each < group:  # a cut goes through a group: it becomes smaller ones of the same scale
                linear.update_kwarg(name, self._repeated(_node(linear.kwargs[name]), group // each))
            self._take(linear, name, 1, pieces.over(each))

    def _repeated(self, columns: fx.Node, times: int) -> fx.Node:
        """Return a constant with each of its columns several times."""
        rows, width = (int(size) for size in spec(columns).shape)
        apart = self._cutter.add(columns, "view", x=columns, shape=[rows, width, 1])
        many = self._cutter.add(apart, "expand", x=apart, shape=[rows, width, times])
        return self._cutter.add(many, "view", x=many, shape=[rows, width * times])

    def _inside(self, node: fx.Node, region: Region) -> None:
        """Fit the numbers and constants of a call to the channels that are left."""
        pieces = region.needs[node]
        if is_cache(node):
            declared = spec(node)
            node.meta["spec"] = TensorSpec((*declared.shape[:2], pieces.size, *declared.shape[3:]), declared.dtype)
            for user in list(node.users):
                self._take(user, "kv_scales", 1, pieces)
        elif is_call(node, "view"):
            shape = [int(str(size)) for size in node.kwargs["shape"]]  # type: ignore[union-attr]
            shape[channel_dim(node)] = pieces.size
            node.update_kwarg("shape", shape)
        elif is_call(node, "slice") and (taken := window(node)) is not None:
            start = region.needs[_node(node.kwargs["x"])].offset(taken[0])
            node.update_kwarg("start", start)
            node.update_kwarg("stop", start + pieces.size)
        elif is_call(node, "split"):
            items = [user for user in node.users if is_call(user, "item")]
            sizes = [int(each.shape[1]) for each in results(node)]
            for item in items:
                sizes[int(str(item.kwargs["index"]))] = region.needs[item].size
            node.update_kwarg("sizes", sizes)
        elif is_call(node, *ELEMENTWISE):
            self._operand_constants(node, pieces)

    def _operand_constants(self, node: fx.Node, pieces: Pieces) -> None:
        for name in ("x", "y"):
            value = node.kwargs[name]
            if isinstance(value, fx.Node) and value in self._constants:
                dim = channel_dim(node) - len(spec(node).shape) + len(spec(value).shape)
                if dim >= 0 and spec(value).shape[dim] != 1:
                    self._take(node, name, dim, pieces)

    def experts(self) -> None:
        """Deal out the channels inside each expert."""
        for node in self._network.calls():
            if not is_call(node, "moe"):
                continue
            if not all(node.kwargs[name] in self._constants for name in ("gate", "up", "down")):
                self.matches.missed[node.name] = "its weights are computed at run time"
                continue
            size = int(spec(_node(node.kwargs["gate"])).shape[1])
            if size < self._mapping.tp_size:
                raise ConfigError(f"tensor_parallel_size: expected at most {size}, the channels inside the experts of "
                                  f"{node.name}, got {self._mapping.tp_size}.")  # fmt: skip
            pieces = Pieces.dealt(size, 1, self._mapping.tp_rank, self._mapping.tp_size)
            for name, dim in (("gate", 1), ("up", 1), ("down", 2)):
                self._take(node, name, dim, pieces)
            node.meta[SHARE] = Share()
            self.matches.done.append(node.name)

    def _take(self, node: fx.Node, name: str, dim: int, pieces: Pieces) -> None:
        """Leave a part of a constant argument, if there is one."""
        value = node.kwargs.get(name)
        if isinstance(value, fx.Node):
            node.update_kwarg(name, self._cutter.take(value, dim, pieces))

    def infer(self) -> None:
        """Say again what every call results in, given pieces made whole; drop constants that nobody uses any more."""
        for node in self._network.calls():
            node.meta["spec"] = op_of(node).check(**{key: _whole(value) for key, value in node.kwargs.items()})
        constants, kept = constant_nodes(self._network), set(self._network.outputs.values())
        for node in reversed(list(self._network.graph.nodes)):
            if node in constants and not node.users and node not in kept:
                self._network.erase(node)

    def weights(self, source: WeightSource) -> WeightSource:
        """Return the weights that are left, each under its name as far as that is free."""
        left = set(self._network.graph.nodes)
        names = {
            self._network.rename_weight(node, name): (name, part)
            for node, (name, part) in self._cutter.parts.items()
            if node in left
        }
        return LocalWeights(self._network.weights, names, source)


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node), f"{value} is no node"
    return value


def _whole(value: Any) -> Any:
    """Return an argument of a call as `spec_argument` does, but pieces as what they will be gathered to."""
    share = value.meta.get(SHARE) if isinstance(value, fx.Node) else None
    if isinstance(value, fx.Node) and share is not None and share.width is not None:
        return TensorSpec((*spec(value).shape[:-1], share.width), spec(value).dtype)
    return [_whole(item) for item in value] if isinstance(value, (list, tuple)) else spec_argument(value)


def _mark(weight: fx.Node) -> int | None:
    """Return along which dimension a weight was marked to be shared, if it is made of nothing but weights so marked."""
    if weight.op == "get_attr":
        mark: int | None = weight.meta.get("shard_dim")
        return mark
    if is_call(weight, "permute") and len(spec(weight).shape) == 2:
        mark = _mark(_node(weight.kwargs["x"]))
        return None if mark is None else 1 - mark
    if is_call(weight, "concat") and weight.kwargs["dim"] == 0:
        marks = {_mark(part) for part in weight.all_input_nodes}
        return 0 if marks == {0} else None
    return None


def _head(network: Network, constants: Collection[fx.Node]) -> fx.Node | None:
    """Return the linear layer that makes the logits: the last one before ops that keep channels apart."""
    node = network.outputs.get("logits")
    while node is not None and not is_call(node, *LINEAR):
        inputs = [used for used in node.all_input_nodes if used not in constants and used.op == "call_function"]
        node = inputs[0] if is_call(node, "index_select", "cast", *ELEMENTWISE) and len(inputs) == 1 else None
    return node if node is not None and node.kwargs["weight"] in constants else None
