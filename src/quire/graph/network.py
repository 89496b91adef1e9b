"""`Network`: one `torch.fx.Graph` of Quire's ops, and `Tensor`, the symbolic value a model author works with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from quire.core.errors import BuildError
from quire.graph.interpreter import interpret
from quire.graph.nodes import spec, spec_argument
from quire.graph.printer import format_graph
from quire.ops.op import Op
from quire.ops.registry import OPS
from quire.ops.spec import Shape, TensorSpec, dtype_of

_current: ContextVar[Network | None] = ContextVar("quire_network", default=None)


class Network:
    """A model as data: inputs, weights named as in the checkpoint, op calls in order, outputs.

    Attributes:
        name: Shown when printed.
        graph: The `torch.fx.Graph`; every node carries its `TensorSpec` in `node.meta["spec"]`.
    """

    def __init__(self, name: str = "network") -> None:
        self.name = name
        self.graph = fx.Graph()
        self._inputs: dict[str, fx.Node] = {}
        self._weights: dict[str, fx.Node] = {}
        self._outputs: dict[str, fx.Node] = {}

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

    def add_input(self, name: str, dtype: str, shape: Shape) -> Tensor:
        """Declare an input.

        Raises:
            BuildError: The name is taken.
        """
        if name in self._inputs:
            raise BuildError(f"input {name!r} of {self.name} is declared twice; choose another name.")
        node = self.graph.placeholder(name)
        node.meta["spec"] = TensorSpec(tuple(shape), dtype_of(dtype))
        self._inputs[name] = node
        return Tensor.of(self, node)

    def add_weight(self, name: str, dtype: str, shape: Shape) -> Tensor:
        """Declare a weight by its name in the checkpoint, or return it if it was declared before (tied weights).

        Raises:
            BuildError: The name is empty or was declared with another shape or dtype.
        """
        wanted = TensorSpec(tuple(shape), dtype_of(dtype))
        if not name:
            raise BuildError(f"a weight of {wanted} has no name: expected its name in the checkpoint, got ''.")
        if name not in self._weights:
            node = self.graph.get_attr(name)
            node.meta["spec"] = wanted
            self._weights[name] = node
        if spec(self._weights[name]) != wanted:
            raise BuildError(f"weight {name!r}: expected {spec(self._weights[name])} as declared first, got {wanted}.")
        return Tensor.of(self, self._weights[name])

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
            BuildError: The tensor belongs to another network, or the name is taken.
        """
        self._check_is_mine(None, tensor)
        if name in self._outputs:
            raise BuildError(f"output {name!r} of {self.name} is marked twice; choose another name.")
        self._outputs[name] = tensor.node

    def calls(self) -> list[fx.Node]:
        """Return the op call nodes in order."""
        return [node for node in self.graph.nodes if node.op == "call_function"]

    def erase(self, node: fx.Node) -> None:
        """Remove a node without users (for passes)."""
        self.graph.erase_node(node)
        if node.op == "get_attr":
            del self._weights[str(node.target)]

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
            ShapeError: An input or a weight is missing or has another shape or dtype.
        """
        return interpret(self.graph, self._outputs, inputs, weights or {})

    def __str__(self) -> str:
        return format_graph(self.name, self.graph, self._outputs)

    def _check_is_mine(self, op: Op[..., Any] | None, value: Any) -> None:
        """Refuse tensors of another network among an argument."""
        if isinstance(value, Tensor) and value.network is not self:
            where = f"{op.name}: " if op else ""
            raise BuildError(f"{where}expected a tensor of network {self.name!r}, got {value} of another network.")
        if isinstance(value, (list, tuple)):
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


@dataclass(frozen=True, slots=True, init=False, eq=False)
class Tensor:
    """A symbolic tensor of a network.

    `Tensor("x", "float32", ("num_tokens", 64))` declares an input of the current network; strings in the shape name
    sizes known only at run time.

    Attributes:
        network: The network it belongs to.
        node: Its node in the graph.
    """

    network: Network
    node: fx.Node

    def __init__(self, name: str, dtype: str, shape: Shape) -> None:
        made = current_network().add_input(name, dtype, shape)
        object.__setattr__(self, "network", made.network)
        object.__setattr__(self, "node", made.node)

    @classmethod
    def of(cls, network: Network, node: fx.Node) -> Tensor:
        """Wrap a node."""
        tensor = object.__new__(cls)
        object.__setattr__(tensor, "network", network)
        object.__setattr__(tensor, "node", node)
        return tensor

    @property
    def spec(self) -> TensorSpec:
        """Shape and dtype."""
        return spec(self.node)

    @property
    def shape(self) -> Shape:
        """Sizes; strings are symbolic."""
        return self.spec.shape

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return self.spec.dtype

    def mark_output(self, name: str) -> None:
        """Make this a result of its network."""
        self.network.mark_output(self, name)

    def _op(self, name: str, *args: Any) -> Tensor:
        result = self.network.call(OPS[name], self, *args)
        assert isinstance(result, Tensor)
        return result

    def __add__(self, other: Tensor | float) -> Tensor:
        return self._op("add", other)

    def __sub__(self, other: Tensor | float) -> Tensor:
        return self._op("sub", other)

    def __mul__(self, other: Tensor | float) -> Tensor:
        return self._op("mul", other)

    def __truediv__(self, other: Tensor | float) -> Tensor:
        return self._op("div", other)

    def view(self, *shape: int) -> Tensor:
        """Return the same elements in another shape; one -1 stands for the symbolic size."""
        return self._op("view", shape)

    def permute(self, *dims: int) -> Tensor:
        """Return the tensor with its dimensions reordered."""
        return self._op("permute", dims)

    def cast(self, dtype: str) -> Tensor:
        """Return the tensor rounded to another dtype."""
        return self._op("cast", dtype)

    def __str__(self) -> str:
        return f"{self.node.name}: {self.spec}"


def current_network() -> Network:
    """Return the network of the innermost `net_guard`.

    Raises:
        BuildError: There is none.
    """
    network = _current.get()
    if network is None:
        raise BuildError("no current network: expected code inside `with net_guard(network):`.")
    return network


@contextlib.contextmanager
def net_guard(network: Network) -> Iterator[Network]:
    """Make `network` the current one inside the block; the previous one is restored however the block ends."""
    token = _current.set(network)
    try:
        yield network
    finally:
        _current.reset(token)
