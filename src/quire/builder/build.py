"""`build`: from a Hugging Face model directory to a Plan."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from quire.builder.passes.adopt_quantized import adopt_quantized
from quire.builder.pipeline import Bound, bind, settings_of
from quire.builder.samples import calibration_samples
from quire.builder.serving import serving_spec
from quire.core.config import BuildConfig
from quire.core.errors import ConfigError, PlanError
from quire.core.model_files import GENERATION_CONFIG, TOKENIZER_FILES
from quire.core.model_spec import ServingSpec
from quire.core.progress import OnProgress
from quire.graph.matches import Matches
from quire.graph.network import Network
from quire.models.config_reader import ConfigReader
from quire.models.quantized import read_quantization
from quire.models.registry import checkpoint_names, define_network, read_spec
from quire.plan.plan import Plan
from quire.plan.weight_source import WeightSource
from quire.weights.dummy import DummyWeights
from quire.weights.open import open_stored, open_weights


def build(directory: Path, config: BuildConfig, on_progress: OnProgress | None = None) -> Plan:
    """Build a Plan from a Hugging Face model directory. Without quantization no weight data is read.

    Raises:
        ConfigError: The model's config or a setting cannot be honoured.
        PlanError: The checkpoint is incomplete or damaged.
        BuildError: Quantization costs more accuracy than `config.max_kl` allows.
    """
    fields = _read_config(directory, config.hf_overrides)
    spec, quantization = read_spec(fields, config.dtype), read_quantization(ConfigReader(fields))
    canonical = checkpoint_names(spec).canonical
    if quantization is not None and config.quantization is not None:
        raise ConfigError(
            f"quantization: expected None for a checkpoint that is quantized already (quant_method "
            f"{quantization.method!r}), got {config.quantization!r}. Leave it out, or start from the unquantized one."
        )

    def weights_of(network: Network) -> WeightSource:
        if config.load_format == "dummy":
            return DummyWeights(network.weights, config.seed)
        return open_weights(directory, network.weights, canonical)

    def adopt(network: Network) -> Matches:
        assert quantization is not None
        if config.load_format == "dummy":
            return adopt_quantized(network, quantization)
        with closing(open_stored(directory, canonical)) as stored:
            return adopt_quantized(network, quantization, stored)

    network = define_network(spec)
    serving = serving_spec(network, spec.max_position_embeddings, spec.eos_token_ids)
    samples = partial(calibration_samples, directory, serving, config)
    bound = bind(network, config, weights_of, samples, on_progress, None if quantization is None else adopt)
    return as_plan(bound, serving, config, directory)


def as_plan(bound: Bound, serving: ServingSpec, config: BuildConfig, directory: Path | None) -> Plan:
    """Return the Plan of what the pipeline made, its report as a page with it.

    Args:
        bound: Network and weights.
        serving: The model's numbers.
        config: The settings it was built with.
        directory: Where the tokenizer and the generation defaults are, if anywhere.
    """
    files = () if directory is None else _small_files(directory)
    return Plan(
        network=bound.network,
        spec=serving,
        weights=bound.weights,
        directory=directory,
        source="" if directory is None else str(directory),
        build=settings_of(config),
        small_files=files,
        report=bound.as_report(),
        draw_page=_draw_page,
    )


def _draw_page(plan: Plan) -> str:
    from quire.builder.report.page import draw_page  # late: a plan that is only run needs none

    return draw_page(plan)


def _small_files(directory: Path) -> tuple[str, ...]:
    found = (path for pattern in (*TOKENIZER_FILES, GENERATION_CONFIG) for path in directory.glob(pattern))
    return tuple(path.relative_to(directory).as_posix() for path in found if path.is_file())


def _read_config(directory: Path, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise PlanError(f"{path}: expected a model's config, got: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"{path}: expected JSON, got: {error}.") from None
    if not isinstance(config, dict):
        raise PlanError(f"{path}: expected a JSON object, got {type(config).__name__}.")
    return {**config, **(overrides or {})}
