"""Compute queries, keys and values of a layer by one product.

before                                        after
  x                                             x     concat(w_q, w_k, w_v)
  |-- linear (w_q) -- view [-1, 4, 16]          |    /
  |-- linear (w_k) -- view [-1, 2, 16]          linear
  |-- linear (w_v) -- view [-1, 2, 16]          |
                                                view [-1, 8, 16]
                                                |-- slice 0..4
                                                |-- slice 4..6
                                                |-- slice 6..8
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate

from torch import fx

from quire.builder.fusions.joining import JOINED_ARGUMENTS, join, why_not_joined
from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call, spec
from quire.ops.registry import OPS
from quire.plan.folding import constant_nodes

_ON_THE_WAY = ("rope", "rms_norm", "layer_norm", "view")


def fuse_qkv(network: Network) -> Matches:
    """Join the three projections of every attention layer."""
    matches = Matches()
    for append in network.calls():
        if not is_call(append, "append_kv", "rope_append_kv"):
            continue
        views = [_view_of(value) for value in (_query(append), append.kwargs["key"], append.kwargs["value"])]
        heads = [view for view in views if view is not None]
        reason = _why_not(heads, constant_nodes(network))
        if reason is not None:
            matches.missed[append.name] = reason
        else:
            matches.done.append(_fuse(network, heads))
    return matches


def _query(append: fx.Node) -> object:
    """Return the query of the attention that reads the cache written here."""
    if is_call(append, "rope_append_kv"):
        return append.kwargs["query"]
    cache = append.kwargs["kv_cache"]
    assert isinstance(cache, fx.Node)
    return next((user.kwargs["query"] for user in cache.users if is_call(user, "attention")), None)


def _view_of(value: object) -> fx.Node | None:
    """Return the node that splits a projection into heads, on the way back from a query, key or value."""
    while is_call(value, *_ON_THE_WAY):
        if is_call(value, "view") and is_call(value.kwargs["x"], *JOINED_ARGUMENTS):
            return value
        value = value.kwargs["x"]
    return None


def _why_not(views: list[fx.Node], constants: Collection[fx.Node]) -> str | None:
    if len(views) != 3 or len(set(views)) != 3:
        return "query, key and value are not three projections split into heads"
    parts = [_linear(view) for view in views]
    if any(len(part.users) > 1 for part in parts):
        return "a projection is used elsewhere, too"
    if any(len(spec(view).shape) != 3 for view in views) or len({spec(view).shape[2] for view in views}) > 1:
        return "the heads have several widths"
    return why_not_joined(parts, constants)


def _linear(view: fx.Node) -> fx.Node:
    linear = view.kwargs["x"]
    assert isinstance(linear, fx.Node)
    return linear


def _fuse(network: Network, views: list[fx.Node]) -> str:
    parts = [_linear(view) for view in views]
    counts = [int(spec(view).shape[1]) for view in views]
    joined = join(network, parts, "qkv_proj")
    with network.graph.inserting_after(joined):
        shape = [-1, sum(counts), spec(views[0]).shape[2]]
        heads = network.insert(OPS["view"], {"x": joined, "shape": shape}, f"{joined.name}_heads")
    after, stops = heads, list(accumulate(counts))
    for view, letter, count, stop in zip(views, "qkv", counts, stops, strict=True):
        with network.graph.inserting_after(after):
            arguments = {"x": heads, "dim": 1, "start": stop - count, "stop": stop}
            after = network.insert(OPS["slice"], arguments, f"{joined.name.removesuffix('qkv_proj')}{letter}")
        network.replace(view, after)
    for node in (*views, *parts):
        network.erase(node)
    return joined.name
