"""Environment variables: the only place that reads them. An unknown `QUIRE_` name is an error."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

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


def cache_dir() -> str:
    """Return the folder for converted checkpoints."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "quire")
    return os.environ.get("QUIRE_CACHE_DIR", default)


@dataclass(frozen=True, slots=True)
class LaunchedRank:
    """What `torchrun` and its like say of a process that they start.

    Attributes:
        rank: Its number.
        world_size: How many there are.
        local_world_size: How many of them are on its machine.
        host: Address of the machine of rank 0.
    """

    rank: int
    world_size: int
    local_world_size: int
    host: str


def launched_rank() -> LaunchedRank | None:
    """Return what a launcher said of this process; None if none started it."""
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        return LaunchedRank(rank, world_size, local, os.environ["MASTER_ADDR"])
    except (KeyError, ValueError):
        return None


def stay_on_loopback() -> None:
    """Have gloo listen on this machine's loopback interface alone, unless it was told where; it knows who comes by no
    secret."""
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
