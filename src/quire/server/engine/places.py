"""`divide_machine`: what each of several engines on one machine gets of it: GPUs, or cores and memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quire.core import env
from quire.core.config import EngineConfig
from quire.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine process runs; without anything it has the machine that its server has.

    Attributes:
        cores: The cores that its threads may use; None is all of the server's.
        environment: Variables that it is started with, beside the server's own.
        memory_share: Its part of what an engine alone would take.
    """

    cores: frozenset[int] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_share: float = 1.0

    def adapt(self, config: EngineConfig) -> EngineConfig:
        """Return the settings of an engine there."""
        return replace(config, gpu_memory_utilization=config.gpu_memory_utilization * self.memory_share)


def this_machine() -> tuple[list[int], tuple[str, ...]]:
    """Return the cores and the GPUs that this process may use."""
    cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))
    return cores, env.visible_gpus()


def divide_machine(
    num_engines: int, config: EngineConfig, cores: Sequence[int], gpus: Sequence[str]
) -> tuple[Place, ...]:
    """Return a place for each engine: GPUs of its own where there are some, else cores that are neighbours.

    Args:
        num_engines: How many.
        config: How each is to run.
        cores: What there is, in order.
        gpus: What there is, as CUDA_VISIBLE_DEVICES spells them.

    Raises:
        ConfigError: There are fewer GPUs than engines.
    """
    if num_engines == 1:
        return (Place(),)
    if config.distributed_executor_backend == "ray":  # it finds devices; of a CPU's memory each takes its part
        return (Place(memory_share=1.0 if gpus and config.device != "cpu" else 1 / num_engines),) * num_engines
    num_threads = env.num_threads_wish() or max(1, len(cores) // num_engines)
    threads = {"OMP_NUM_THREADS": str(num_threads)}
    if gpus and config.device != "cpu":
        groups = _groups(num_engines, config.tensor_parallel_size * config.pipeline_parallel_size, gpus)
        return tuple(Place(None, {**threads, "CUDA_VISIBLE_DEVICES": ",".join(group)}) for group in groups)
    each = len(cores) // num_engines
    slices = (frozenset(cores[i * each : (i + 1) * each]) if each else None for i in range(num_engines))
    return tuple(Place(own, threads, 1 / num_engines) for own in slices)


def _groups(num_engines: int, each: int, gpus: Sequence[str]) -> list[Sequence[str]]:
    """Return as many GPUs as an engine has ranks for each engine."""
    if num_engines * each > len(gpus):
        raise ConfigError(
            f"replicas: expected at most {len(gpus) // each}, each of {each} of {len(gpus)} GPUs, got {num_engines}. "
            "Lower it, or use device='cpu'."
        )
    return [gpus[i * each : (i + 1) * each] for i in range(num_engines)]
