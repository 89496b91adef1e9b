"""`calibrate`: one walk over the text, and every linear layer and KV cache has its scales."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from quire.core.config import BuildConfig
from quire.core.errors import BuildError
from quire.graph.network import Network
from quire.graph.nodes import is_call
from quire.ops.quantize import LARGEST
from quire.ops.rope import rope
from quire.plan.weight_source import WeightSource
from quire.quantization.clipping import best_shares, products_of_groups
from quire.quantization.layers import base_name, layers_to_quantize
from quire.quantization.recipe import LinearRecipe, Recipe
from quire.quantization.smoothing import Activations, absorber, search
from quire.quantization.walk import Samples, Visit, walk

KV_DTYPES = {"auto": None, "int8": "int8", "fp8": "float8_e4m3fn"}

_NUM_ROWS = 256  # of a layer's input that a search computes with
# Rounding weights needs no statistics: these samples only measure the error.
_SAMPLES_WITHOUT_STATISTICS = 8


def calibrate(
    network: Network,
    weights: WeightSource,
    samples: Samples,
    config: BuildConfig,
    on_progress: Callable[[int, int], None] | None = None,
) -> Recipe:
    """Decide how a fused network is quantized.

    Args:
        network: After its fusions, before `quantize_linear`.
        weights: Its weights.
        samples: Token ids to run it on.
        config: The scheme, what is excluded, and how to smooth.
        on_progress: Called with calls computed so far, and their number.

    Raises:
        ConfigError: `config.exclude` names no layer.
        BuildError: Activations are not finite.
    """
    schemes, skipped = layers_to_quantize(network, config) if config.quantization else ({}, {})
    needs_statistics = config.kv_cache_dtype != "auto" or wants_smoothing(config)
    samples = samples if needs_statistics else samples[:_SAMPLES_WITHOUT_STATISTICS]
    run = _Calibration(config, schemes, dict(skipped))
    last = _last_of_interest(network, schemes, config)
    for visit in walk(network, weights, samples):
        run.visit(visit)
        if on_progress is not None:
            on_progress(visit.index + 1, visit.total)
        if visit.node is last:
            break
    return Recipe(run.linears, run.skipped, run.unsmoothed, KV_DTYPES[config.kv_cache_dtype], run.tensors)


def wants_smoothing(config: BuildConfig) -> bool:
    """Return whether factors are to be searched (or taken as given): only where both sides of a product round."""
    return config.smooth and config.quantization in ("w8a8", "w4a16")


def _last_of_interest(network: Network, layers: Collection[fx.Node], config: BuildConfig) -> fx.Node | None:
    caches = ("append_kv", "rope_append_kv") if config.kv_cache_dtype != "auto" else ()
    wanted = [node for node in network.calls() if node in layers or (caches and is_call(node, *caches))]
    return wanted[-1] if wanted else None


@dataclass(slots=True)
class _Calibration:
    config: BuildConfig
    schemes: dict[fx.Node, str]
    skipped: dict[str, str]
    unsmoothed: dict[str, str] = field(default_factory=dict)
    linears: dict[str, LinearRecipe] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def visit(self, visit: Visit) -> None:
        node = visit.node
        if node in self.schemes:
            self._linear(visit)
        elif self.config.kv_cache_dtype != "auto" and is_call(node, "append_kv", "rope_append_kv"):
            self._kv_cache(visit)

    def _linear(self, visit: Visit) -> None:
        """Decide for one layer."""
        config, scheme = self.config, self.schemes[visit.node]
        seen = _activations([given["x"] for given in visit.arguments], scheme)
        if not torch.isfinite(seen.size).all():
            raise BuildError(
                f"calibration: expected finite inputs of layer {base_name(visit.node)}, got inf or NaN; the checkpoint "
                "may be damaged, or need another dtype."
            )
        weight, base = visit.arguments[0]["weight"], base_name(visit.node)
        may_smooth = self._may_smooth(visit.node)
        found = search(
            scheme,
            config.group_size,
            seen,
            weight,
            may_smooth=may_smooth,
            alpha=config.smooth_alpha,
        )
        if may_smooth and found.factors is None:
            self.unsmoothed[visit.node.name] = "no factors lower its error"
        smooth = self._keep(f"{base}.smooth", found.factors)
        shares = self._keep(f"{base}.shares", self._shares(visit, found.factors))
        self.linears[visit.node.name] = LinearRecipe(
            scheme, config.group_size, smooth, shares, found.error, found.alpha
        )

    def _may_smooth(self, node: fx.Node) -> bool:
        """Return whether factors may be searched for a layer, and note why not."""
        x = node.kwargs["x"]
        assert isinstance(x, fx.Node)
        if not wants_smoothing(self.config) or self.schemes[node] != self.config.quantization:
            return False
        if absorber(x, node) is None:
            self.unsmoothed[node.name] = "nothing before it can take factors"
            return False
        return True

    def _shares(self, visit: Visit, factors: Tensor | None) -> Tensor | None:
        """Return how much of the range of four-bit weights to keep."""
        if self.schemes[visit.node] != "w4a16" or not self.config.smooth:
            return None
        weight = visit.arguments[0]["weight"]
        if factors is not None:
            weight = (weight.float() * factors).to(weight.dtype)
        products = products_of_groups([given["x"] for given in visit.arguments], self.config.group_size, factors)
        return best_shares(weight, products)

    def _keep(self, name: str, tensor: Tensor | None) -> str | None:
        """Make a tensor part of the recipe; returns its name."""
        if tensor is None:
            return None
        self.tensors[name] = tensor
        return name

    def _kv_cache(self, visit: Visit) -> None:
        """Scale keys and values of each head so that the largest seen fills the range."""
        largest = torch.stack([_largest_kv(given) for given in visit.arguments]).amax(0)
        dtype = KV_DTYPES[self.config.kv_cache_dtype]
        assert dtype is not None
        cache = visit.node.kwargs["kv_cache"]
        assert isinstance(cache, fx.Node)
        layer = str(cache.target).removeprefix("kv_cache.")
        self.tensors[f"kv_scales.{layer}"] = (largest / LARGEST[dtype]).clamp_(min=1e-8)


def _largest_kv(given: Any) -> Tensor:
    """Return [2, num_kv_heads]: the largest magnitude of a batch's keys, as they are kept, and of its values."""
    key = given["key"]
    if "table" in given:
        key = rope.reference(key, given["positions"], given["table"])
    return torch.stack([t.float().abs().amax((0, 2)) for t in (key, given["value"])])


def _activations(batches: Sequence[Tensor], scheme: str) -> Activations:
    """Return what a scheme wants to know of a layer's input, [*rows, in_features] per batch."""
    flat = [batch.reshape(-1, batch.shape[-1]) for batch in batches]
    total = sum(len(rows) for rows in flat)
    if scheme == "w4a16":
        size = torch.stack([rows.abs().sum(0, dtype=torch.float32) for rows in flat]).sum(0) / total
    else:
        size = torch.stack([rows.abs().amax(0) for rows in flat]).amax(0).float()
    step = max(1, total // _NUM_ROWS)
    return Activations(size, torch.cat([rows[step // 2 :: step] for rows in flat]))
