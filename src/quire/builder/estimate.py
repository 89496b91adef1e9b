"""What quantization would make of a plan, by shapes alone: nothing is calibrated, no weight is read."""

from __future__ import annotations

from dataclasses import replace

import torch

from quire.builder.fusions.fuse_norm_quant import fuse_norm_quant
from quire.builder.passes.drop_dead import drop_dead
from quire.builder.passes.quantize_kv_cache import quantize_kv_cache
from quire.builder.passes.quantize_linear import quantize_linear
from quire.core.config import BuildConfig
from quire.graph.nodes import spec
from quire.graph.text import network_from_text, network_to_text
from quire.plan.plan import Plan
from quire.quantization.calibration import KV_DTYPES
from quire.quantization.layers import layers_to_quantize
from quire.quantization.recipe import LinearRecipe, Recipe

_CACHE = "kv_cache."


def estimate_quantized(plan: Plan, config: BuildConfig) -> Plan | None:
    """Return a plan whose network is that of a quantized build but for the tensors that smoothing adds.

    It shows sizes and cannot be run: its weights are those of the plan as it was.

    Args:
        plan: As built without quantization, or as loaded.
        config: The scheme, the dtype of the KV cache, and which layers are left out.

    Returns:
        The plan; None if there is nothing to quantize.

    Raises:
        ConfigError: `config.exclude` names no layer.
    """
    network = network_from_text(network_to_text(plan.network), plan.network.name)
    schemes = layers_to_quantize(network, config)[0] if config.quantization else {}
    dtype = KV_DTYPES[config.kv_cache_dtype]
    caches = {str(node.target): spec(node) for node in network.graph.nodes if str(node.target).startswith(_CACHE)}
    wide = {name: cache for name, cache in caches.items() if cache.dtype.itemsize > 1} if dtype else {}
    if not schemes and not wide:
        return None
    recipe = Recipe(
        linears={node.name: LinearRecipe(scheme, config.group_size) for node, scheme in schemes.items()},
        kv_cache_dtype=dtype if wide else None,
        tensors={
            name.replace(_CACHE, "kv_scales."): torch.empty(2, int(cache.shape[2])) for name, cache in wide.items()
        },
    )
    quantize_linear(network, recipe)
    quantize_kv_cache(network, recipe)
    fuse_norm_quant(network)
    drop_dead(network)
    return replace(plan, network=network)
