"""`open_plan`: the one way from a model to a Plan, whether it must be built, was saved before, or is one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from quire.core.config import BuildConfig
from quire.core.errors import ConfigError
from quire.core.progress import OnProgress
from quire.plan.engine_directory import is_engine_directory
from quire.plan.plan import Plan
from quire.weights.resolve import resolve_model


def open_plan(
    model: str | Path | Plan, config: BuildConfig | None = None, on_progress: OnProgress | None = None
) -> Plan:
    """Return the Plan of a model.

    Args:
        model: A Hugging Face model directory, an engine directory, a hub id, "quire-tiny", or a Plan.
        config: How to build; an engine directory and a Plan were built already and take only the defaults.
        on_progress: Told how far calibration and evaluation are.

    Raises:
        ConfigError: The model's config cannot be honoured, or build settings were given for what is built already.
        PlanError: The checkpoint or the engine directory is incomplete or damaged.
    """
    settings = config or BuildConfig()
    if isinstance(model, Plan):
        _check_is_default(settings)
        return model
    directory = resolve_model(str(model), settings.revision, needs_weights=settings.load_format != "dummy")
    if is_engine_directory(directory):
        _check_is_default(settings)
        return Plan.load(directory)
    from quire.builder.build import build  # late: what was built before is opened without the builder

    return build(directory, settings, on_progress)


def _check_is_default(config: BuildConfig) -> None:
    default = asdict(BuildConfig(seed=config.seed))
    changed = [name for name, value in asdict(config).items() if value != default[name]]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)}: expected the default for an engine directory or a Plan, which is built already; "
            "build the model again with these settings."
        )
