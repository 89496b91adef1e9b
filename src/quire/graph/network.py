"""`Network`: one `torch.fx.Graph` of Quire's ops."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import takewhile
from typing import Any, ParamSpec, TypeVar

import torch
from torch import fx

from quire.core.errors import BuildError
from quire.graph.declared import declared_ranges, declared_spec
from quire.graph.interpreter import interpret
from quire.graph.nodes import spec, spec_argument
from quire.graph.printer import format_graph
from quire.graph.tensor import CURRENT, Tensor, current_network
from quire.ops.op import Op, is_tensor
from quire.ops.registry import OPS
from quire.ops.spec import TensorSpec

__all__ = ["Network", "Tensor", "all_or_nothing", "current_network", "net_guard"]

P = ParamSpec("P")
R = TypeVar("R")


class Network:
    """A model as data: inputs, weights named as in the checkpoint, op calls in order, outputs.

    Attributes:
        name: Shown when printed.
        graph: The `torch.fx.Graph`; every node carries its `TensorSpec` in `node.meta["spec"]`.

    Raises:
        BuildError: The name is empty or no text.
    """

    def __init__(self, name: str = "network") -> None:
        if not isinstance(name, str) or not name:
            raise BuildError(f"network: expected a name, got {name!r}.")
        self.name = name
        self.graph = fx.Graph()
        self._inputs: dict[str, fx.Node] = {}
        self._weights: dict[str, fx.Node] = {}
        self._outputs: dict[str, fx.Node] = {}
        self._ranges: dict[str, tuple[int, int]] = {}

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Specs of the inputs by name, in order."""
        return {name: spec(node) for name, node in self._inputs.items()}

    @property
    def weights(self) -> Mapping[str, TensorSpec]:
        """Specs of the weights by checkpoint name, in order of first use."""
        return {name: spec(node) for name, node in self._weights.items()}

    @property
    def outputs(self) -> Mapping[str, fx.Node]:
        """The nodes marked as outputs, by name."""
        return dict(self._outputs)

    @property
    def ranges(self) -> Mapping[str, tuple[int, int]]:
        """Least and most of the symbolic sizes that were declared with a range."""
        return dict(self._ranges)

    def add_input(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int | str],
        dim_range: Mapping[str, tuple[int, int]] | None = None,
    ) -> Tensor:
        """Declare an input; see `Tensor`.

        Raises:
            BuildError: There is no name, or it is taken.
            ShapeError: The dtype, a size or a range is not valid.
        """
        wanted = declared_spec("input", name, dtype, shape)
        ranges = declared_ranges(name, wanted, dim_range or {}, self._ranges)
        if name in self._inputs:
            raise BuildError(f"input {name!r} of {self.name} is declared twice; choose another name.")
        node = self.graph.placeholder(name)
        node.meta["spec"] = wanted
        self._inputs[name] = node
        self._ranges |= ranges
        return Tensor.of(self, node)

    def add_weight(self, name: str, dtype: str, shape: Sequence[int | str], shard_dim: int | None = None) -> Tensor:
        """Declare a weight by its name in the checkpoint, or return it if it was declared before (tied weights).

        Args:
            name: Its name in the checkpoint.
            dtype: Its name, for example "bfloat16".
            shape: Its sizes, none of them symbolic.
            shard_dim: The dimension along which ranks share it under tensor parallelism; None: every rank holds all.

        Raises:
            BuildError: The name is empty or was declared with another shape, dtype or `shard_dim`.
            ShapeError: The dtype or a size is not valid.
        """
        wanted = declared_spec("weight", name, dtype, shape)
        if name not in self._weights:
            node = self.graph.get_attr(name)
            node.meta |= {"spec": wanted, "shard_dim": shard_dim}
            self._weights[name] = node
        first = self._weights[name]
        if spec(first) != wanted:
            raise BuildError(f"weight {name!r}: expected {spec(first)} as declared first, got {wanted}.")
        if first.meta["shard_dim"] != shard_dim:
            raise BuildError(
                f"weight {name!r}: expected shard_dim {first.meta['shard_dim']} as declared first, got {shard_dim}."
            )
        return Tensor.of(self, first)

    def call(self, op: Op[..., Any], *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...] | None:
        """Append one op call; tensors among the arguments are symbolic.

        Returns:
            Its symbolic result; a tuple if it has several, None if it only mutates.

        Raises:
            ShapeError: The arguments do not fit the op.
            BuildError: A tensor belongs to another network.
        """
        bound = op.bind(args, kwargs)
        for value in bound.values():
            self._check_is_mine(op, value)
        node = self.insert(op, {name: _as_node(value) for name, value in bound.items()})
        found = node.meta["spec"]
        if isinstance(found, tuple):
            return tuple(Tensor.of(self, self.item(node, i)) for i in range(len(found)))
        return None if found is None else Tensor.of(self, node)

    def insert(self, op: Op[..., Any], arguments: Mapping[str, Any], name: str = "") -> fx.Node:
        """Add a call at the graph's insertion point; arguments are nodes and constants by parameter name.

        Raises:
            ShapeError: The arguments do not fit the op.
        """
        nodes = op.bind((), dict(arguments))
        inferred = op.check(**{key: spec_argument(value) for key, value in nodes.items()})
        node = self.graph.create_node("call_function", op, (), nodes, name=name or _name_hint(op, nodes))
        node.meta["spec"] = inferred
        return node

    def item(self, node: fx.Node, index: int, name: str = "") -> fx.Node:
        """Add the node of one of several results of a call."""
        return self.insert(OPS["item"], {"results": node, "index": index}, name or f"{node.name}_{index}")

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let all users of a node, outputs included, use another; the old one stays without users (for passes)."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        for name, node in self._outputs.items():
            if node is old:
                self._outputs[name] = new

    def mark_output(self, tensor: Tensor, name: str) -> None:
        """Make a tensor a result of the network.

        Raises:
            BuildError: The tensor belongs to another network or is an output already, or the name is taken or empty.
        """
        if not isinstance(tensor, Tensor) or not isinstance(name, str) or not name:
            raise BuildError(f"mark_output: expected a symbolic tensor and a name, got {tensor!r} and {name!r}.")
        self._check_is_mine(None, tensor)
        if name in self._outputs:
            raise BuildError(f"output {name!r} of {self.name} is marked twice; choose another name.")
        marked = next((other for other, node in self._outputs.items() if node is tensor.node), None)
        if marked is not None:
            raise BuildError(f"output {name!r} of {self.name}: {tensor} is marked as {marked!r} already.")
        self._outputs[name] = tensor.node

    def unmark_output(self, name: str) -> None:
        """Let a tensor be a result of the network no more (for passes)."""
        del self._outputs[name]

    def calls(self) -> list[fx.Node]:
        """Return the op call nodes in order."""
        return [node for node in self.graph.nodes if node.op == "call_function"]

    def erase(self, node: fx.Node) -> None:
        """Remove a node without users (for passes)."""
        self.graph.erase_node(node)
        if node.op == "get_attr":
            del self._weights[str(node.target)]
        elif node.op == "placeholder":
            del self._inputs[str(node.target)]

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Take back what the block has added if it raises: a network never keeps half of a layer."""
        last = next(iter(reversed(self.graph.nodes)), None)
        outputs, ranges = dict(self._outputs), dict(self._ranges)
        try:
            yield
        except BaseException:
            for node in takewhile(lambda node: node is not last, list(reversed(self.graph.nodes))):
                self.erase(node)
            self._outputs, self._ranges = outputs, ranges
            raise

    def rename_weight(self, node: fx.Node, name: str) -> str:
        """Give a weight another name, or that name with a number where it is taken; returns it (for passes)."""
        del self._weights[str(node.target)]
        taken, free = 1, name
        while free in self._weights:
            taken, free = taken + 1, f"{name}.{taken}"
        node.target = free
        self._weights[free] = node
        return free

    def run(
        self, inputs: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Run the references of all ops: the definition of what this network computes, on any machine.

        Args:
            inputs: A tensor per input, of its declared dtype and shape; inputs that an op mutates are written to.
            weights: A tensor per weight.

        Returns:
            A tensor per output.

        Raises:
            ShapeError: An input or a weight is missing, has another shape or dtype, or a size is out of its range.
        """
        return interpret(self.graph, self._outputs, inputs, weights or {}, self._ranges)

    def __str__(self) -> str:
        return format_graph(self.name, self.graph, self._outputs, self._ranges)

    def _check_is_mine(self, op: Op[..., Any] | None, value: Any) -> None:
        """Refuse tensors that are not symbolic ones of this network among an argument."""
        where = f"{op.name}: " if op else ""
        if isinstance(value, Tensor):
            if value.network is not self:
                raise BuildError(f"{where}expected a tensor of network {self.name!r}, got {value} of another network.")
        elif is_tensor(value):
            raise BuildError(
                f"{where}expected a symbolic tensor, got one with values ({type(value).__name__}); declare it with "
                "network.add_weight, and give its values when the network is run or built."
            )
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._check_is_mine(op, item)


def _as_node(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.node
    if isinstance(value, (list, tuple)):
        return [_as_node(item) for item in value]
    return value


def _name_hint(op: Op[..., Any], nodes: Mapping[str, Any]) -> str:
    """Name a node after its weight (`model.norm.weight` -> `model_norm`), or else after its op."""
    weight = nodes.get("weight")
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return str(weight.target).removesuffix(".weight").replace(".", "_") + (
            "" if op.name != "embedding" else "_rows"
        )
    return op.name


@contextlib.contextmanager
def net_guard(network: Network) -> Iterator[Network]:
    """Make `network` the current one inside the block; the previous one is restored however the block ends.

    If the block raises, the network is as it was before: nothing of the block is left in it.

    Raises:
        BuildError: `network` is none.
    """
    if not isinstance(network, Network):
        raise BuildError(f"net_guard: expected a Network, got {type(network).__name__}.")
    token = CURRENT.set(network)
    try:
        with network.all_or_nothing():
            yield network
    finally:
        CURRENT.reset(token)


def all_or_nothing(add: Callable[P, R]) -> Callable[P, R]:
    """Let a function that adds several nodes to the current network add all of them or, if it raises, none."""

    @wraps(add)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with current_network().all_or_nothing():
            return add(*args, **kwargs)

    return call
