"""`Layout`: how many ranks a model is dealt out to, on which devices they are, and who starts their processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from quire.core.config import EngineConfig
from quire.core.env import LaunchedRank, launched_rank
from quire.core.errors import ConfigError
from quire.distributed.endpoint import Endpoint, spawn
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
        launched: What the launcher said of this process, None if the workers are its children.
    """

    tp_size: int
    pp_size: int
    num_local: int
    host: str = LOOPBACK
    launched: LaunchedRank | None = None

    @classmethod
    def of(cls, config: EngineConfig) -> Layout:
        """Return the layout that settings ask for.

        Raises:
            ConfigError: A launcher was named, and did not start this process, or another number of them.
        """
        tp_size, pp_size = config.tensor_parallel_size, config.pipeline_parallel_size
        if config.distributed_executor_backend != "external_launcher":
            return cls(tp_size, pp_size, tp_size * pp_size)
        launched = launched_rank()
        if launched is None or launched.world_size != tp_size * pp_size:
            got = "none" if launched is None else str(launched.world_size)
            raise ConfigError(
                f"distributed_executor_backend: expected {tp_size * pp_size} processes for 'external_launcher' "
                f"(tensor_parallel_size {tp_size} * pipeline_parallel_size {pp_size}), got {got}. Start them with "
                f"`torchrun --nproc-per-node {tp_size * pp_size} SCRIPT`."
            )
        return cls(tp_size, pp_size, launched.local_world_size, launched.host, launched)

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.tp_size * self.pp_size

    def check(self, device: str) -> None:
        """Refuse a layout for which this machine has too few devices.

        Raises:
            ConfigError: It is one.
        """
        found = num_devices(device)
        if found is not None and found < self.num_local:
            sizes = [f"{tp} * {found // tp}" for tp in range(1, found + 1) if found % tp == 0]
            raise ConfigError(
                f"tensor_parallel_size * pipeline_parallel_size: expected at most {found}, the GPUs of this machine, "
                f"got {self.tp_size} * {self.pp_size}. Possible: {', '.join(sizes)}, or less."
            )

    def start(self) -> Sequence[Endpoint]:
        """Start the workers of all ranks, or let those in that a launcher has started."""
        if self.launched is None:
            return [spawn(WORKER, rank) for rank in range(self.world_size)]
        return Launched(self.launched).gather(partial(spawn, WORKER, 0))
