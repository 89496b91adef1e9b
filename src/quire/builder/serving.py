"""What a runtime asks of a network, checked before it is built, and what a Plan keeps of it beside the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from quire.core.errors import BuildError, did_you_mean
from quire.core.model_spec import ServingSpec
from quire.graph.layers import DecoderInputs
from quire.graph.network import Network, net_guard
from quire.graph.nodes import is_call, op_of, spec
from quire.ops.spec import FLOATS, TensorSpec, dtype_name

_CACHE = "kv_cache."
_LOOKUPS = {
    "rope": ("positions", "table"),
    "rope_append_kv": ("positions", "table"),
    "embedding": ("ids", "weight"),
    "index_select": ("index", "x"),
}
"""Ops that look rows up in a table: the parameters of the index and of the table."""
_INPUTS = "declare them with layers.DecoderInputs.declare"


def serving_spec(
    network: Network, max_position_embeddings: int | None = None, eos_token_ids: Sequence[int] = ()
) -> ServingSpec:
    """Return what a Plan keeps of a network, read off the network as far as it shows.

    Args:
        network: As defined, before any pass.
        max_position_embeddings: Longest sequence; None: as many positions as the network's tables hold.
        eos_token_ids: Ids that end a sample.

    Raises:
        BuildError: A runtime could not run the network; the message says what it expects.
    """
    cache = _check_inputs(network)
    vocab_size = _check_logits(network)
    _, _, num_kv_heads, _, head_dim = cache.shape
    assert isinstance(num_kv_heads, int) and isinstance(head_dim, int)
    return ServingSpec(
        architecture=network.name,
        dtype=dtype_name(cache.dtype),
        vocab_size=vocab_size,
        num_layers=len(_caches(network.inputs)),
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=_max_position(network, max_position_embeddings),
        eos_token_ids=tuple(eos_token_ids),
    )


def _caches(inputs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {name: spec for name, spec in inputs.items() if name.startswith(_CACHE)}


def _check_inputs(network: Network) -> TensorSpec:
    """Hold the inputs against those that a runtime gives; returns the spec of every layer's KV cache."""
    inputs = network.inputs
    caches = _caches(inputs)
    first = caches.get(f"{_CACHE}0")
    if "input_ids" not in inputs or first is None:
        found = ", ".join(inputs) or "none"
        raise BuildError(
            f"network {network.name!r}: expected the inputs input_ids and {_CACHE}0, {_CACHE}1, ... of all layers, "
            f"got {found}; {_INPUTS}."
        )
    given = _given(len(caches), first)
    for name, got in inputs.items():
        if name not in given:
            hint = did_you_mean(name, given)
            raise BuildError(f"input {name!r}: expected one that a runtime gives, of {', '.join(given)}.{hint}")
        if got != given[name]:
            raise BuildError(f"input {name!r}: expected {given[name]}, got {got}; {_INPUTS}.")
    return first


def _given(num_layers: int, cache: TensorSpec) -> Mapping[str, TensorSpec]:
    """Return all inputs that a runtime gives a network with such a KV cache."""
    shape = cache.shape
    if len(shape) != 5 or not isinstance(shape[2], int) or not isinstance(shape[4], int) or cache.dtype not in FLOATS:
        raise BuildError(
            f"input '{_CACHE}0': expected floats [2, num_blocks, num_kv_heads, block_size, head_dim], the heads and "
            f"their width fixed, got {cache}; {_INPUTS}."
        )
    expected = Network("expected")
    with net_guard(expected):
        DecoderInputs.declare(num_layers, shape[2], shape[4], dtype_name(cache.dtype))
    return expected.inputs


def _check_logits(network: Network) -> int:
    """Return the vocabulary's size, the last of `logits`."""
    outputs = {name: spec(node) for name, node in network.outputs.items()}
    logits = outputs.get("logits")
    if logits is None or len(outputs) > 1:
        got = ", ".join(outputs) or "none"
        raise BuildError(
            f"network {network.name!r}: expected the one output logits, got {got}; end with "
            'tensor.mark_output("logits").'
        )
    vocab_size = logits.shape[-1] if len(logits.shape) == 2 else None
    if logits.dtype not in FLOATS or not isinstance(vocab_size, int) or logits.shape[0] != "num_tokens":
        raise BuildError(f"output 'logits': expected floats [num_tokens, vocab_size], got {logits}.")
    return vocab_size


def _max_position(network: Network, wanted: int | None) -> int:
    """Return the longest sequence, which no table of positions may fall short of."""
    found = [rows for node in network.calls() if (rows := _table_rows(node)) is not None]
    if wanted is None and not found:
        raise BuildError(
            f"max_position_embeddings: expected the longest sequence in tokens, since network {network.name!r} shows "
            "none (no rope, no embedding of positions), got None."
        )
    length = min(found) if wanted is None else wanted
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= min(found, default=length):
        most = f", at most {min(found)}, for which the network has positions" if found else ""
        raise BuildError(f"max_position_embeddings: expected a number of tokens{most}, got {wanted!r}.")
    return length


def _table_rows(node: fx.Node) -> int | None:
    """Return for how many positions a call has rows, None if it looks none up."""
    if not is_call(node, *_LOOKUPS):
        return None
    index, table = (node.kwargs[name] for name in _LOOKUPS[op_of(node).name])
    if not isinstance(index, fx.Node) or not isinstance(table, fx.Node) or index.target != "positions":
        return None
    rows = spec(table).shape[0]
    return rows if isinstance(rows, int) else None
