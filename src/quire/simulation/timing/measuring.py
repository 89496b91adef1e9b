"""`measure`: drive a real engine through steps of many shapes, and time each of them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

from quire.core.config import SchedulerConfig
from quire.core.request import ModelOutput, SampleUpdate, SchedulerOutput
from quire.core.sampling_params import RequestOutputKind, SamplingParams
from quire.scheduler.scheduler import Scheduler
from quire.simulation.timing.costs import Window, step_shape
from quire.simulation.timing.fitting import TimedStep

KNOTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
"""Numbers of rows with a factor of their own: dense where a tile more or less shows."""

_MOST_ROWS = 64  # that decode at once; beyond, the host's time by row and the factors of prompts say it
_STEPS_EACH, _MORE_STEPS = 3, 12  # with as many rows, and so many by the row: few rows are fast once they go on


class Engine(Protocol):
    """What is measured: the face of `quire.engine.llm_engine.LLMEngine`."""

    def add_request(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        """Queue a request."""
        ...

    def step(self) -> object:
        """Run a step."""
        ...

    def has_unfinished_requests(self) -> bool:
        """Return whether there is anything left to do."""
        ...


class TimedScheduler(Scheduler):
    """A scheduler that times the steps whose results it gets.

    A step takes from the end of the one before to its own: scheduling and what is made of results are in it.

    Args:
        config: As for any.
        windows: Of the model.

    Attributes:
        config: As given.
        steps: What was timed since the last `begin`.
    """

    def __init__(self, config: SchedulerConfig, windows: Sequence[Window]) -> None:
        super().__init__(config)
        self.config = config
        self.steps: list[TimedStep] = []
        self._windows = windows
        self._last_s = 0.0

    def begin(self) -> None:
        """Forget what was timed; the next step is asked for now."""
        self.steps = []
        self._last_s = time.perf_counter()

    def update(self, scheduled: SchedulerOutput, output: ModelOutput) -> list[SampleUpdate]:
        """Take in a step's results, and the time."""
        now = time.perf_counter()
        self.steps.append(TimedStep(step_shape(scheduled, self._windows), now - self._last_s))
        self._last_s = now
        return super().update(scheduled, output)


class Probe(NamedTuple):
    """A request that makes steps to be timed.

    Attributes:
        num_prompt_tokens: Its prompt.
        num_output_tokens: What it generates.
        at_step: The step of its session before which it comes.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    at_step: int = 0


def sessions(config: SchedulerConfig) -> Iterator[list[Probe]]:
    """Yield groups of requests that pass through the shapes of steps, the most telling first.

    Args:
        config: Limits of what fits.
    """
    longest = config.max_model_len - 1
    budget = min(longest, config.max_num_batched_tokens)
    most = min(_MOST_ROWS, config.max_num_seqs)
    alone = [length for length in reversed(KNOTS) if length <= budget]
    yield [Probe(min(8, longest), 2)]  # the first steps find memory and prove shapes; they are timed, and left out
    yield _falling(most, min(32, longest))
    yield from ([Probe(length, 1)] for length in alone[::3])
    yield _falling(min(8, most), min(512, longest // 2))
    yield [*_falling(min(16, most), min(64, longest // 2)), *(Probe(min(200, longest), 2, 4 * i + 2) for i in range(4))]
    yield from ([Probe(length, 1)] for i, length in enumerate(alone) if i % 3)
    if longest > config.max_num_batched_tokens:  # a prompt in pieces: the second sees the first
        yield [Probe(min(longest, config.max_num_batched_tokens * 3 // 2), 1)]
    yield from ([Probe(length, 1)] for length in alone if length <= 512)
    yield _falling(most, min(16, longest))


def _falling(most: int, num_prompt_tokens: int) -> list[Probe]:
    """Return rows of which so many end at a time that every knot below is the number of rows for some steps."""
    counts = [most, *(knot for knot in reversed(KNOTS) if knot < most)]
    ends = accumulate(_STEPS_EACH + _MORE_STEPS // count for count in counts)
    ending = (count - after for count, after in pairwise([*counts, 0]))
    return [
        Probe(num_prompt_tokens, end + 1) for end, several in zip(ends, ending, strict=True) for _ in range(several)
    ]


def measure(engine: Engine, scheduler: TimedScheduler, vocab_size: int, limit_s: float) -> list[TimedStep]:
    """Return the times of steps of many shapes.

    Args:
        engine: Schedules by `scheduler`.
        scheduler: Times the steps.
        vocab_size: Of the model, for random prompts.
        limit_s: No session begins later than this.
    """
    steps: list[TimedStep] = []
    start_s, rng = time.perf_counter(), random.Random(0)
    for number, probes in enumerate(sessions(scheduler.config)):
        if number and time.perf_counter() - start_s > limit_s:
            break
        scheduler.begin()
        _run(engine, f"measure-{number}", probes, rng, vocab_size)
        steps += scheduler.steps if number else []
    return steps


def _run(engine: Engine, name: str, probes: Sequence[Probe], rng: random.Random, vocab_size: int) -> None:
    """Put requests in before their steps, and step until all have ended."""
    left, step = sorted(enumerate(probes), key=lambda item: item[1].at_step), 0
    while left or engine.has_unfinished_requests():
        while left and (left[0][1].at_step <= step or not engine.has_unfinished_requests()):
            index, probe = left.pop(0)
            prompt = [rng.randrange(vocab_size) for _ in range(probe.num_prompt_tokens)]
            engine.add_request(f"{name}-{index}", prompt, streamed(probe.num_output_tokens))
        engine.step()
        step += 1


def streamed(num_output_tokens: int) -> SamplingParams:
    """Return parameters of a request that gets so many tokens, each as it comes."""
    return SamplingParams(
        temperature=0, max_tokens=num_output_tokens, ignore_eos=True, detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip
