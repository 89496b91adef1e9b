"""`open_plan`: the one way from a model's name to a Plan, whether it must be built or was saved before."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from quire.builder.passes.adopt_quantized import adopt_quantized
from quire.builder.passes.matches import Matches
from quire.builder.pipeline import bind, settings_of
from quire.core.config import BuildConfig
from quire.core.errors import ConfigError, PlanError
from quire.core.model_files import GENERATION_CONFIG, TOKENIZER_FILES
from quire.core.model_spec import ModelSpec
from quire.core.progress import OnProgress
from quire.graph.network import Network
from quire.models.config_reader import ConfigReader
from quire.models.quantized import read_quantization
from quire.models.registry import checkpoint_names, define_network, read_spec
from quire.plan.plan import Plan, is_engine_directory
from quire.plan.weight_source import WeightSource
from quire.quantization.text import CalibrationSamples, random_samples, read_samples
from quire.tokenizer.tokenizer import Tokenizer
from quire.weights.dummy import DummyWeights
from quire.weights.open import open_stored, open_weights
from quire.weights.resolve import resolve_model


def open_plan(model: str | Path, config: BuildConfig | None = None, on_progress: OnProgress | None = None) -> Plan:
    """Return the Plan of a model.

    Args:
        model: A Hugging Face model directory, an engine directory, a hub id, or "quire-tiny".
        config: How to build; an engine directory was built already and takes only the defaults.
        on_progress: Told how far calibration and evaluation are.

    Raises:
        ConfigError: The model's config cannot be honoured, or build settings were given for an engine directory.
        PlanError: The checkpoint or the engine directory is incomplete or damaged.
    """
    settings = config or BuildConfig()
    directory = resolve_model(str(model), settings.revision, needs_weights=settings.load_format != "dummy")
    if is_engine_directory(directory):
        _check_is_default(settings)
        return Plan.load(directory)
    return build(directory, settings, on_progress)


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

    bound = bind(
        define_network(spec),
        config,
        weights_of,
        lambda: _samples(directory, spec, config),
        on_progress,
        None if quantization is None else adopt,
    )
    found = (path for pattern in (*TOKENIZER_FILES, GENERATION_CONFIG) for path in directory.glob(pattern))
    files = tuple(path.relative_to(directory).as_posix() for path in found if path.is_file())
    return Plan(bound.network, spec, bound.weights, directory, settings_of(config), files, bound.as_report())


def _samples(directory: Path, spec: ModelSpec, config: BuildConfig) -> CalibrationSamples:
    """Return text to calibrate on; random ids for a model without a tokenizer, unless a text was given."""
    count, length = config.num_calibration_samples, min(config.calibration_length, spec.max_position_embeddings)
    has_tokenizer = any(next(directory.glob(pattern), None) for pattern in TOKENIZER_FILES)
    if not has_tokenizer and config.calibration is None:
        return random_samples(spec.vocab_size, num_samples=count, length=length, seed=config.seed)
    tokenizer = Tokenizer.from_directory(directory)
    opening = tokenizer.encode("")[:1]
    first_ids = opening if opening == [tokenizer.bos_token_id] else []

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    return read_samples(config.calibration, encode, num_samples=count, length=length, first_ids=first_ids)


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


def _check_is_default(config: BuildConfig) -> None:
    default = asdict(BuildConfig(seed=config.seed))
    changed = [name for name, value in asdict(config).items() if value != default[name]]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)}: expected the default for an engine directory, which is built already; "
            "build the model again with these settings."
        )
