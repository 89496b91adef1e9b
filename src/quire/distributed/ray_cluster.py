"""`RayPlacement`: devices on the hosts of a Ray cluster, one for each rank, and who starts the workers there.

Ray finds hosts that have what is asked for, and starts a process of ours on each. What drivers and workers say to each
other goes over sockets of their own.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.core import env
from quire.core.errors import ConfigError, WorkerError
from quire.core.log import get_logger
from quire.distributed.endpoint import Door, Endpoint
from quire.distributed.program import PROGRAM
from quire.distributed.starter import Host, Starter, this_host

_log = get_logger(__name__)
_PLACE_TIMEOUT_S = 60.0
_JOIN_TIMEOUT_S = 300.0  # the slowest host of a cluster reads its libraries
_ANSWER_TIMEOUT_S = 5.0
_LAST_WORDS_TIMEOUT_S = 2.0  # a lost worker is to be told of within 5 s, 3 of which are gone if it was silent
_MOST_PUBLISHED_BYTES = 256 << 20
_RESOURCES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is.

    Attributes:
        starter: Which of the placement's starters is beside it.
        num_local: Ranks on its host.
        local_rank: Which of its starter's devices is its own.
    """

    starter: int
    num_local: int
    local_rank: int


def bundle_size(tp_size: int, most_on_a_host: int) -> int:
    """Return how many ranks are put on a host together: a whole stage, or the largest even part of it that fits.

    Args:
        tp_size: Ranks of a stage, which talk to each other in every layer.
        most_on_a_host: Devices of the host that has the most.

    Example:
        >>> bundle_size(4, 8), bundle_size(8, 4), bundle_size(6, 4)
        (4, 4, 3)
    """
    return max((size for size in range(1, tp_size + 1) if tp_size % size == 0 and size <= most_on_a_host), default=1)


def deal_out(nodes: Sequence[str], size: int) -> list[Place]:
    """Return the place of each rank.

    Args:
        nodes: The host of each starter.
        size: Ranks of a starter.
    """
    return [
        Place(starter, size * nodes.count(node), local) for starter, node in enumerate(nodes) for local in range(size)
    ]


class RayPlacement:
    """Takes devices for a model from the cluster that runs here, or from one that it starts. `close` gives them back.

    Args:
        tp_size: Ranks of a stage; they are on one host if there is one with so many devices.
        pp_size: Stages.
        device: Kind of device.

    Attributes:
        host: This host's address in the cluster.
        places: Where each rank is.

    Raises:
        ConfigError: Ray is not installed, or the cluster has not what is asked for.
        WorkerError: A host does not answer.
    """

    def __init__(self, tp_size: int, pp_size: int, device: str) -> None:
        self._ray = join_cluster()
        self._resource = _RESOURCES[device]
        self._starters: list[Any] = []
        self._is_closed = False
        self.host = this_host().address
        most = max((int(count) for _, count in self._devices()), default=0)
        size = bundle_size(tp_size, most)
        if size < tp_size:
            _log.warning("no host has %d devices: the ranks of a stage are on hosts of %d each", tp_size, size)
        self._group = self._reserve(tp_size * pp_size // size, size)
        try:
            self._starters = [self._starter(index, size) for index in range(tp_size * pp_size // size)]
            hosts: list[Host] = [self._ask(starter.host.remote(), _PLACE_TIMEOUT_S) for starter in self._starters]
        except BaseException:
            self.close(0)
            raise
        self.places = deal_out([host.node for host in hosts], size)
        for index, host in enumerate(hosts):
            _log.info("ranks %d to %d: %s", index * size, (index + 1) * size - 1, host.address)

    def start(self, module: str) -> list[Endpoint]:
        """Start a worker for each rank, and let them in.

        Args:
            module: Whose `main` each calls with "join", an address and its rank; the secret is on its standard input.

        Raises:
            WorkerError: Not all came; the message has what was written.
        """
        door = Door(self.host)
        try:
            for rank, place in enumerate(self.places):
                starter = self._starters[place.starter]
                arguments = [PROGRAM, module, "join", door.address, str(rank)]
                started = starter.start.remote(rank, arguments, door.secret, self._variables(place))
                self._ask(started, _PLACE_TIMEOUT_S)
            endpoints = door.admit(set(range(len(self.places))), _JOIN_TIMEOUT_S, self._problem)
        except BaseException:
            self.close(0)
            raise
        finally:
            door.close()
        return [
            Endpoint(each.rank, each.commands, each.health, remote=RemoteWorker(self, each.rank)) for each in endpoints
        ]

    def publish(self, directory: Path) -> None:
        """Give a directory to the hosts that do not have it, until `close`.

        Args:
            directory: Absolute path.

        Raises:
            ConfigError: It is too large to be sent around.
        """
        lacking = [each for each in self._starters if not self._ask(each.has.remote(str(directory)), _ANSWER_TIMEOUT_S)]
        if not lacking:
            return
        paths = [path for path in directory.rglob("*") if path.is_file()]
        if (num_bytes := sum(path.stat().st_size for path in paths)) > _MOST_PUBLISHED_BYTES:
            raise ConfigError(
                f"model: expected at most {_MOST_PUBLISHED_BYTES} bytes to send to other hosts, got {num_bytes}. Build "
                "an engine directory with `quire build` and put it at the same path on every host."
            )
        files = {str(path.relative_to(directory)): path.read_bytes() for path in paths}
        for starter in lacking:
            self._ask(starter.publish.remote(str(directory), files), _PLACE_TIMEOUT_S)

    def last_words(self, rank: int) -> tuple[int | None, list[str]]:
        """Return a worker's exit code, None if it lives or nobody can tell, and the last lines that it wrote."""
        try:
            code, lines = self._ask(self._of(rank).last_words.remote(rank), _LAST_WORDS_TIMEOUT_S)
        except WorkerError:
            return None, ["(its host does not answer)"]
        return code, lines

    def close(self, timeout_s: float) -> None:
        """End all workers, and give their devices back. Nothing if that was done.

        Args:
            timeout_s: How long they may take to end by themselves.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if self._starters:
            ending = [starter.end.remote(timeout_s) for starter in self._starters]
            self._ray.wait(ending, num_returns=len(ending), timeout=timeout_s + _ANSWER_TIMEOUT_S)
        for starter in self._starters:
            self._ray.kill(starter)
        self._ray.util.remove_placement_group(self._group)

    def _of(self, rank: int) -> Any:
        return self._starters[self.places[rank].starter]

    def _devices(self) -> list[tuple[str, float]]:
        """Return how many devices each host has."""
        nodes = (node for node in self._ray.nodes() if node["Alive"])
        return [(node["NodeManagerAddress"], node["Resources"].get(self._resource, 0)) for node in nodes]

    def _reserve(self, count: int, size: int) -> Any:
        """Take devices: each bundle lies on one host, and the fewer hosts, the better."""
        group = self._ray.util.placement_group([{self._resource: float(size)}] * count, strategy="PACK")
        if group.wait(_PLACE_TIMEOUT_S):
            return group
        self._ray.util.remove_placement_group(group)
        have = ", ".join(f"{devices:g} on {address}" for address, devices in self._devices()) or "no hosts"
        raise ConfigError(
            f"tensor_parallel_size * pipeline_parallel_size: expected {count} times {size} free {self._resource}s in "
            f"the Ray cluster, got {have} in all, some of which may be in use. Add hosts (`ray start --address=...`), "
            "or ask for fewer."
        )

    def _starter(self, index: int, size: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options = {
            "num_cpus": size if self._resource == "CPU" else 0,
            "num_gpus": size if self._resource == "GPU" else 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index),
        }
        return self._ray.remote(Starter).options(**options).remote()

    def _variables(self, place: Place) -> dict[str, str]:
        """Return what a worker's environment has more: all of the ranks' cores, which it divides among them."""
        return {"OMP_NUM_THREADS": str(place.num_local)} if self._resource == "CPU" else {}

    def _ask(self, answer: Any, timeout_s: float) -> Any:
        """Return what a starter answers.

        Raises:
            WorkerError: It does not.
        """
        from ray.exceptions import GetTimeoutError, RayError

        try:
            return self._ray.get(answer, timeout=timeout_s)
        except (RayError, GetTimeoutError) as error:
            reason = str(error).strip().splitlines()[-1:] or [""]
            told = f"{type(error).__name__}: {reason[0]}"
            raise WorkerError(f"host: expected Ray's process there to answer, got {told}.") from None

    def _problem(self) -> str | None:
        """Return why a worker will never come, None if all may."""
        for rank in range(len(self.places)):
            code, lines = self.last_words(rank)
            if code is not None:
                return f"rank {rank} ended with exit code {code}. Its last lines:\n" + "\n".join(lines)
        return None


@dataclass(frozen=True, slots=True)
class RemoteWorker:
    """A worker on a host of the cluster; a `RemoteProcess`.

    Attributes:
        placement: Who started it.
        rank: Which it is.
    """

    placement: RayPlacement
    rank: int

    def last_words(self) -> tuple[int | None, list[str]]:
        """Return its exit code, None if it lives or its host does not answer, and the last lines that it wrote."""
        return self.placement.last_words(self.rank)

    def end(self, timeout_s: float) -> None:
        """End it and all others of its placement."""
        self.placement.close(timeout_s)


def join_cluster() -> Any:
    """Join the Ray cluster that RAY_ADDRESS names or that runs on this host, or else start one here; returns `ray`.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be joined.
    """
    env.keep_ray_quiet()
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "distributed_executor_backend: expected Ray to be installed for 'ray', got none. Run `pip install "
            "'quire[ray]'` on every host."
        ) from None
    if not ray.is_initialized():
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(include_dashboard=False, logging_level=logging.ERROR, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"ray: expected to join or start a cluster, got: {error}. See `ray status`.") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets one that ends this process
    return ray


def start_on_each_host(arguments: Sequence[str], variables: Sequence[Mapping[str, str]]) -> Callable[[], None]:
    """Start a process on each host of the cluster but this one, with a GPU if the host has any.

    Args:
        arguments: A module, and what it is given.
        variables: Of the environment of each, beside those of its host; as many as `other_hosts`.

    Returns:
        What ends them.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray, starters = join_cluster(), []
    for rank, (node, more) in enumerate(zip(other_hosts(), variables, strict=True), 1):
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        num_gpus = min(1, node["Resources"].get("GPU", 0))
        starter = ray.remote(Starter).options(num_cpus=0, num_gpus=num_gpus, scheduling_strategy=where).remote()
        starter.start.remote(rank, list(arguments), "", dict(more))
        starters.append(starter)

    def end() -> None:
        ray.wait([each.end.remote(_ANSWER_TIMEOUT_S) for each in starters], num_returns=len(starters), timeout=10)
        for starter in starters:
            ray.kill(starter)

    return end


def other_hosts() -> list[dict[str, Any]]:
    """Return what Ray knows of the hosts of the cluster but this one."""
    ray = join_cluster()
    mine = this_host().node
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != mine]
