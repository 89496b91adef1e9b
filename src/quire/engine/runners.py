"""What executes a Plan: a runner in this process, or one that drives workers, each with a part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from quire.core.config import EngineConfig, SchedulerConfig
from quire.distributed.torchrun import Launched
from quire.engine.resolve import resolve, resolve_parts
from quire.plan.cores import use_cores
from quire.plan.device import device_kind
from quire.plan.memory import MemoryPlan
from quire.plan.plan import Plan
from quire.runner.model_runner import ModelRunner, make_runner
from quire.runner.parallel.layout import Layout
from quire.sampling.grammar.compiler import GrammarCompiler


class Loaded(NamedTuple):
    """A Plan, ready to run.

    Attributes:
        scheduler: The sizes it was loaded with.
        memory: Where the bytes go; of several ranks, those of the one with the fewest blocks.
        runner: What executes it.
    """

    scheduler: SchedulerConfig
    memory: MemoryPlan
    runner: ModelRunner


def follow_driver(config: EngineConfig) -> None:
    """In a process that a launcher started as one of the workers: be one until the driver is gone, and leave then.

    Raises:
        ConfigError: A launcher was named, and did not start this process, or another number of them.
        SystemExit: The driver is gone.
    """
    launched = Layout.of(config).launched
    if launched is not None and launched.rank > 0:
        from quire.runner.parallel.worker import serve

        raise SystemExit(serve(*Launched(launched).follow()))


def load_runner(
    plan: Plan,
    config: EngineConfig,
    on_progress: Callable[[int], None] | None = None,
    grammars: GrammarCompiler | None = None,
    on_lost: Callable[[], object] = lambda: None,
) -> Loaded:
    """Load a Plan as the settings ask.

    Args:
        plan: What to execute.
        config: How, and on how many ranks.
        on_progress: Called with the number of weights loaded so far.
        grammars: Of the model's vocabulary, for rows with structured outputs.
        on_lost: Called once, from another thread, when a worker is lost.

    Raises:
        ConfigError: A setting contradicts the model, or there are fewer devices than ranks.
        CapacityError: The model does not fit.
        PlanError: A weight is missing or damaged.
        WorkerError: A worker cannot be started.
    """
    layout, device = Layout.of(config), device_kind(config.device)
    if layout.world_size == 1:
        if device == "cpu":
            use_cores()  # first: memory depends on the number of threads
        scheduler, memory = resolve(config, plan)
        runner = make_runner(
            plan,
            scheduler,
            device,
            deterministic=config.deterministic,
            enforce_eager=config.enforce_eager,
            on_progress=on_progress,
            grammars=grammars,
        )
        return Loaded(scheduler, memory, runner)
    return _load_ranks(plan, config, layout, device, on_progress, grammars, on_lost)


def _load_ranks(
    plan: Plan,
    config: EngineConfig,
    layout: Layout,
    device: str,
    on_progress: Callable[[int], None] | None,
    grammars: GrammarCompiler | None,
    on_lost: Callable[[], object],
) -> Loaded:
    from quire.runner.parallel.messages import Load  # late: torch.distributed takes a tenth of a second
    from quire.runner.parallel.ranks import Ranks
    from quire.sharding.cost import pp_partition_of

    layout = replace(layout, pp_partition=pp_partition_of(plan, config))
    ranks = Ranks(plan, layout, device, on_lost)
    try:
        scheduler, memory = resolve_parts(config, list(zip(ranks.plans, ranks.available_bytes, strict=True)))
    except BaseException:
        ranks.close()
        raise
    how = Load(scheduler, config.enforce_eager)
    return Loaded(scheduler, memory, ranks.load(how, on_progress, grammars))
