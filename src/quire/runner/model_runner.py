"""`ModelRunner`: what executes the steps of a Plan for a batch of rows; `make_runner` makes the one for a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from quire.core.config import SchedulerConfig
from quire.core.request import ModelOutput, SchedulerOutput
from quire.plan.plan import Plan
from quire.runner.loaded import LoadedPlan
from quire.sampling.grammar.compiler import GrammarCompiler


class Pending(Protocol):
    """A step that has been started."""

    def is_ready(self) -> bool:
        """Return whether `result` would return at once."""
        ...

    def result(self) -> ModelOutput:
        """Wait for the step, and return what it produced."""
        ...


class ModelRunner(Protocol):
    """Owns packed weights, KV cache and rows; turns a `SchedulerOutput` into a `ModelOutput`.

    Attributes:
        max_ahead: Steps that may be started before the result of the first of them is taken.
        can_pool: Whether requests may ask for their prompt's pooled hidden states.
    """

    @property
    def max_ahead(self) -> int:
        """Steps that may be started before the result of the first of them is taken."""
        ...

    @property
    def can_pool(self) -> bool:
        """Whether requests may ask for their prompt's pooled hidden states."""
        ...

    def execute(self, step: SchedulerOutput) -> Pending:
        """Start one step; results are to be taken in the order of the steps.

        Args:
            step: Rows to compute and what changed since the last step.

        Returns:
            What gives one `RowOutput` per row of `step`, in order. A row that fails has its `error` set; the others are
            as if it had not been there. A `FailedStep` if none could be computed; until its result is taken, no other
            step may be started.

        Raises:
            Exception: The device is lost, and all rows with it.
        """
        ...

    def num_bytes(self) -> int:
        """Return the bytes of weights and KV cache that this runner holds."""
        ...

    def check(self) -> None:
        """See whether steps can be run.

        Raises:
            WorkerError: A process is lost that is needed.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Return what this runner has counted, if anything."""
        ...

    def sleep(self, level: int) -> None:
        """Free the KV cache (level 1), at level 2 the weights as well; all rows are forgotten."""
        ...

    def wake_up(self) -> None:
        """Take back what `sleep` freed."""
        ...

    def close(self) -> None:
        """Return everything; nothing can be run afterwards."""
        ...


class LocalRunner(ModelRunner, Protocol):
    """A `ModelRunner` of this process, for a whole network or a part of one."""

    def learn(self, sampled: Sequence[tuple[int, int]]) -> None:
        """Take in tokens that others have sampled, of a network without logits.

        Args:
            sampled: Row ids and their newest tokens; a row that is not known any more is passed over.
        """
        ...


def make_runner(
    plan: Plan,
    config: SchedulerConfig,
    device: str = "cpu",
    *,
    deterministic: bool = True,
    enforce_eager: bool = False,
    on_progress: Callable[[int], None] | None = None,
    on_logits: Callable[[torch.Tensor], None] | None = None,
    grammars: GrammarCompiler | None = None,
) -> LocalRunner:
    """Load a Plan onto a device.

    Args:
        plan: What to execute.
        config: Sizes; how rows are scheduled does not matter here.
        device: Kind of device.
        deterministic: Use only tactics that keep a row's bits.
        enforce_eager: On a GPU, launch every kernel of every step: no captured graphs.
        on_progress: Called with the number of weights loaded so far.
        on_logits: Called with the logits [num_logits, vocab_size] of each step, before anything is sampled.
        grammars: Of the model's vocabulary, for rows with structured outputs.

    Raises:
        PlanError: A weight is missing or damaged.
        CapacityError: The KV cache cannot be allocated.
    """
    loaded = LoadedPlan(plan, config.num_blocks, config.block_size, device, deterministic, on_progress)
    if device == "cpu":
        from quire.runner.cpu_runner import CPURunner

        return CPURunner(loaded, config, on_logits, grammars)
    from quire.runner.gpu_runner import GPURunner

    return GPURunner(loaded, config, enforce_eager, on_logits, grammars)
