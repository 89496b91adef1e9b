"""Keep keys and values in eight bits, each head's at a scale of its own.

before                                   after
  kv_cache.0: bfloat16[...]                kv_cache.0: int8[...]
  append_kv(key, value, kv_cache.0)        append_kv(key, value, kv_cache.0, kv_scales.0)
  attention(query, kv_cache.0)             attention(query, kv_cache.0, kv_scales.0)
"""

from __future__ import annotations

from torch import fx

from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.graph.nodes import op_of, spec
from quire.ops.spec import TensorSpec, dtype_of
from quire.quantization.recipe import Recipe


def quantize_kv_cache(network: Network, recipe: Recipe) -> Matches:
    """Change the dtype of the KV caches of a recipe, and give their scales to all who read or write them."""
    matches = Matches()
    if recipe.kv_cache_dtype is None:
        return matches
    for cache in [node for node in network.graph.nodes if node.op == "placeholder"]:
        name = str(cache.target).replace("kv_cache.", "kv_scales.")
        if name not in recipe.tensors:
            continue
        cache.meta["spec"] = TensorSpec(spec(cache).shape, dtype_of(recipe.kv_cache_dtype))
        with network.graph.inserting_before(network.calls()[0]):
            scales = network.add_weight(name, "float32", tuple(recipe.tensors[name].shape)).node
        for user in list(cache.users):
            assert isinstance(user, fx.Node) and "kv_scales" in op_of(user).signature.parameters
            user.update_kwarg("kv_scales", scales)
        matches.done.append(str(cache.target))
    return matches
