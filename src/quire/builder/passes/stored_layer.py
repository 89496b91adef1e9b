"""`StoredLayer`: nodes over the tensors of a quantized linear layer, as a checkpoint stores it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import fx

from quire.core.errors import ConfigError
from quire.graph.network import Network
from quire.models.quantized import WHOLE, StoredScheme
from quire.ops.registry import OPS
from quire.ops.spec import TensorSpec, dtype_name
from quire.plan.weight_source import WeightSource

ONES = {4: 0x11111111, 8: 0x01010101}
"""A word of packed values that are all 1. Whole words are added: tools subtract them that way, borrowing and all."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a weight is made of, its input channels in the order of `order` if there is one.

    Attributes:
        values: [out_features, in_features], uint8 | int8 | float8_e4m3fn.
        scales: [out_features / rows, in_features / columns] of a block, rounded up.
        zero_points: Shape of `scales`, uint8; None where the values have their sign.
        order: [in_features], int32: which input channel comes first, second, ...
    """

    values: fx.Node
    scales: fx.Node
    zero_points: fx.Node | None = None
    order: fx.Node | None = None


@dataclass(slots=True)
class GroupOrders:
    """Orders of input channels that layers share, by their values."""

    nodes: dict[bytes, fx.Node] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredLayer:
    """One quantized linear layer of a checkpoint. Nodes are added where the graph's insertion point is.

    Attributes:
        network: Takes the nodes.
        name: Of the layer, without `.weight`.
        scheme: How it is stored.
        shape: Output and input channels.
        dtype: Of the activations.
        stored: The checkpoint under the network's names; None where weights are made up.
        orders: Shared by all layers.
    """

    network: Network
    name: str
    scheme: StoredScheme
    shape: tuple[int, int]
    dtype: str
    stored: WeightSource | None
    orders: GroupOrders

    @cached_property
    def block(self) -> tuple[int, int]:
        """Output and input channels that share a scale."""
        rows, columns = (
            size if part == WHOLE else part for part, size in zip(self.scheme.block, self.shape, strict=True)
        )
        if self.scheme.block == (WHOLE, WHOLE) and self._num_plain_scales == self.shape[0]:
            rows = 1  # the config of FP8 does not tell one from the other
        if self.scheme.layout != "plain" and self.shape[1] % columns:
            raise ConfigError(
                f"config.json, quantization_config, group_size: expected a divisor of the {self.shape[1]} input "
                f"channels of {self.name}, got {columns}."
            )
        return rows, columns

    @property
    def grid(self) -> tuple[int, int]:
        """How many scales there are along output and input channels."""
        rows, columns = (-(-size // part) for size, part in zip(self.shape, self.block, strict=True))
        return rows, columns

    @property
    def has_int4_op(self) -> bool:
        """Whether `linear_w4a16` takes it."""
        return self.scheme.dtype == "int4" and self.shape[1] % 2 == 0

    @property
    def has_8bit_op(self) -> bool:
        """Whether `linear_w8a16` and `linear_w8a8` take it: one scale an output channel, or one for all, no more."""
        return self.scheme.bits == 8 and not self.scheme.has_zero_points and self.grid in ((self.shape[0], 1), (1, 1))

    def bias(self, declared: Any) -> Any:
        """Return the bias: the network's own, or one that is stored although the model has none, as GPTQ tools do."""
        if declared is not None or self._spec("bias") is None:
            return declared
        return self._weight("bias", self.dtype, (self.shape[0],))

    def parts(self) -> Parts:
        """Add what unpacks the weight."""
        if self.scheme.layout == "plain":
            return Parts(self._weight("weight", self.scheme.dtype, self.shape), self._plain_scales())
        if self.scheme.layout == "packed":
            return self._ordered(self._packed())
        return self._ordered(self._awq() if self.scheme.layout == "awq" else self._gptq())

    def per_channel(self, scales: fx.Node) -> fx.Node:
        """Return the scales of an 8-bit op, [out_features], float32."""
        flat = self.call("view", x=scales, shape=[prod(self.grid)])
        return flat if self.grid[0] == self.shape[0] else self.call("expand", x=flat, shape=[self.shape[0]])

    def call(self, op: str, /, name: str = "", **arguments: Any) -> fx.Node:
        """Add a call, under a name of its own or one that follows from its op."""
        return self.network.insert(OPS[op], arguments, name or op)

    def _packed(self) -> Parts:
        """compressed-tensors: values [out, in] packed along the input, zero points [out, groups] along the output."""
        if (shape := self._spec("weight_shape")) is not None:  # checked to be there, and dropped
            self._weight("weight_shape", dtype_name(shape.dtype), (2,))
        values = self._unpacked("weight_packed", self.shape, dim=1, is_signed=self.has_8bit_op)
        scales = self._weight("weight_scale", self._scale_dtype, self.grid)
        if self.has_8bit_op:
            return Parts(values, scales)
        if self.scheme.has_zero_points:
            return Parts(values, scales, self._unpacked("weight_zero_point", self.grid, dim=0))
        middle = 1 << self.scheme.bits - 1
        return Parts(values, scales, self.call("full", shape=list(self.grid), value=middle, dtype="uint8"))

    def _awq(self) -> Parts:
        """AWQ: values [in, out] and zero points [groups, out], packed along the output, every second value first."""
        rows, groups = self.grid
        values = self._unpacked("qweight", self.shape[::-1], dim=1, is_interleaved=True)
        zeros = self._unpacked("qzeros", (groups, rows), dim=1, is_interleaved=True)
        scales = self._weight("scales", self._scale_dtype, (groups, rows))
        return Parts(*(self.call("permute", x=node, dims=[1, 0]) for node in (values, scales, zeros)))

    def _gptq(self) -> Parts:
        """GPTQ: values [in, out] packed along the input, zero points [groups, out] along the output."""
        rows, groups = self.grid
        values = self._unpacked("qweight", self.shape[::-1], dim=0)
        zeros = self._unpacked("qzeros", (groups, rows), dim=1, add=self.scheme.zero_point_offset)
        scales = self._weight("scales", self._scale_dtype, (groups, rows))
        return Parts(*(self.call("permute", x=node, dims=[1, 0]) for node in (values, scales, zeros)))

    def _unpacked(self, suffix: str, shape: Sequence[int], *, dim: int, add: int = 0, **options: Any) -> fx.Node:
        """Return a packed tensor as [rows, columns] values of eight bits each."""
        per_word = 32 // self.scheme.bits
        words = [-(-size // per_word) if axis == dim else size for axis, size in enumerate(shape)]
        packed = self._weight(suffix, "int32", words)
        if add:
            packed = self.call("add", x=packed, y=ONES[self.scheme.bits])
        values = self.call("unpack_int32", packed=packed, bits=self.scheme.bits, dim=dim, **options)
        if words[dim] * per_word == shape[dim]:
            return values
        return self.call("slice", x=values, dim=dim, start=0, stop=shape[dim])

    def _plain_scales(self) -> fx.Node:
        """Return scales that are stored under either name; a scalar or a vector, too, where an 8-bit op takes them."""
        suffix = self._plain_scale_name
        found = self._spec(suffix)
        if found is not None and self.has_8bit_op and self._num_plain_scales == prod(self.grid):
            return self._weight(suffix, "float32", [int(size) for size in found.shape])
        return self._weight(suffix, "float32", self.grid)

    @property
    def _plain_scale_name(self) -> str:
        names = ("weight_scale", "weight_scale_inv")
        return next((name for name in names if self._spec(name) is not None), names[0])

    @property
    def _num_plain_scales(self) -> int | None:
        found = self._spec(self._plain_scale_name)
        return None if found is None else prod(int(size) for size in found.shape)

    def _ordered(self, parts: Parts) -> Parts:
        """Put input channels of a group beside each other."""
        order = self._group_order()
        if order is None:
            return parts
        values = self.call("index_select", x=parts.values, index=order, dim=1)
        return Parts(values, parts.scales, parts.zero_points, order)

    def _group_order(self) -> fx.Node | None:
        """Return the order of input channels, None if groups follow it anyway."""
        suffix = "weight_g_idx" if self.scheme.layout == "packed" else "g_idx"
        found = self._spec(suffix)
        if self.stored is None or (found is None and not self.scheme.has_group_order):
            return None
        dtype = "int32" if found is None else dtype_name(found.dtype)
        index = self._weight(suffix, dtype, (self.shape[1],))
        if found is None or found.shape != (self.shape[1],):
            return None  # opening the weights will say so
        groups = self.stored.read(f"{self.name}.{suffix}").long()
        expected = torch.arange(self.shape[1]) // self.block[1]
        if torch.equal(groups, expected):
            return None
        if not torch.equal(groups.sort().values, expected):
            raise ConfigError(
                f"config.json, quantization_config, group_size: expected {self.block[1]} input channels in every group "
                f"of {self.name}, got groups of other sizes in {suffix!r}; they have no op."
            )
        key = groups.numpy().tobytes()
        if key not in self.orders.nodes:
            self.orders.nodes[key] = self.call("argsort", keys=index)
        return self.orders.nodes[key]

    @property
    def _scale_dtype(self) -> str:
        return self.dtype if self.has_int4_op else "float32"

    def _spec(self, suffix: str) -> TensorSpec | None:
        """Return what is stored under a name, if anything."""
        if self.stored is None or f"{self.name}.{suffix}" not in self.stored.names():
            return None
        return self.stored.spec(f"{self.name}.{suffix}")

    def _weight(self, suffix: str, dtype: str, shape: Sequence[int]) -> fx.Node:
        return self.network.add_weight(f"{self.name}.{suffix}", dtype, tuple(shape)).node
