"""Leave the layers of one stage of a pipeline; what crosses the cut is sent on by one stage, received by the next.

before                          stage 0                          stage 1
  embedding                       embedding                        recv
  |                               |                                |
  (layer 0)                       (layer 0)                        rms_norm
  |  \\                            |  \\                             |  \\
  add_rms_norm                      add                             |   (residual)
  |  \\ (residual)                  |                              (layer 1)
  (layer 1)                         send                             |
  |                                                                linear
  linear                                                           |
  |                                                                logits
  logits

A layer is what writes one KV cache. Between two of them the graph is cut where the fewest bytes cross, the last such
place if there are several; a fused sum and norm is taken apart there, so that one tensor crosses instead of two.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx

from quire.core.errors import BuildError, ConfigError
from quire.core.mapping import Mapping
from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, op_of, results, spec
from quire.ops.registry import OPS
from quire.ops.spec import dtype_name
from quire.plan.folding import constant_nodes
from quire.sharding.regions import is_cache

_FUSED = {"add_rms_norm": "rms_norm", "add_rms_norm_quant": "rms_norm_quant"}


def cut_stages(network: Network, mapping: Mapping) -> Matches:
    """Leave what the stage of a rank computes.

    Args:
        network: Mutated.
        mapping: Which rank, of how many; `Mapping.pp_layers` deals out the layers.

    Returns:
        The matches: what is received and sent.

    Raises:
        ConfigError: There are fewer layers than stages, or the mapping is for another number of layers.
    """
    matches, caches = Matches(), [node for node in network.graph.nodes if is_cache(node)]
    check_stages(len(caches), mapping.pp_size)
    layers = mapping.pp_layers(len(caches))
    bounds = [_cut(network, caches, layer) if 0 < layer < len(caches) else None
              for layer in (layers.start, layers.stop)]  # fmt: skip
    first, last = bounds
    if last is not None:
        for name in network.outputs:
            network.unmark_output(name)
        for x in last.crossing:
            with network.graph.inserting_before(last.calls[0]):
                matches.done.append(network.insert(OPS["send"], {"x": x, "rank": mapping.next_pp_rank}).name)
        _erase(network, last.calls)
    if first is not None:
        received = [_receive(network, x, first.calls[0], mapping.prev_pp_rank) for x in first.crossing]
        matches.done.extend(received)
        calls = network.calls()
        _erase(network, calls[: calls.index(first.calls[0])], kept=received)
    _drop_unused(network)
    return matches


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where a graph is cut in two.

    Attributes:
        calls: All that come after the cut, in order.
        crossing: What they use of what comes before, in order.
    """

    calls: list[fx.Node]
    crossing: list[fx.Node]

    @property
    def num_bytes(self) -> float:
        """Bytes of a token that cross; infinite where something has no row for each token."""
        specs = [each for node in self.crossing for each in results(node)]
        if len(specs) > len(self.crossing) or any(
            len(each.shape) != 2 or each.shape[0] != "num_tokens" for each in specs
        ):
            return math.inf
        return sum(int(each.shape[1]) * each.dtype.itemsize for each in specs)


def check_stages(num_layers: int, pp_size: int) -> None:
    """Check that there is a layer for each stage.

    Raises:
        ConfigError: There is not.
    """
    if num_layers < pp_size:
        raise ConfigError(f"pipeline_parallel_size: expected at most the {num_layers} layers there are, got {pp_size}.")


def _cut(network: Network, caches: Sequence[fx.Node], layer: int) -> _Cut:
    """Find the place before a layer where the fewest bytes cross."""
    before, after = max(caches[layer - 1].users), min(caches[layer].users)
    between = [node for node in network.calls() if before < node < after]
    fused = [node for node in between if is_call(node, *_FUSED)]
    if fused:
        _take_apart(network, fused[-1])
    constants = constant_nodes(network)
    calls = [node for node in network.calls() if node not in constants]
    cuts = [_cut_at(calls, place) for place in range(calls.index(before) + 1, calls.index(after) + 1)]
    best = min(reversed(cuts), key=lambda cut: cut.num_bytes)
    if best.num_bytes == math.inf:
        raise BuildError(
            f"pipeline_parallel_size: expected a place between the layers {layer - 1} and {layer} of network "
            f"{network.name!r} where only rows of tokens are passed on, got none; run it with 1."
        )
    return best


def _cut_at(calls: Sequence[fx.Node], place: int) -> _Cut:
    later = set(calls[place:])
    return _Cut(list(calls[place:]), [node for node in calls[:place] if not later.isdisjoint(node.users)])


def _take_apart(network: Network, fused: fx.Node) -> None:
    """Put a sum, and a norm of it, where one call gives both; bits stay, since the sum is rounded before its norm."""
    arguments = dict(fused.kwargs)
    with network.graph.inserting_before(fused):
        terms = {"x": arguments.pop("x"), "y": arguments.pop("residual")}
        total = network.insert(OPS["add"], terms, f"{fused.name}_sum")
        norm = network.insert(OPS[_FUSED[op_of(fused).name]], {"x": total, **arguments}, f"{fused.name}_norm")
    for item in sorted(user for user in fused.users if is_call(user, "item")):
        index, new = int(str(item.kwargs["index"])), total
        if index < len(results(fused)) - 1:
            with network.graph.inserting_before(fused):
                new = norm if len(results(norm)) == 1 else network.item(norm, index)
        _take_over(network, item, new)
    network.erase(fused)


def _take_over(network: Network, old: fx.Node, new: fx.Node) -> None:
    """Put a node, and its name, in the place of another."""
    name = old.name
    network.replace(old, new)
    network.erase(old)
    new.name = name


def _receive(network: Network, x: fx.Node, before: fx.Node, rank: int) -> str:
    """Let the calls after a cut use what is received instead of what was computed; returns its name."""
    like = next(node for node in network.graph.nodes
                if node.op == "placeholder" and spec(node).shape == ("num_tokens",))  # fmt: skip
    arguments = {"like": like, "width": spec(x).shape[1], "dtype": dtype_name(spec(x).dtype), "rank": rank}
    with network.graph.inserting_before(before):
        received = network.insert(OPS["recv"], arguments, f"{x.name}_received")
    network.replace(x, received)
    return received.name


def _erase(network: Network, calls: Sequence[fx.Node], kept: Collection[str] = ()) -> None:
    for node in reversed(calls):
        if node.name not in kept and not node.users:
            network.erase(node)


def _drop_unused(network: Network) -> None:
    """Erase constants and inputs that the stage does not use."""
    kept = set(network.outputs.values())
    for node in reversed(list(network.graph.nodes)):
        is_for_effect = node.op == "call_function" and (op_of(node).mutates or not results(node))
        if not node.users and node not in kept and not is_for_effect:
            network.erase(node)
