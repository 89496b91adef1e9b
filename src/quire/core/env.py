"""Environment variables: the only place that reads them. An unknown `QUIRE_` name is an error."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
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


def network_interface() -> str | None:
    """Return the interface that ranks are to use between hosts, if the user has named one for gloo."""
    return os.environ.get("GLOO_SOCKET_IFNAME")


def keep_ray_quiet() -> None:
    """Have Ray, which is about to be imported, tell nobody about its use unless the user has said otherwise."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


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


@dataclass(frozen=True, slots=True)
class LaunchedRank:
    """What `torchrun` and its like say of a process that they start.

    Attributes:
        rank: Its number.
        world_size: How many there are.
        local_world_size: How many of them are on its machine.
        host: Address of the machine of rank 0.
        port: Where rank 0 is found there.
        local_rank: Its place among those on its machine.
        has_store: Whether the launcher itself listens there.
    """

    rank: int
    world_size: int
    local_world_size: int
    host: str
    port: int = 29500
    local_rank: int = 0
    has_store: bool = False


def launched_rank() -> LaunchedRank | None:
    """Return what a launcher said of this process; None if none started it."""
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        local_rank, port = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("MASTER_PORT", 29500))
        has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return LaunchedRank(rank, world_size, local, os.environ["MASTER_ADDR"], port, local_rank, has_store)
    except (KeyError, ValueError):
        return None


def launch_variables(rank: LaunchedRank) -> dict[str, str]:
    """Return what a launcher sets for a process: what `launched_rank` reads."""
    return {
        "RANK": str(rank.rank),
        "WORLD_SIZE": str(rank.world_size),
        "LOCAL_RANK": str(rank.local_rank),
        "LOCAL_WORLD_SIZE": str(rank.local_world_size),
        "MASTER_ADDR": rank.host,
        "MASTER_PORT": str(rank.port),
    }


def stay_on_loopback() -> None:
    """Have gloo listen on this machine's loopback interface alone, unless it was told where; it knows who comes by no
    secret."""
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
