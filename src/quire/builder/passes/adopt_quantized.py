"""Take over the linear layers of a quantized checkpoint as it stores them.

before            after (AWQ)                                     after (int8, float8)
  x                 x     qweight      scales     qzeros            x                weight    weight_scale
  |    weight       |        |            |          |              |                   |          |
  |   /             |     unpack_int32    |     unpack_int32     quantize_rows          |        view, expand
  linear            |        |            |          |              |  \\               /         /
                    |     permute      permute    permute           | x_scales        /         /
                    |        |            |          |              |   /            /         /
                    |     pack_int4      /          /             linear_w8a8
                    |      /            /          /
                  linear_w4a16

Layers stored in a way that no op takes (scales for every block of float8 values, or for groups of int8 values) are
dequantized when they are read, and stay `linear`. What unpacks weights is nodes over weights, folded once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from quire.builder.passes.quantize_linear import become, quantized_rows
from quire.builder.passes.stored_layer import GroupOrders, Parts, StoredLayer
from quire.core.errors import ConfigError
from quire.core.log import get_logger
from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, spec
from quire.models.quantized import CheckpointQuantization
from quire.ops.spec import dtype_name
from quire.plan.weight_source import WeightSource
from quire.quantization.layers import base_name

_log = get_logger(__name__)


def adopt_quantized(
    network: Network, quantization: CheckpointQuantization, stored: WeightSource | None = None
) -> Matches:
    """Replace linear layers by quantized ones over the checkpoint's tensors; a layer keeps its node's name.

    Args:
        network: As defined. Mutated.
        quantization: What the checkpoint says of itself.
        stored: All its tensors under the network's names and as they are; None where weights are made up.

    Raises:
        ConfigError: A layer does not fit the fields of the config.
    """
    adoption = _Adoption(network)
    for node in network.calls():
        if not is_call(node, "linear"):
            continue
        name = base_name(node)
        scheme = "its weight is the embedding's" if _is_tied(node) else quantization.scheme_of(name)
        if isinstance(scheme, str):
            adoption.matches.missed[node.name] = scheme
            continue
        weight = _own_weight(node, name)
        shape, dtype = _fixed_shape(node), dtype_name(spec(node).dtype)
        _drop(network, node, weight)
        layer = StoredLayer(network, name, scheme, shape, dtype, stored, adoption.orders)
        with network.graph.inserting_before(node):
            adoption.adopt(node, layer)
    if adoption.dequantized:
        _log.warning(
            "%d layers are stored in a way that no op takes, and are dequantized to the model's dtype; "
            "the build report names them",
            len(adoption.dequantized),
        )
    return adoption.matches


def _is_tied(node: fx.Node) -> bool:
    """Return whether a layer's weight is an embedding's, which no checkpoint quantizes."""
    weight = node.kwargs["weight"]
    return isinstance(weight, fx.Node) and any(is_call(user, "embedding") for user in weight.users)


def _own_weight(node: fx.Node, name: str) -> fx.Node:
    """Return the weight of a layer, which may be stored transposed.

    Raises:
        ConfigError: It is not the layer's alone.
    """
    found = node.kwargs["weight"]
    if is_call(found, "permute") and len(found.users) == 1:
        found = found.kwargs["x"]
    if not isinstance(found, fx.Node) or found.op != "get_attr" or len(found.users) > 1:
        raise ConfigError(
            f"config.json, quantization_config: expected layers with a weight of their own, got {name!r} with a part "
            "of one, which cannot be read quantized. Use the unquantized checkpoint."
        )
    return found


def _fixed_shape(node: fx.Node) -> tuple[int, int]:
    """Return output and input channels of a layer."""
    weight = node.kwargs["weight"]
    assert isinstance(weight, fx.Node)
    rows, columns = spec(weight).shape
    assert isinstance(rows, int) and isinstance(columns, int), f"the weight of {node} has symbolic sizes"
    return rows, columns


def _drop(network: Network, node: fx.Node, weight: fx.Node) -> None:
    """Take away what a layer would read from a checkpoint that is not quantized."""
    used = node.kwargs["weight"]
    node.update_kwarg("weight", None)
    for unused in dict.fromkeys((used, weight)):
        assert isinstance(unused, fx.Node)
        network.erase(unused)


@dataclass(frozen=True)
class _Adoption:
    """Writes stored layers into the network.

    Attributes:
        network: Mutated.
        matches: What was done so far.
        orders: Orders of input channels that layers share.
        rows: What rounds an input that layers share.
        chosen: An input with its channels in another order, by both.
    """

    network: Network
    matches: Matches = field(default_factory=Matches)
    orders: GroupOrders = field(default_factory=GroupOrders)
    rows: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    chosen: dict[tuple[fx.Node, fx.Node], fx.Node] = field(default_factory=dict)
    dequantized: list[str] = field(default_factory=list)

    def adopt(self, node: fx.Node, layer: StoredLayer) -> None:
        """Turn a `linear` call into one over stored tensors."""
        bias, parts = layer.bias(node.kwargs["bias"]), layer.parts()
        if layer.has_int4_op:
            self._int4(node, layer, parts, bias)
        elif layer.has_8bit_op:
            self._8bit(node, layer, parts, bias)
        else:
            self._dequantize(node, layer, parts, bias)
            return
        self.matches.done.append(node.name)

    def _int4(self, node: fx.Node, layer: StoredLayer, parts: Parts, bias: Any) -> None:
        x, weight = node.kwargs["x"], layer.call("pack_int4", f"{node.name}_int4", values=parts.values)
        assert isinstance(x, fx.Node) and parts.zero_points is not None
        if parts.order is not None:
            if (x, parts.order) not in self.chosen:
                name = f"{node.name}_x"
                self.chosen[x, parts.order] = layer.call("index_select", name, x=x, index=parts.order, dim=-1)
            x = self.chosen[x, parts.order]
        _name(layer.name, weight=weight, scales=parts.scales, zero_points=parts.zero_points)
        become(node, "linear_w4a16", {"x": x, "weight": weight, "scales": parts.scales,
                                      "zero_points": parts.zero_points, "bias": bias})  # fmt: skip

    def _8bit(self, node: fx.Node, layer: StoredLayer, parts: Parts, bias: Any) -> None:
        scales = layer.per_channel(parts.scales)
        _name(layer.name, weight=parts.values, scales=scales)
        kept = {"weight": parts.values, "scales": scales, "bias": bias}
        if not layer.scheme.rounds_activations:
            become(node, "linear_w8a16", {"x": node.kwargs["x"], **kept})
            return
        x, x_scales = quantized_rows(self.network, node, layer.scheme.dtype, self.rows)
        become(node, "linear_w8a8", {"x": x, "x_scales": x_scales, **kept, "dtype": layer.dtype})

    def _dequantize(self, node: fx.Node, layer: StoredLayer, parts: Parts, bias: Any) -> None:
        rows, columns = layer.block
        name = f"{node.name}_dequantized"
        weight = layer.call("dequantize_weight", name, weight=parts.values, scales=parts.scales, block=[rows, columns],
                            zero_points=parts.zero_points, dtype=layer.dtype)  # fmt: skip
        if parts.order is not None:  # where each channel went is where it is found
            weight = layer.call("index_select", name, x=weight, index=layer.call("argsort", keys=parts.order), dim=1)
        _name(layer.name, weight=weight)
        become(node, "linear", {"x": node.kwargs["x"], "weight": weight, "bias": bias})
        self.matches.missed[node.name] = (
            f"no op takes {layer.scheme.dtype} with a scale for every {rows} x {columns} values: "
            f"dequantized to {layer.dtype}"
        )
        self.dequantized.append(node.name)


def _name(layer: str, **parts: fx.Node) -> None:
    """Let what is computed from stored tensors be stored under the layer's name."""
    for suffix, node in parts.items():
        if node.op == "call_function":
            node.meta["weight_name"] = f"{layer}.{suffix}"
