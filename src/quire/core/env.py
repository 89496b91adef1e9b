"""Environment variables: the only place that reads them. An unknown `QUIRE_` name is an error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from quire.core.errors import ConfigError, did_you_mean

KNOWN = {
    "QUIRE_LOG_LEVEL": "debug, info, warning or error (default: info)",
    "QUIRE_CACHE_DIR": "where converted checkpoints are kept (default: the user's cache folder)",
}


def check_environment() -> None:
    """Refuse misspelt settings.

    Raises:
        ConfigError: A variable starts with `QUIRE_` and is not in `KNOWN`.
    """
    for name in os.environ:
        if name.startswith("QUIRE_") and name not in KNOWN:
            raise ConfigError(
                f"unknown environment variable {name}: expected one of {', '.join(sorted(KNOWN))}."
                f"{did_you_mean(name, KNOWN)} Unset it to go on."
            )


def log_level() -> str:
    """Return the log level's name, upper case, as `logging` spells it."""
    return os.environ.get("QUIRE_LOG_LEVEL", "info").upper()


def child_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process to be started: this one's, with more."""
    return {**os.environ, **more}


def num_threads_wish() -> int | None:
    """Return how many threads an op is to have, if the user has said so with OMP_NUM_THREADS."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() else None


def visible_gpus() -> tuple[str, ...]:
    """Return the names of NVIDIA's GPUs that this process may use, as CUDA_VISIBLE_DEVICES spells them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return tuple(name for part in listed.split(",") if (name := part.strip()) not in ("", "-1"))
    count = sum(path.name[len("nvidia") :].isdigit() for path in Path("/dev").glob("nvidia*"))
    return tuple(map(str, range(count)))


def cache_dir() -> str:
    """Return the folder for converted checkpoints."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "quire")
    return os.environ.get("QUIRE_CACHE_DIR", default)
