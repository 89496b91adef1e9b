"""`DistributedRunner`: a runner that sends each step to the workers of all ranks, and takes results from one."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from quire.core.request import ModelOutput, SchedulerOutput
from quire.distributed.tensors.process_group import MeetingPoint
from quire.distributed.workers import WorkerGroup
from quire.runner.parallel.layout import Layout
from quire.runner.parallel.messages import (
    Answer,
    Failed,
    Held,
    Ready,
    Result,
    Sleep,
    Step,
    Vocabulary,
    WakeUp,
    Work,
    encode,
)
from quire.sampling.grammar.compiler import GrammarCompiler

T = TypeVar("T")


class RemoteStep:
    """A step that workers are at.

    Args:
        runner: Whose.
    """

    __slots__ = ("_runner",)

    def __init__(self, runner: DistributedRunner) -> None:
        self._runner = runner

    def is_ready(self) -> bool:
        """Return whether `result` would return at once."""
        return self._runner.has_result()

    def result(self) -> ModelOutput:
        """Wait for the step, and return what it produced.

        Raises:
            WorkerError: A worker is lost.
        """
        return self._runner.take_result()


class DistributedRunner:
    """A `ModelRunner` in the driver of some workers; made by `Ranks.load`.

    A rank that samples knows the tokens by itself, the same as its neighbours: all is deterministic. Those of earlier
    stages are told with the next step, which is why a row is in one step at a time there.

    Args:
        group: The workers, loaded.
        layout: How they share the model.
        reporter: The rank that sends results, one of those that sample.
        ready: What each said when it had loaded.
        grammars: Of the model's vocabulary, for rows with structured outputs.
        meeting: Where the workers have met, which they may look at again as long as they live.
    """

    def __init__(
        self,
        group: WorkerGroup,
        layout: Layout,
        reporter: int,
        ready: Sequence[Ready],
        grammars: GrammarCompiler | None = None,
        meeting: MeetingPoint | None = None,
    ) -> None:
        self.max_ahead = min(each.max_ahead for each in ready) + layout.pp_size - 1
        self.can_pool = ready[reporter].can_pool
        self._group, self._layout, self._reporter, self._grammars = group, layout, reporter, grammars
        self._num_bytes = sum(each.num_bytes for each in ready)
        self._answers = msgspec.msgpack.Decoder(Answer)
        self._work = msgspec.msgpack.Decoder(Work)
        self._num_started = self._num_taken = 0
        self._sampled: list[tuple[int, int]] = []
        self._has_sent_vocabulary = False
        self._in_flight_s, self._began_s = 0.0, 0.0
        self._meeting = meeting
        self._end = weakref.finalize(self, group.close)  # workers end with whom they work for

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers on this machine, in order of ranks."""
        return self._group.pids

    def execute(self, step: SchedulerOutput) -> RemoteStep:
        """Start one step.

        Raises:
            WorkerError: A worker is lost.
        """
        if any(new.params.structured_outputs is not None for new in step.new_rows):
            self._send_vocabulary()
        self._send(Step(step, self._num_taken, tuple(self._sampled)))
        self._sampled.clear()
        if self._num_started == self._num_taken:
            self._began_s = time.monotonic()
        self._num_started += 1
        return RemoteStep(self)

    def has_result(self) -> bool:
        """Return whether the oldest step's result is here."""
        return self._group.has_frame(self._reporter)

    def take_result(self) -> ModelOutput:
        """Wait for the oldest step whose result was not taken.

        Raises:
            WorkerError: A worker is lost.
        """
        output = self._receive(self._reporter, Result).output
        self._num_taken += 1
        if self._num_started == self._num_taken:
            self._in_flight_s += time.monotonic() - self._began_s
        if self._layout.pp_size > 1:
            self._sampled += [(row.row_id, token) for row in output.rows for token in row.token_ids]
        return output

    def num_bytes(self) -> int:
        """Return the bytes of weights and KV cache that all ranks hold together."""
        return self._num_bytes

    def check(self) -> None:
        """See whether all workers live.

        Raises:
            WorkerError: One is lost.
        """
        if self._group.lost is not None:
            raise self._group.lost

    def metrics(self) -> dict[str, float]:
        """Return what ranks have exchanged, as they last said, and how idle the stages were while there was work.

        `pipeline_bubble_perc` is the share of that time, over all ranks, in which one had nothing to compute; where a
        GPU computes, which is not waited for, it says nothing.
        """
        reports = [self._work.decode(report) for report in self._group.reports if report]
        in_flight_s = self._in_flight_s
        if self._num_started > self._num_taken:
            in_flight_s += time.monotonic() - self._began_s
        busy_s = sum(report.busy_s for report in reports)
        idle = 1 - busy_s / (in_flight_s * len(self._group)) if in_flight_s else 0.0
        return {
            "pipeline_bubble_perc": max(0.0, idle),
            "communication_bytes": sum(report.sent_bytes for report in reports),
            "communication_calls": sum(report.num_collectives for report in reports),
        }

    def sleep(self, level: int) -> None:
        """Free the KV cache (level 1), at level 2 the weights as well; all rows are forgotten.

        Raises:
            WorkerError: A worker is lost.
        """
        self._hold(Sleep(level))

    def wake_up(self) -> None:
        """Take back what `sleep` freed.

        Raises:
            WorkerError: A worker is lost.
        """
        self._hold(WakeUp())

    def close(self) -> None:
        """End the workers."""
        self._end()
        self._meeting = None

    def _hold(self, command: msgspec.Struct) -> None:
        self._send(command)
        self._num_bytes = sum(self._receive(rank, Held).num_bytes for rank in range(len(self._group)))

    def _send_vocabulary(self) -> None:
        """Send the vocabulary before the first row with a grammar, once."""
        if self._has_sent_vocabulary:
            return
        assert self._grammars is not None, "the engine admits no structured outputs without a vocabulary"
        known = self._grammars.vocabulary
        self._send(Vocabulary(list(known.tokens), known.special_ids, known.eos_token_ids))
        self._has_sent_vocabulary = True

    def _send(self, command: msgspec.Struct) -> None:
        payload = encode(command)
        for rank in range(len(self._group)):
            self._group.send(rank, payload)

    def _receive(self, rank: int, kind: type[T]) -> T:
        answer = self._answers.decode(self._group.receive(rank))
        if isinstance(answer, Failed):
            raise self._group.verdict(rank)
        assert isinstance(answer, kind), f"rank {rank}: expected {kind.__name__}, got {answer}"
        return answer
