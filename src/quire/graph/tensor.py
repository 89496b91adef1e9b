"""`Tensor`: the symbolic value that the author of a network works with, and the network it is written into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import fx

from quire.core.errors import BuildError
from quire.graph.nodes import spec
from quire.ops.registry import OPS
from quire.ops.spec import Shape, TensorSpec

if TYPE_CHECKING:
    from quire.graph.network import Network

CURRENT: ContextVar[Network | None] = ContextVar("quire_network", default=None)
"""The network of the innermost `net_guard`."""


def current_network() -> Network:
    """Return the network of the innermost `net_guard`.

    Raises:
        BuildError: There is none.
    """
    network = CURRENT.get()
    if network is None:
        raise BuildError("no current network: expected code inside `with net_guard(network):`.")
    return network


@dataclass(frozen=True, slots=True, init=False, eq=False)
class Tensor:
    """A symbolic tensor of a network: shape and dtype, but no values.

    `Tensor("x", "float32", ("num_tokens", 64))` declares an input of the current network; strings in the shape name
    sizes known only at run time. Operators, comparisons included, add a call to the current network.

    Args:
        name: Of the input.
        dtype: Its name, for example "float32".
        shape: Sizes, and names of symbolic sizes.
        dim_range: By name of a symbolic size, the least and the most it may be.

    Attributes:
        network: The network it belongs to.
        node: Its node in the graph.

    Raises:
        BuildError: There is no current network, or the name is taken.
        ShapeError: The dtype, a size or a range is not valid.

    Example:
        >>> x = Tensor("x", "float32", ("num_tokens", 64), dim_range={"num_tokens": (1, 2048)})
    """

    network: Network
    node: fx.Node

    # numpy then leaves `numpy_number * tensor` to the operators below instead of looping over the tensor.
    __array_ufunc__ = None

    def __init__(
        self, name: str, dtype: str, shape: Sequence[int | str], dim_range: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        made = current_network().add_input(name, dtype, shape, dim_range)
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
        """Make this a result of its network.

        Raises:
            BuildError: The name is taken, or this is an output already.
        """
        self.network.mark_output(self, name)

    def view(self, *shape: int | Sequence[int]) -> Tensor:
        """Return the same elements in another shape; one -1 stands for the symbolic size."""
        return _call("view", self, _flat(shape))

    def permute(self, *dims: int | Sequence[int]) -> Tensor:
        """Return the tensor with its dimensions reordered."""
        return _call("permute", self, _flat(dims))

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        """Return the tensor with two dimensions exchanged."""
        return _call("transpose", self, dim0, dim1)

    def cast(self, dtype: str) -> Tensor:
        """Return the tensor rounded to another dtype."""
        return _call("cast", self, dtype)

    def __add__(self, other: Tensor | float) -> Tensor:
        return _call("add", self, other)

    def __sub__(self, other: Tensor | float) -> Tensor:
        return _call("sub", self, other)

    def __mul__(self, other: Tensor | float) -> Tensor:
        return _call("mul", self, other)

    def __truediv__(self, other: Tensor | float) -> Tensor:
        return _call("div", self, other)

    def __radd__(self, other: float) -> Tensor:
        return _call("add", self, other)

    def __rsub__(self, other: float) -> Tensor:
        return _call("sub", other, self)

    def __rmul__(self, other: float) -> Tensor:
        return _call("mul", self, other)

    def __rtruediv__(self, other: float) -> Tensor:
        return _call("div", other, self)

    def __neg__(self) -> Tensor:
        return _call("mul", self, -1)

    def __lt__(self, other: Tensor | float) -> Tensor:
        return _call("lt", self, other)

    def __le__(self, other: Tensor | float) -> Tensor:
        return _call("le", self, other)

    def __gt__(self, other: Tensor | float) -> Tensor:
        return _call("gt", self, other)

    def __ge__(self, other: Tensor | float) -> Tensor:
        return _call("ge", self, other)

    def __eq__(self, other: Tensor | float) -> Tensor:  # type: ignore[override]
        return _call("eq", self, other)

    def __ne__(self, other: Tensor | float) -> Tensor:  # type: ignore[override]
        return _call("ne", self, other)

    __hash__ = object.__hash__  # a symbolic tensor is itself, whatever `==` records

    def __bool__(self) -> NoReturn:
        raise BuildError(
            f"a symbolic tensor ({self}) is neither true nor false while the network is defined: expected a Python "
            "value in a condition; choose between tensors with functional.where."
        )

    def __iter__(self) -> NoReturn:
        raise BuildError(f"a symbolic tensor ({self}) cannot be iterated over; cut it with functional.split.")

    def __str__(self) -> str:
        return f"{self.node.name}: {self.spec}"


def _call(op: str, *arguments: Any) -> Tensor:
    """Add a call to the current network."""
    result = current_network().call(OPS[op], *arguments)
    assert isinstance(result, Tensor), f"{op} has not one result"
    return result


def _flat(given: Sequence[int | Sequence[int]]) -> Any:
    """Return integers given one by one or as one list."""
    return given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
