"""`open_plan`: the one way from a model's name to a Plan, whether it must be built or was saved before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from quire.builder.passes import FINISH, FUSE, Pass
from quire.core.config import BuildConfig
from quire.core.errors import ConfigError, PlanError, did_you_mean
from quire.core.log import get_logger
from quire.core.model_files import GENERATION_CONFIG, TOKENIZER_FILES
from quire.graph.legality import DEFINED, OPTIMIZED, check_network
from quire.graph.network import Network
from quire.models.registry import checkpoint_names, define_network, read_spec
from quire.plan.plan import Plan, is_engine_directory
from quire.weights.dummy import DummyWeights
from quire.weights.open import open_weights
from quire.weights.resolve import resolve_model

_log = get_logger(__name__)


def open_plan(model: str | Path, config: BuildConfig | None = None) -> Plan:
    """Return the Plan of a model.

    Args:
        model: A Hugging Face model directory, an engine directory, a hub id, or "quire-tiny".
        config: How to build; an engine directory was built already and takes only the defaults.

    Raises:
        ConfigError: The model's config cannot be honoured, or build settings were given for an engine directory.
        PlanError: The checkpoint or the engine directory is incomplete or damaged.
    """
    settings = config or BuildConfig()
    directory = resolve_model(str(model), settings.revision, needs_weights=settings.load_format != "dummy")
    if is_engine_directory(directory):
        _check_is_default(settings)
        return Plan.load(directory)
    return build(directory, settings)


def build(directory: Path, config: BuildConfig) -> Plan:
    """Build a Plan from a Hugging Face model directory without reading any weight data."""
    spec = read_spec(_read_config(directory, config.hf_overrides), config.dtype)
    network = define_network(spec)
    passes = optimize(network, config)
    weights = (
        DummyWeights(network.weights, config.seed)
        if config.load_format == "dummy"
        else open_weights(directory, network.weights, checkpoint_names(spec).canonical)
    )
    found = (path for pattern in (*TOKENIZER_FILES, GENERATION_CONFIG) for path in directory.glob(pattern))
    files = tuple(path.relative_to(directory).as_posix() for path in found if path.is_file())
    settings = {k: v for k, v in msgspec.json.decode(msgspec.json.encode(config)).items() if v is not None}
    return Plan(network, spec, weights, directory, settings, files, {"passes": passes})


def optimize(network: Network, config: BuildConfig) -> list[Mapping[str, object]]:
    """Run the passes in order and prove the network legal before, between and after.

    Returns:
        The build report's entry of each pass.

    Raises:
        ConfigError: `config.without_passes` names a pass that does not exist.
    """
    passes = (*FUSE, *FINISH)
    _check_names(config.without_passes, [run.__name__ for run in passes])
    check_network(network, DEFINED)
    records = [apply(run, network) for run in passes if run.__name__ not in config.without_passes]
    check_network(network, OPTIMIZED)
    return records


def apply(run: Pass, network: Network) -> Mapping[str, object]:
    """Run one pass, prove that it left a legal network, and return its entry of the build report."""
    matches = run(network)
    check_network(network, DEFINED)
    _log.debug("pass %s: %d", run.__name__, matches.count)
    return matches.as_record(run.__name__)


def _check_names(given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"without_passes: expected some of {', '.join(known)}, got {name!r}.{hint}")


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
