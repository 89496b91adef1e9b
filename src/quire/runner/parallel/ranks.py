"""`Ranks`: the workers of a model that have met, and have not loaded anything yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from quire.core import errors
from quire.core.errors import QuireError, WorkerError
from quire.core.mapping import Mapping
from quire.distributed.tensors.process_group import MeetingPoint
from quire.distributed.workers import WorkerGroup
from quire.plan.engine_directory import is_engine_directory
from quire.plan.plan import Plan
from quire.runner.parallel.distributed_runner import DistributedRunner
from quire.runner.parallel.layout import Layout
from quire.runner.parallel.messages import Answer, Failed, Load, Open, Opened, Progress, Ready, encode
from quire.sampling.grammar.compiler import GrammarCompiler
from quire.sharding.shard import shard

T = TypeVar("T")


class Ranks:
    """Starts workers and has them open a plan. `load` makes a runner of them, `close` ends them.

    Args:
        plan: Of the whole model.
        layout: How many there are, and who starts them.
        device: Kind of device.
        on_lost: Called once, from another thread, when one is lost.

    Attributes:
        plans: One rank's part of each stage; the others of the stage hold as much.
        available_bytes: Of memory, the least that a rank of each stage has.

    Raises:
        ConfigError: The model cannot be dealt out like that, or there are fewer devices than ranks.
        WorkerError: They cannot be started.
    """

    def __init__(self, plan: Plan, layout: Layout, device: str, on_lost: Callable[[], object] = lambda: None) -> None:
        self._layout, self._device = layout, device
        self.plans = [
            shard(plan, self._mapping(rank), device=device, deterministic=layout.deterministic)
            for rank in range(0, layout.world_size, layout.tp_size)
        ]
        self._layout = layout = layout.placed(device)
        self._meeting = MeetingPoint(layout.host)
        self._group = WorkerGroup(layout.start, on_lost)
        self._answers = msgspec.msgpack.Decoder(Answer)
        with self._closing_on_error():
            self._group.wait_until_up()  # who is killed meanwhile leaves no directory behind
            opened = self._opened(plan)
        available = [each.available_bytes for each in opened]
        self.available_bytes = [min(available[i : i + layout.tp_size]) for i in range(0, len(opened), layout.tp_size)]

    def _opened(self, plan: Plan) -> list[Opened]:
        """Have all ranks open the plan and meet each other."""
        layout = self._layout
        with _engine_directory(plan) as directory:
            layout.publish(directory)
            for rank in range(layout.world_size):
                self._group.send(rank, encode(self._open(directory, rank, self._meeting.address)))
            return [self._answer(rank, Opened) for rank in range(layout.world_size)]

    def load(
        self,
        how: Load,
        on_progress: Callable[[int], None] | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> DistributedRunner:
        """Have all ranks load their parts; returns when they have.

        Args:
            how: For all ranks.
            on_progress: Called with the number of weights that the first rank has loaded so far.
            grammars: Of the model's vocabulary, for rows with structured outputs.

        Raises:
            PlanError: A weight is missing or damaged.
            CapacityError: The KV cache cannot be allocated.
            WorkerError: A worker is lost.
        """
        reporter = self._mapping(self._layout.world_size - 1).tp_group[0]
        with self._closing_on_error():
            for rank in range(self._layout.world_size):
                self._group.send(rank, encode(replace(how, is_reporting=rank == reporter)))
            ready = [self._answer(rank, Ready, on_progress if rank == 0 else None) for rank in range(len(self._group))]
        self._group.watch_closely()
        return DistributedRunner(self._group, self._layout, reporter, ready, grammars, self._meeting)

    def close(self) -> None:
        """End the workers."""
        self._group.close()

    def _mapping(self, rank: int) -> Mapping:
        layout = self._layout
        sizes = {"tp_size": layout.tp_size, "pp_size": layout.pp_size}
        return Mapping(layout.world_size, rank, layout.num_local, **sizes, pp_partition=layout.pp_partition)

    def _open(self, directory: Path, rank: int, store: str) -> Open:
        layout = self._layout
        return Open(
            str(directory.absolute()),
            rank,
            layout.tp_size,
            layout.pp_size,
            self._device,
            store,
            *layout.local(rank),
            layout.pp_partition,
            layout.deterministic,
        )

    def _answer(self, rank: int, kind: type[T], on_progress: Callable[[int], None] | None = None) -> T:
        """Wait for an answer; an error of ours that a rank had is raised as it was there."""
        while True:
            try:
                answer = self._answers.decode(self._group.receive(rank))
            except WorkerError as error:  # perhaps of another rank, which has said why it ends
                words = None if error.rank is None else self._group.last_words(error.rank)
                if words is None:
                    raise
                rank, answer = error.rank or 0, self._answers.decode(words)
            if isinstance(answer, kind):
                return answer
            if isinstance(answer, Failed):
                raise _failure(rank, answer) or self._group.verdict(rank)
            if isinstance(answer, Progress) and on_progress is not None:
                on_progress(answer.done)

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def _failure(rank: int, said: Failed) -> QuireError | None:
    """Return what a rank said last as the error that it was there, None if it was not one of ours."""
    kind = getattr(errors, said.kind, None)
    if isinstance(kind, type) and issubclass(kind, QuireError):
        return kind(f"rank {rank}: {said.message}")
    return None


@contextmanager
def _engine_directory(plan: Plan) -> Iterator[Path]:
    """Give an engine directory that holds the plan, for as long as the workers need to open its files.

    What was built in memory is saved for them: kilobytes, as far as its weights lie in a checkpoint.
    """
    if plan.directory is not None and is_engine_directory(plan.directory):
        yield plan.directory
        return
    with TemporaryDirectory(prefix="quire-") as directory:
        plan.save(Path(directory) / "engine")
        yield Path(directory) / "engine"
