"""Constants of a graph: weights, and every call that depends on weights or nothing alone, computed once.

What a pass does to weights (joins, scales, quantizes them) is calls over weight nodes. They are computed here, one
tensor at a time: when an executor binds a graph, or when a plan whose weights changed is read or saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any

import torch
from torch import fx

from quire.core.errors import PlanError
from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of, spec
from quire.ops.spec import TensorSpec, num_bytes, sizes_of, spec_of
from quire.plan.weight_source import WeightSource, empty_weight

_CPU = torch.device("cpu")


def constant_nodes(network: Network) -> set[fx.Node]:
    """Return the weights and every call that depends on weights or nothing alone."""
    found: set[fx.Node] = set()
    for node in network.graph.nodes:
        is_fold = (
            node.op == "call_function" and not op_of(node).mutates and all(i in found for i in node.all_input_nodes)
        )
        if node.op == "get_attr" or is_fold:
            found.add(node)
    return found


class Constants:
    """The values of a graph's constant nodes, computed when asked for and dropped after their last use.

    Args:
        network: The graph.
        weights: Its weights.
        on_read: Called after each weight that has been read.
        device: Where values are computed: each weight goes there when it has been read.
    """

    def __init__(
        self,
        network: Network,
        weights: WeightSource,
        on_read: Callable[[], None] | None = None,
        device: torch.device = _CPU,
    ) -> None:
        self._weights = weights
        self._device = device
        self._on_read = on_read or (lambda: None)
        self._values: dict[fx.Node, Any] = {}
        self._pending = Counter(used for node in network.calls() for used in node.all_input_nodes)
        self._pending.update(network.outputs.values())

    def value(self, node: fx.Node) -> Any:
        """Return the value of a constant node: a tensor, or a tuple of them.

        Raises:
            PlanError: A weight is missing, damaged, or not of its declared shape and dtype.
        """
        if node not in self._values:
            if node.op == "get_attr":
                self._values[node] = self._read(node)
            elif is_call(node, "concat") and self._device.type == "cpu":
                self._values[node] = self._joined(node)
            else:
                arguments = {name: self._argument(value) for name, value in node.kwargs.items()}
                with self._device if self._device.type != "cpu" else nullcontext():
                    self._values[node] = op_of(node).reference(**arguments)
                del arguments
                for used in node.all_input_nodes:
                    self.release(used)
        return self._values[node]

    def _joined(self, node: fx.Node) -> torch.Tensor:
        """Join weights: where they are, if they lie one behind the other, or else in memory of its own.

        Then one of the parts is held at a time.
        """
        declared, dim, start = spec(node), int(str(node.kwargs["dim"])), 0
        parts = [part for part in node.kwargs["tensors"] if isinstance(part, fx.Node)]  # type: ignore[union-attr]
        joined = self._in_place(parts, declared) if dim == 0 else None
        is_there = joined is not None
        joined = empty_weight(declared) if joined is None else joined
        last = {part: place for place, part in enumerate(parts)}
        for place, part in enumerate(parts):
            size = int(spec(part).shape[dim])
            if not is_there:
                joined.narrow(dim, start, size).copy_(self.value(part))
            start += size
            if last[part] == place:
                self.release(part)
        return joined

    def _in_place(self, parts: Sequence[fx.Node], declared: TensorSpec) -> torch.Tensor | None:
        """Return the memory that parts lie in one behind the other, and nothing else does; None if there is none."""
        first = self.value(parts[0])
        if first.storage_offset() != 0 or first.untyped_storage().nbytes() != num_bytes(declared):
            return None
        address = first.data_ptr()
        for part in parts:
            value = self.value(part)
            if value.data_ptr() != address or not value.is_contiguous():
                return None
            address += value.nbytes
        sizes = sizes_of(declared)
        joined: torch.Tensor = first.as_strided(sizes, torch.empty(sizes, device="meta").stride())
        return joined

    def release(self, node: fx.Node) -> None:
        """Count one use of a node as done; its value is dropped after the last."""
        self._pending[node] -= 1
        if self._pending[node] == 0:
            self._values.pop(node, None)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.value(value)
        return [self._argument(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _read(self, node: fx.Node) -> torch.Tensor:
        name, declared = str(node.target), node.meta["spec"]
        tensor = self._weights.read(name)
        if spec_of(tensor) != declared:
            raise PlanError(f"weight {name!r}: expected {declared}, got {spec_of(tensor)}.")
        self._on_read()
        return tensor.to(self._device)


class FoldedWeights:
    """A `WeightSource` of what a network of constants computes from another source.

    Args:
        recipe: A network without inputs; its outputs are the tensors of this source, weights passed on included.
        source: The weights of `recipe`.
    """

    def __init__(self, recipe: Network, source: WeightSource) -> None:
        self._recipe = recipe
        self._source = source
        self._constants = Constants(recipe, source)
        self._unread = set(recipe.outputs)
        self._lock = Lock()

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._recipe.outputs.keys()

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor.

        Raises:
            PlanError: There is no such tensor.
        """
        return spec(self._node(name))

    def read(self, name: str) -> torch.Tensor:
        """Compute one tensor. What several of them share is computed once a round and kept until its last use.

        Raises:
            PlanError: There is no such tensor, or one that it is made of cannot be read.
        """
        node = self._node(name)
        with self._lock:
            if name not in self._unread:  # a new round
                self._constants = Constants(self._recipe, self._source)
                self._unread = set(self._recipe.outputs)
            self._unread.discard(name)
            tensor: torch.Tensor = self._constants.value(node)
            self._constants.release(node)
        return tensor

    def _node(self, name: str) -> fx.Node:
        if name not in self._recipe.outputs:
            raise PlanError(f"folded weights: expected a tensor of the plan, got {name!r}.")
        return self._recipe.outputs[name]
