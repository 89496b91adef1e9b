"""From a defined network to one that is bound for execution: the passes, and the calibration in their midst."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from quire.builder.fusions.fuse_add_rms_norm import fuse_add_rms_norm
from quire.builder.fusions.fuse_gate_up import fuse_gate_up
from quire.builder.fusions.fuse_norm_quant import fuse_norm_quant
from quire.builder.fusions.fuse_qkv import fuse_qkv
from quire.builder.fusions.fuse_rope_kv_write import fuse_rope_kv_write
from quire.builder.fusions.fuse_silu_mul import fuse_silu_mul
from quire.builder.passes.drop_dead import drop_dead
from quire.builder.passes.fold_weights import fold_weights
from quire.builder.passes.gather_last_token import gather_last_token
from quire.builder.passes.mark_hidden_states import mark_hidden_states
from quire.builder.passes.quantize_kv_cache import quantize_kv_cache
from quire.builder.passes.quantize_linear import quantize_linear
from quire.builder.passes.smooth import smooth
from quire.builder.report.sizes import weight_bytes
from quire.core.config import BuildConfig
from quire.core.errors import ConfigError, did_you_mean
from quire.core.log import get_logger
from quire.core.progress import OnProgress
from quire.graph.legality import DEFINED, OPTIMIZED, check_network
from quire.graph.matches import Matches, Pass
from quire.graph.network import Network
from quire.graph.text import network_from_text, network_to_text
from quire.plan.weight_source import TensorWeights, WeightSource
from quire.quantization.calibration import calibrate
from quire.quantization.evaluation import Accuracy, check, evaluate, largest_kl
from quire.quantization.recipe import Recipe
from quire.quantization.text import CalibrationSamples

_log = get_logger(__name__)

FUSE: tuple[Pass, ...] = (fuse_qkv, fuse_gate_up, fuse_silu_mul, fuse_add_rms_norm, fuse_rope_kv_write)
"""Before the numbers change: fewer and larger ops. Calibration looks at the network that they leave."""

FUSE_QUANTIZED: tuple[Pass, ...] = (fuse_norm_quant,)
"""After the numbers have changed: what rounds activations joins what makes them."""

FINISH: tuple[Pass, ...] = (gather_last_token, mark_hidden_states, drop_dead)
"""What is right for every plan, quantized or not."""

_RECIPE_PASSES = (smooth, quantize_linear, quantize_kv_cache)
PASS_NAMES = tuple(run.__name__ for run in (*FUSE, *_RECIPE_PASSES, *FUSE_QUANTIZED, *FINISH, fold_weights))
"""All passes, in the order in which they run."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What the pipeline made.

    Attributes:
        network: Optimized; mutated in place from the one given.
        weights: Its weights.
        passes: The build report's entry of each pass, in order.
        defined: The build report's entry of the network before all passes.
        recipe: How it was quantized, None if it was not.
        accuracy: What that cost, None if it was not quantized.
        max_kl: The limit that it was held to.
        origin: Where the calibration text is from.
    """

    network: Network
    weights: WeightSource
    passes: Sequence[Mapping[str, object]]
    defined: Mapping[str, object]
    recipe: Recipe | None = None
    accuracy: Accuracy | None = None
    max_kl: float | None = None
    origin: str | None = None

    def as_report(self) -> dict[str, Any]:
        """Return the build report as plain JSON values: passes, what quantization decided and cost, the network."""
        report: dict[str, Any] = {"passes": list(self.passes)}
        if self.recipe is not None and self.accuracy is not None:
            report["quantization"] = {
                "text": self.origin,
                "accuracy": self.accuracy.as_record(),
                "max_kl": self.max_kl,
                "layers": {name: msgspec.to_builtins(linear) for name, linear in self.recipe.linears.items()},
                "skipped": dict(self.recipe.skipped),
            }
        report["network"] = {**self.defined, "after": str(self.network)}
        return report


def bind(
    network: Network,
    config: BuildConfig,
    open_weights: Callable[[Network], WeightSource],
    read_samples: Callable[[], CalibrationSamples],
    on_progress: OnProgress | None = None,
    adopt: Pass | None = None,
) -> Bound:
    """Run the pipeline.

    Args:
        network: As defined. Mutated.
        config: What to leave out, and how to quantize.
        open_weights: Called with the fused network; returns its weights without reading them.
        read_samples: Called when there is something to calibrate.
        on_progress: Told how far calibration and evaluation are.
        adopt: Of a quantized checkpoint: writes what is stored into the network, before all else.

    Raises:
        BuildError: The network is illegal, or quantization costs more accuracy than `config.max_kl` allows.
        ConfigError: `config` names a pass or a layer that does not exist.
    """
    _check_names(config.without_passes)
    check_network(network, DEFINED)
    run = _Run(network, config)
    if adopt is not None:
        run.one("adopt_quantized", adopt)
    run.all(FUSE)
    weights = open_weights(network)
    if config.quantization is None and config.kv_cache_dtype == "auto":
        run.all((*FUSE_QUANTIZED, *FINISH))
        return Bound(network, run.fold(weights), run.records, run.defined)
    exact, samples = network_from_text(network_to_text(network), network.name), read_samples()
    progress = on_progress or (lambda *news: None)
    recipe = calibrate(network, weights, samples.calibration, config, partial(progress, "Calibrating"))
    for recipe_pass in _RECIPE_PASSES:
        run.one(recipe_pass.__name__, partial(recipe_pass, recipe=recipe))
    run.all((*FUSE_QUANTIZED, *FINISH))
    folded = run.fold(TensorWeights(recipe.tensors, weights))
    accuracy = evaluate((exact, weights), (network, folded), samples.held_out, partial(progress, "Evaluating"))
    limit = largest_kl(config)
    check(accuracy, recipe, limit)
    return Bound(network, folded, run.records, run.defined, recipe, accuracy, limit, samples.origin)


class _Run:
    """Runs passes over one network, proves it legal after each, and keeps their records."""

    def __init__(self, network: Network, config: BuildConfig) -> None:
        self._network = network
        self._without = config.without_passes
        self.defined = {"before": str(network), "defined_bytes": weight_bytes(network)}
        self.records: list[Mapping[str, object]] = []

    def all(self, passes: Sequence[Pass]) -> None:
        for run in passes:
            self.one(run.__name__, run)

    def one(self, name: str, run: Pass) -> None:
        if name not in self._without:
            self._note(name, run(self._network))

    def fold(self, weights: WeightSource) -> WeightSource:
        """Fold what has changed, and prove the network ready."""
        if fold_weights.__name__ not in self._without:
            matches, weights = fold_weights(self._network, weights)
            self._note(fold_weights.__name__, matches)
        check_network(self._network, OPTIMIZED)
        return weights

    def _note(self, name: str, matches: Matches) -> None:
        check_network(self._network, DEFINED)
        _log.debug("pass %s: %d", name, matches.count)
        self.records.append(matches.as_record(name))


def _check_names(given: Sequence[str]) -> None:
    for name in given:
        if name not in PASS_NAMES:
            hint = did_you_mean(name, PASS_NAMES)
            raise ConfigError(f"without_passes: expected some of {', '.join(PASS_NAMES)}, got {name!r}.{hint}")


def settings_of(config: BuildConfig) -> Mapping[str, Any]:
    """Return the settings that a Plan carries: those that are set, as plain JSON values."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
    return {name: value for name, value in plain.items() if value is not None}
