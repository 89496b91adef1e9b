"""`walk`: a decoder network over samples of text, node by node for all samples, so that weights stream.

Matrix products run by their references, attention by whole sequences, all else by the processor's default tactics:
weights are used once, so packing them would not pay, and nobody asks for the bits of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from quire.graph.network import Network
from quire.graph.nodes import op_of
from quire.ops.op import REFERENCE, Tactic
from quire.ops.tactics import tactics_for
from quire.plan.folding import Constants, constant_nodes
from quire.plan.weight_source import WeightSource
from quire.quantization.step import kv_cache, step_inputs

Samples = Sequence[Sequence[int]]
_BATCH_TOKENS = 4096  # enough rows for a GEMM at full rate; activations of one batch stay small


@dataclass(frozen=True, slots=True)
class Visit:
    """One call that is about to be computed.

    Attributes:
        node: The call.
        arguments: Per batch, its arguments by name; constants are the same object in all batches.
        index: Number of calls computed before this one.
        total: Number of calls in all.
    """

    node: fx.Node
    arguments: Sequence[Mapping[str, Any]]
    index: int
    total: int


@torch.inference_mode()
def walk(network: Network, weights: WeightSource, samples: Samples) -> Iterator[Visit]:
    """Compute a network over samples, each from its first token, and yield every call before it is computed.

    A weight is read before its first use and dropped after its last, an activation likewise; leaving the loop early
    computes no more.

    Args:
        network: A decoder; with the input `logits_indices`, logits of all tokens are asked for.
        weights: Its weights.
        samples: Token ids of each, at least one.
    """
    constants, folded = constant_nodes(network), Constants(network, weights)
    calls = [node for node in network.calls() if node not in constants]
    states: list[dict[fx.Node, Any]] = [dict(step_inputs(network, batch)) for batch in batches(samples)]
    prepared: list[dict[Any, Any]] = [{} for _ in states]
    pending = Counter(used for node in calls for used in node.all_input_nodes)
    for index, node in enumerate(calls):
        fixed = {used: folded.value(used) for used in node.all_input_nodes if used in constants}
        _make_caches(node, states)
        arguments = [{k: _argument(v, state, fixed) for k, v in node.kwargs.items()} for state in states]
        yield Visit(node, arguments, index, len(calls))
        tactic = _tactic(op_of(node).name)
        for state, given, ready in zip(states, arguments, prepared, strict=True):
            state[node] = _run(tactic, node, given, ready)
        del fixed, arguments
        for used in node.all_input_nodes:
            pending[used] -= 1
            if used in constants:
                folded.release(used)
            elif pending[used] == 0:
                for state in states:
                    state.pop(used)


def _tactic(op: str) -> Tactic:
    """Return what computes an op here: one that is free to round as it likes where there is one, and packs nothing."""
    listed = [tactic for tactic in tactics_for(op, "cpu") if tactic.pack is None]
    free = (tactic for tactic in listed if not tactic.keeps_bits and tactic.name != REFERENCE)
    return next(free, listed[0])


def _run(tactic: Tactic, node: fx.Node, arguments: Mapping[str, Any], prepared: dict[Any, Any]) -> Any:
    """Run one call; what its tactic prepares is kept for the calls that read the same inputs."""
    if tactic.prepare is None:
        return tactic.run(**arguments)
    reads = tuple(node.kwargs[name] for name in tactic.prepare_reads)
    others = (value for name, value in arguments.items() if name not in tactic.prepare_reads)
    shapes = tuple(value.shape if isinstance(value, torch.Tensor) else value for value in others)
    key = (tactic.op, reads, shapes)
    if key not in prepared:
        prepared[key] = tactic.prepare(**arguments)
    return tactic.run(**arguments, prepared=prepared[key])


def batches(samples: Samples) -> list[list[Sequence[int]]]:
    """Group samples so that a batch has about `_BATCH_TOKENS` tokens."""
    grouped: list[list[Sequence[int]]] = [[]]
    for sample in samples:
        if grouped[-1] and sum(map(len, grouped[-1])) + len(sample) > _BATCH_TOKENS:
            grouped.append([])
        grouped[-1].append(sample)
    return grouped


def _make_caches(node: fx.Node, states: list[dict[fx.Node, Any]]) -> None:
    """Make the KV caches that a call uses first; each lives from there to the last call of its layer."""
    for used in node.all_input_nodes:
        if used.op == "placeholder" and used not in states[0]:
            for state in states:
                state[used] = kv_cache(used, state)


def _argument(value: Any, state: Mapping[fx.Node, Any], fixed: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        return fixed[value] if value in fixed else state[value]
    return [_argument(item, state, fixed) for item in value] if isinstance(value, (list, tuple)) else value
