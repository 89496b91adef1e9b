"""`Layout`: how many ranks a model is dealt out to, on which devices they are, and who starts their processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from quire.core.config import EngineConfig
from quire.core.env import LaunchedRank, launched_rank
from quire.core.errors import ConfigError
from quire.distributed.endpoint import Endpoint, spawn
from quire.distributed.ray_cluster import RayPlacement
from quire.distributed.torchrun import Launched
from quire.plan.device import num_devices

LOOPBACK = "127.0.0.1"
WORKER = "quire.runner.parallel.worker"


@dataclass(frozen=True, slots=True)
class Layout:
    """The ranks of a model.

    Attributes:
        tp_size: Ranks that share every layer.
        pp_size: Stages.
        num_local: Ranks on one machine.
        host: An address of this machine that all ranks can reach.
        pp_partition: Layers of each stage, as of `Mapping`.
        deterministic: Whether ranks keep bits, as of `EngineConfig`.
        launched: What the launcher said of this process, None if none started it.
        is_on_ray: Whether Ray finds places for the ranks.
        placement: Those places, once they are taken. Without either the workers are children of this process.
    """

    tp_size: int
    pp_size: int
    num_local: int
    host: str = LOOPBACK
    pp_partition: tuple[int, ...] | None = None
    deterministic: bool = True
    launched: LaunchedRank | None = None
    is_on_ray: bool = False
    placement: RayPlacement | None = None

    @classmethod
    def of(cls, config: EngineConfig) -> Layout:
        """Return the layout that settings ask for.

        Raises:
            ConfigError: A launcher was named, and did not start this process, or another number of them.
        """
        tp_size, pp_size = config.tensor_parallel_size, config.pipeline_parallel_size
        if config.distributed_executor_backend != "external_launcher":
            is_on_ray = config.distributed_executor_backend == "ray"
            return cls(tp_size, pp_size, tp_size * pp_size, deterministic=config.deterministic, is_on_ray=is_on_ray)
        launched = launched_rank()
        if launched is None or launched.world_size != tp_size * pp_size:
            got = "none" if launched is None else str(launched.world_size)
            raise ConfigError(
                f"distributed_executor_backend: expected {tp_size * pp_size} processes for 'external_launcher' "
                f"(tensor_parallel_size {tp_size} * pipeline_parallel_size {pp_size}), got {got}. Start them with "
                f"`torchrun --nproc-per-node {tp_size * pp_size} SCRIPT`."
            )
        num_local, host = launched.local_world_size, launched.host
        return cls(tp_size, pp_size, num_local, host, deterministic=config.deterministic, launched=launched)

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.tp_size * self.pp_size

    def placed(self, device: str) -> Layout:
        """Return the layout with a place for each rank.

        Args:
            device: Kind of device.

        Raises:
            ConfigError: There are too few devices.
        """
        if self.is_on_ray:
            placement = RayPlacement(self.tp_size, self.pp_size, device)
            return replace(self, host=placement.host, placement=placement)
        self._check(device)
        return self

    def local(self, rank: int) -> tuple[int, int]:
        """Return how many ranks are on a rank's machine, and which of its devices is the rank's own."""
        if self.placement is None:
            return self.num_local, rank % self.num_local
        place = self.placement.places[rank]
        return place.num_local, place.local_rank

    def publish(self, directory: Path) -> None:
        """Give an engine directory to the machines that do not have it."""
        if self.placement is not None:
            self.placement.publish(directory.absolute())

    def _check(self, device: str) -> None:
        """Refuse a layout for which this machine has too few devices."""
        found = num_devices(device)
        if found is not None and found < self.num_local:
            sizes = [f"{tp} * {found // tp}" for tp in range(1, found + 1) if found % tp == 0]
            raise ConfigError(
                f"tensor_parallel_size * pipeline_parallel_size: expected at most {found}, the GPUs of this machine, "
                f"got {self.tp_size} * {self.pp_size}. Possible: {', '.join(sizes)}, or less."
            )

    def start(self) -> Sequence[Endpoint]:
        """Start the workers of all ranks, or let those in that a launcher has started."""
        if self.placement is not None:
            return self.placement.start(WORKER)
        if self.launched is None:
            return [spawn(WORKER, rank) for rank in range(self.world_size)]
        return Launched(self.launched).gather(partial(spawn, WORKER, 0))
