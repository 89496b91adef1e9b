"""`Replica`: the real scheduler and block pool, driven step by step under a virtual clock."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from quire.core.config import SchedulerConfig
from quire.core.errors import CapacityError, RequestError
from quire.core.request import ModelOutput, Request, RowOutput, SampleUpdate, ScheduledRow, SchedulerOutput
from quire.core.sampling_params import SamplingParams
from quire.scheduler.scheduler import Scheduler
from quire.simulation.load import PlannedRequest
from quire.simulation.timing.costs import step_shape
from quire.simulation.timing.times import StepTimes

_CONTENT = 1 << 24  # ids of a piece of content: more than any prompt has tokens
_TOKEN = (0,)  # what every row samples; it ends none, since requests ignore end-of-sequence


@dataclass(slots=True)
class SimulatedRequest:
    """What became of a request, in seconds of the virtual clock.

    Attributes:
        number: Its place in the load.
        planned: When it came, and how long it is.
        replica: Where it went.
        scheduled_s: When it got a seat for the first time; None before, or if it was refused.
        first_s: When its first token came.
        last_s: When its latest token came.
        num_output_tokens: How many have come.
        num_cached_tokens: Prompt tokens that came from the prefix cache.
        gaps_s: Between two tokens.
        is_done: Whether it has ended.
        refusal: Why it never ran; empty if it did.
    """

    number: int
    planned: PlannedRequest
    replica: int = -1
    scheduled_s: float | None = None
    first_s: float | None = None
    last_s: float = 0.0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    gaps_s: array[float] = field(default_factory=lambda: array("d"))
    is_done: bool = False
    refusal: str = ""

    def note(self, update: SampleUpdate, now_s: float) -> None:
        """Take in news."""
        if update.new_token_ids:
            if self.first_s is None:
                self.first_s = now_s
            else:
                self.gaps_s.append(now_s - self.last_s)
            self.last_s = now_s
            self.num_output_tokens += len(update.new_token_ids)
        self.num_cached_tokens = update.num_cached_tokens
        self.is_done = update.finish_reason is not None


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that the devices work on until `ready_s`."""

    step: SchedulerOutput
    ready_s: float


class Replica:
    """One engine: a scheduler, its block pool, and the stages that its steps pass through.

    Args:
        number: Which of the cluster's.
        config: Of the scheduler.
        times: What a step takes.

    Attributes:
        now_s: Its host's clock. It never goes back.
        busy_s: Seconds of work by stage.
        num_steps: Steps so far.
        num_unfinished: Requests that came and have not ended.
        num_prompt_tokens: Of those requests, the length of all prompts.
    """

    def __init__(self, number: int, config: SchedulerConfig, times: StepTimes) -> None:
        self.number = number
        self.scheduler = Scheduler(config)
        self.now_s = 0.0
        self.busy_s = [0.0] * times.num_stages
        self.num_steps = 0
        self.num_unfinished = 0
        self.num_prompt_tokens = 0
        self._requests: dict[str, SimulatedRequest] = {}
        self._times = times
        self._is_piped = times.num_stages > 1
        self._max_in_flight = times.num_stages + times.is_ahead
        self._free_s = [0.0] * times.num_stages  # when each stage has done what was given to it
        self._known_s: dict[int, float] = {}  # when the newest token of a row that is in flight will be there
        self._in_flight: deque[_Flight] = deque()
        self._inbox: deque[SimulatedRequest] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do until a request comes."""
        return not self._inbox and not self._in_flight and not self.scheduler.has_unfinished()

    def add(self, request: SimulatedRequest) -> None:
        """Let a request come, at the time at which it is due; the scheduler sees it before the next step after that."""
        if self.is_idle:
            self.now_s = max(self.now_s, request.planned.due_s)
        request.replica = self.number
        self.num_unfinished += 1
        self.num_prompt_tokens += request.planned.num_prompt_tokens
        self._inbox.append(request)

    def step(self) -> None:
        """Do what an engine does in a round: take in requests, start a step, take the result of the oldest in flight.

        A result is waited for when as many steps are in flight as may be, or when nothing else can be done.
        """
        self._take_in()
        step = self.scheduler.schedule()
        if step.rows:
            self._start(step)
        for request_id, _ in self.scheduler.take_seated():
            self._requests[request_id].scheduled_s = self.now_s
        if self._in_flight and (not step.rows or len(self._in_flight) >= self._max_in_flight):
            self._finish(self._in_flight.popleft())

    def _take_in(self) -> None:
        while self._inbox and self._inbox[0].planned.due_s <= self.now_s:
            request = self._inbox.popleft()
            try:
                self.scheduler.add(_as_request(request))
                self._requests[str(request.number)] = request
            except (RequestError, CapacityError) as error:
                request.refusal = str(error)
                self._leave(request)

    def _leave(self, request: SimulatedRequest) -> None:
        self.num_unfinished -= 1
        self.num_prompt_tokens -= request.planned.num_prompt_tokens

    def _start(self, step: SchedulerOutput) -> None:
        """Give a step to the stages: each begins when it is free and has what the one before sends.

        The first stage needs the tokens that the rows computed last, which come from the last one.
        """
        seconds = self._times.of(step_shape(step, self._times.windows))
        self.now_s += seconds.host
        end_s = self.now_s
        if self._is_piped:  # else the stage is free no earlier than that
            end_s = max(end_s, max(self._known_s.get(row.row_id, 0.0) for row in step.rows))
        for stage, stage_s in enumerate(seconds.stages):
            end_s = self._free_s[stage] = max(end_s, self._free_s[stage]) + stage_s
            self.busy_s[stage] += stage_s
        if self._is_piped:
            self._known_s.update((row.row_id, end_s) for row in step.rows)
        self._in_flight.append(_Flight(step, end_s))
        self.num_steps += 1

    def _finish(self, flight: _Flight) -> None:
        """Wait for a step, and take in what it produced."""
        self.now_s = max(self.now_s, flight.ready_s)
        output = ModelOutput(tuple(RowOutput(row.row_id, _TOKEN if row.is_sampled else ()) for row in flight.step.rows))
        for update in self.scheduler.update(flight.step, output):
            request = self._requests[update.request_id]
            request.note(update, self.now_s)
            if request.is_done:
                self._leave(self._requests.pop(update.request_id))
        if self._is_piped:
            self._forget(flight.step.rows, flight.ready_s)

    def _forget(self, rows: Sequence[ScheduledRow], ready_s: float) -> None:
        for row in rows:
            if self._known_s.get(row.row_id) == ready_s:
                del self._known_s[row.row_id]


def _as_request(request: SimulatedRequest) -> Request:
    planned = request.planned
    params = _params(planned.num_output_tokens)
    return Request(str(request.number), tuple(_token_ids(request)), params, arrival_time_s=planned.due_s)


def _token_ids(request: SimulatedRequest) -> Iterator[int]:
    """Yield ids: the same for the same content, and for what is its own unlike all others."""
    left = request.planned.num_prompt_tokens
    for content, count in request.planned.begins_with:
        taken = min(left, count)
        yield from range(content * _CONTENT, content * _CONTENT + taken)
        left -= taken
    own = -(request.number + 1) * _CONTENT
    yield from range(own, own + left)


@lru_cache(maxsize=4096)
def _params(num_output_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_output_tokens, ignore_eos=True, detokenize=False)
