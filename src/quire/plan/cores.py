"""The cores that this process may compute on: how many threads are right for them, and which memory is near."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch

from quire.core import env
from quire.core.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cores:
    """What the system lets this process use.

    Attributes:
        nodes: By NUMA node its cores, each as the processors (hardware threads) that share it.
        quota: Cores' worth of time that the control group gets; None without a limit.
        free_bytes: Of each node's memory.
    """

    nodes: Mapping[int, Collection[frozenset[int]]]
    quota: float | None
    free_bytes: Mapping[int, int]

    @property
    def num_cores(self) -> int:
        """Cores; two threads of one share what computes, so a second one gains nothing."""
        return sum(map(len, self.nodes.values()))

    @property
    def num_threads(self) -> int:
        """Threads that can run at once: more would wait for each other at every barrier."""
        return max(1, self.num_cores if self.quota is None else min(self.num_cores, ceil(self.quota)))

    def node_for(self, num_threads: int) -> int | None:
        """Return the node to stay on: of several that hold all threads the one with the most memory free, if any.

        Where threads need more than one node, memory is spread by who writes it first; kernels share their work out to
        all threads, and so does that.
        """
        if len(self.nodes) < 2:
            return None
        large = [node for node, cores in self.nodes.items() if len(cores) >= num_threads]
        return max(large, key=lambda node: self.free_bytes.get(node, 0), default=None)

    def __str__(self) -> str:
        limit = "" if self.quota is None else f", {self.quota:g} of them at a time"
        return f"{self.num_cores} cores on {len(self.nodes)} NUMA node{'s' * (len(self.nodes) != 1)}{limit}"


def find_cores(system: Path = Path("/sys"), processors: Collection[int] | None = None) -> Cores:
    """Return what there is; one node of single-threaded cores where the system does not say.

    Args:
        system: Where Linux tells.
        processors: Those that the process may run on; None asks the system.
    """
    if processors is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        processors = os.sched_getaffinity(0) if has_affinity else range(os.cpu_count() or 1)
    nodes: dict[int, set[frozenset[int]]] = {}
    for processor in processors:
        home = system / "devices/system/cpu" / f"cpu{processor}"
        node = next((int(path.name.removeprefix("node")) for path in home.glob("node[0-9]*")), 0)
        siblings = _numbers(_read(home / "topology/thread_siblings_list")) or {processor}
        nodes.setdefault(node, set()).add(frozenset(siblings))
    return Cores(nodes, _quota(system / "fs/cgroup"), {node: _free_bytes(system, node) for node in nodes})


def use_cores(num_sharing: int = 1) -> Cores:
    """Set as many threads as are right, and stay on one NUMA node if they fit there; say so in the log.

    Whoever has set `OMP_NUM_THREADS`, or fewer threads, keeps them; who has bound the process to cores keeps these.

    Args:
        num_sharing: Processes that share the cores, each with an equal part of the threads, on any node.
    """
    cores = find_cores()
    if env.num_threads_wish() is None and torch.get_num_threads() > cores.num_threads:
        torch.set_num_threads(cores.num_threads)
    if num_sharing > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_sharing))
    num_threads = torch.get_num_threads()
    node = cores.node_for(num_threads) if num_sharing == 1 else None
    if node is not None:
        os.sched_setaffinity(0, frozenset().union(*cores.nodes[node]) & os.sched_getaffinity(0))
    where = "" if node is None else f", bound to node {node}"
    _log.info("threads: %d, of %s%s; huge pages: %s", num_threads, cores, where, huge_pages())
    return cores


def huge_pages(system: Path = Path("/sys")) -> str:
    """Return when memory is backed with huge pages: "always", "madvise" (where asked for, as here) or "never"."""
    words = _read(system / "kernel/mm/transparent_hugepage/enabled").split()
    return next((word.strip("[]") for word in words if word.startswith("[")), "never")


def _quota(group: Path) -> float | None:
    """Return the cores' worth of time of a control group, of either version of their files."""
    limit, _, period = _read(group / "cpu.max").partition(" ")
    if not limit:
        limit, period = _read(group / "cpu/cpu.cfs_quota_us"), _read(group / "cpu/cpu.cfs_period_us")
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() and int(period) else None


def _free_bytes(system: Path, node: int) -> int:
    words = _read(system / f"devices/system/node/node{node}/meminfo").split()
    return int(words[words.index("MemFree:") + 1]) * 1024 if "MemFree:" in words else 0


def _numbers(text: str) -> set[int]:
    """Return the numbers of a list such as "0-3,8"."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
