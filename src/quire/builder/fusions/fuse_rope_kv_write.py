"""Rotate queries and keys, and write the KV cache, in one op.

before                                      after
  query           key        value            query  key  value
    |              |           |                 \\    |    /
  rope           rope          |                rope_append_kv (kv_cache)
    |               \\         /                      |
    |               append_kv (kv_cache)            rotated query
"""

from __future__ import annotations

from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import is_call
from quire.ops.registry import OPS


def fuse_rope_kv_write(network: Network) -> Matches:
    """Fuse every `append_kv` of rotated keys with both rotations."""
    matches = Matches()
    for append in network.calls():
        if not is_call(append, "append_kv") or not is_call(append.kwargs["key"], "rope"):
            continue
        key = append.kwargs["key"]
        query = _rotated_query(append)
        reason = _why_not(append, key, query)
        if reason is not None:
            matches.missed[append.name] = reason
        else:
            assert query is not None
            matches.done.append(_fuse(network, append, key, query))
    return matches


def _rotated_query(append: fx.Node) -> fx.Node | None:
    """Return the rotation of the queries that read the cache written here."""
    cache = append.kwargs["kv_cache"]
    assert isinstance(cache, fx.Node)
    queries = [user.kwargs["query"] for user in cache.users if is_call(user, "attention")]
    return queries[0] if len(queries) == 1 and is_call(queries[0], "rope") else None


def _why_not(append: fx.Node, key: fx.Node, query: fx.Node | None) -> str | None:
    if query is None:
        return "no attention reads its cache with rotated queries"
    if any(query.kwargs[name] is not key.kwargs[name] for name in ("positions", "table")):
        return "queries and keys are rotated by different angles"
    if len(key.users) > 1:
        return "the rotated keys are used elsewhere, too"
    if any(user < append for user in query.users):
        return "the rotated queries are used before the cache is written"
    return None


def _fuse(network: Network, append: fx.Node, key: fx.Node, query: fx.Node) -> str:
    given = {**append.kwargs, "query": query.kwargs["x"], "key": key.kwargs["x"],
             "positions": query.kwargs["positions"], "table": query.kwargs["table"]}  # fmt: skip
    with network.graph.inserting_before(append):
        fused = network.insert(OPS["rope_append_kv"], given)
    network.replace(query, fused)
    for node in (append, key, query):
        network.erase(node)
    return fused.name
