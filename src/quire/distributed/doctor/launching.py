"""How the ranks of an examination come to be: children of this process, or started on each host by a person or Ray."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence

import torch

from quire.core import env
from quire.core.env import LaunchedRank
from quire.core.errors import ConfigError
from quire.distributed.doctor.diagnosis import Finding
from quire.distributed.doctor.examine import examine
from quire.distributed.ray_cluster import other_hosts, start_on_each_host
from quire.distributed.starter import this_host

_LOCAL = "127.0.0.1"
_EXIT_TIMEOUT_S = 5.0


def examine_here(num_ranks: int | None, timeout_s: float) -> list[Finding]:
    """Examine this machine: this process is the first rank, and starts the others.

    Args:
        num_ranks: How many there are; None: one for each GPU, at least two.
        timeout_s: How long to wait for them.
    """
    count = num_ranks or max(2, torch.cuda.device_count())
    port = _free_port(_LOCAL)
    ranks = [LaunchedRank(rank, count, count, _LOCAL, port, rank) for rank in range(count)]
    children = [_start(rank, timeout_s) for rank in ranks[1:]]
    try:
        return examine(ranks[0], timeout_s)
    finally:
        for child in children:
            _end(child)


def examine_cluster(timeout_s: float) -> list[Finding]:
    """Examine all hosts of the Ray cluster that this one belongs to, a rank on each.

    Args:
        timeout_s: How long to wait for them.

    Raises:
        ConfigError: Ray is not installed, or this is the only host.
    """
    others = other_hosts()
    if not others:
        raise ConfigError("ray: expected a cluster of several hosts, got this one. Join others: `ray start --address`.")
    address = this_host().address
    count, port = len(others) + 1, _free_port(address)
    ranks = [LaunchedRank(rank, count, 1, address, port) for rank in range(count)]
    end = start_on_each_host(_arguments(timeout_s), [env.launch_variables(rank) for rank in ranks[1:]])
    try:
        return examine(ranks[0], timeout_s)
    finally:
        end()


def rank_of_host(addresses: Sequence[str], port: int) -> LaunchedRank:
    """Return which of several hosts this one is, where each runs the same command.

    Args:
        addresses: Of all hosts; the first one's rank is 0.
        port: At which the first host listens.

    Raises:
        ConfigError: None of the addresses is this host's, or two are.
    """
    mine = [rank for rank, address in enumerate(addresses) if _is_mine(address)]
    if len(mine) != 1:
        raise ConfigError(
            f"hosts: expected one of {', '.join(addresses)} to be an address of this host, {socket.gethostname()}, got "
            f"{len(mine) or 'none'}."
        )
    return LaunchedRank(mine[0], len(addresses), 1, addresses[0], port)


def _start(rank: LaunchedRank, timeout_s: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", *_arguments(timeout_s)]
    variables = env.child_environment(env.launch_variables(rank))
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=variables)


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(_EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:  # its partner is gone, and a library waits for it
        child.kill()
        child.wait()


def _arguments(timeout_s: float) -> list[str]:
    return ["quire", "doctor", "--timeout-s", str(timeout_s)]


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as sock:
        return int(sock.getsockname()[1])


def _is_mine(address: str) -> bool:
    """Return whether one can listen on an address here."""
    try:
        with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
            return True
    except OSError:
        return False
