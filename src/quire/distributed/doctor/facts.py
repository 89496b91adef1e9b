"""`Facts`: what a rank's host has, as far as other ranks depend on it."""

from __future__ import annotations

import platform
import re
import resource
import shutil
import socket
from typing import Any

import msgspec
import torch

from quire import __version__
from quire.core import env


class Facts(msgspec.Struct, frozen=True):
    """What a rank says of itself and its host.

    Attributes:
        rank: Which it is.
        host: The host's name.
        address: Where other ranks are to find it.
        port: Where it answers there, during the examination.
        versions: Of what must be the same everywhere, by name.
        own_address: What the host's own name leads to, or the interface that the user has named; empty if to nothing.
        num_gpus: GPUs that torch can use.
        shared_memory_bytes: Free in /dev/shm; -1 where there is none.
        max_files: Descriptors that a process may have open.
        max_locked_bytes: Memory that a process may lock; -1 is any.
        has_infiniband: Whether there is an adapter that reads and writes locked memory.
    """

    rank: int
    host: str
    address: str
    port: int
    versions: dict[str, str]
    own_address: str
    num_gpus: int
    shared_memory_bytes: int
    max_files: int
    max_locked_bytes: int
    has_infiniband: bool = False

    @property
    def name(self) -> str:
        """How people are told of it."""
        return f"rank {self.rank} ({self.host}, {self.address})"


def gather_facts(rank: int, address: str, port: int) -> Facts:
    """Return what there is to say of this process.

    Args:
        rank: Which it is.
        address: Where other ranks are to find it.
        port: Where it answers there.
    """
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return Facts(
        rank=rank,
        host=socket.gethostname(),
        address=address,
        port=port,
        versions=_versions(),
        own_address=env.network_interface() or _own_address(),
        num_gpus=torch.cuda.device_count(),
        shared_memory_bytes=_free_shared_memory(),
        max_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        max_locked_bytes=-1 if locked == resource.RLIM_INFINITY else locked,
        has_infiniband=_has_infiniband(),
    )


def driver_version() -> str:
    """Return the version of NVIDIA's driver, "unknown" where the system does not say."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            found = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", file.read())
    except OSError:
        found = None
    return found[1] if found else "unknown"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "quire": __version__, "torch": str(torch.__version__)}
    if torch.cuda.is_available():
        found |= {"nccl": _nccl_version(), "driver": driver_version()}
        found |= {"gpu": torch.cuda.get_device_name(0)}
    return found


def _nccl_version() -> str:
    version: Any = torch.cuda.nccl.version  # without types
    return ".".join(map(str, version()))


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


def _free_shared_memory() -> int:
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return -1


def _has_infiniband() -> bool:
    try:
        with open("/proc/net/dev", encoding="ascii") as file:
            return any(line.strip().startswith("ib") for line in file)
    except OSError:
        return False
