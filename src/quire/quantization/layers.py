"""Which linear layers of a network are quantized, and what they are called."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from quire.core.config import BuildConfig
from quire.core.errors import ConfigError, did_you_mean
from quire.graph.network import Network
from quire.graph.nodes import is_call, spec
from quire.plan.folding import constant_nodes

LM_HEAD = "lm_head"
"""What the projection to the vocabulary is called, even where its weight is the embedding's."""


def layers_to_quantize(network: Network, config: BuildConfig) -> tuple[dict[fx.Node, str], dict[str, str]]:
    """Return the scheme of each linear layer to quantize in order, and the name of each other one with the reason.

    What makes the logits, if it is not excluded, has eight bits where others have four.

    Raises:
        ConfigError: A name in `config.exclude` matches no layer.
    """
    constants = constant_nodes(network)
    chosen: dict[fx.Node, str] = {}
    skipped: dict[str, str] = {}
    known: set[str] = {LM_HEAD}
    for node in network.calls():
        if not is_call(node, "linear"):
            continue
        names = layer_names(network, node)
        known.update(names)
        scheme = "w8a16" if LM_HEAD in names and config.quantization == "w4a16" else str(config.quantization)
        reason = _why_not(node, names, constants, config, scheme)
        if reason is None:
            chosen[node] = scheme
        else:
            skipped[node.name] = reason
    _check_excluded(config.exclude, known)
    return chosen, skipped


def layer_names(network: Network, node: fx.Node) -> list[str]:
    """Return what a user may call a linear layer: its parts' names in the checkpoint, and its node's name."""
    names = [weight.removesuffix(".weight") for weight in weights_below(node.kwargs["weight"])]
    if node in network.outputs.values():
        names.append(LM_HEAD)
    return [*names, node.name]


def weights_below(value: object) -> list[str]:
    """Return the names of the weights that a constant is made of, in order."""
    if not isinstance(value, fx.Node):
        return []
    if value.op == "get_attr":
        return [str(value.target)]
    return list(dict.fromkeys(name for used in value.all_input_nodes for name in weights_below(used)))


def _why_not(
    node: fx.Node, names: Collection[str], constants: Collection[fx.Node], config: BuildConfig, scheme: str
) -> str | None:
    weight = node.kwargs["weight"]
    if weight not in constants or not isinstance(weight, fx.Node):
        return "its weight is computed at run time"
    for pattern in config.exclude:
        if any(_matches(pattern, name) for name in names):
            return f"excluded by {pattern!r}"
    in_features = spec(weight).shape[1]
    if scheme == "w4a16" and (not isinstance(in_features, int) or in_features % config.group_size):
        return f"in_features {in_features} is no multiple of group_size {config.group_size}"
    return None


def _matches(pattern: str, name: str) -> bool:
    """Return whether a pattern is whole dotted parts of a name: `layers.1` is in `layers.1.mlp`, not in `layers.10`."""
    return f".{pattern}." in f".{name}."


def _check_excluded(patterns: Collection[str], known: Collection[str]) -> None:
    for pattern in patterns:
        if not any(_matches(pattern, name) for name in known):
            parts = {part for name in known for part in (name, *name.split("."))}
            hint = did_you_mean(pattern, parts)
            raise ConfigError(f"exclude: expected the name of a linear layer or part of one, got {pattern!r}.{hint}")


def base_name(node: fx.Node) -> str:
    """Return the dotted name of a linear layer: that of its weight without `.weight`, joined weights included."""
    weight = node.kwargs["weight"]
    assert isinstance(weight, fx.Node)
    parts = weights_below(weight)
    name = weight.meta.get("weight_name") or (parts[0] if len(parts) == 1 else node.name)
    return str(name).removesuffix(".weight")
