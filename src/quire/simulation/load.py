"""What is asked when: arrivals and lengths drawn from a seed, for simulated and for real servers alike."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import NamedTuple

from quire.core.config import at_least, choice, option
from quire.core.errors import ConfigError

ARRIVALS = ("poisson", "burst")
LENGTHS = ("fixed", "sharegpt")
# Spread of the logarithm of a length. The means that people quote for ShareGPT are from vLLM's paper (figure 11); a
# log-normal with these spreads has its long tail, but is not a fit to the data.
_SPREAD_IN, _SPREAD_OUT = 1.2, 0.9


@dataclass(frozen=True, slots=True)
class SyntheticLoad:
    """When requests come, and how long they are.

    Raises:
        ConfigError: A value is out of bounds.
    """

    rate: float = field(default=4.0, metadata=option("requests per second on average; inf: all at once"))
    arrivals: str = field(
        default="poisson",
        metadata=option("poisson: at random, each on its own; burst: in groups, at random", choices=ARRIVALS),
    )
    burst_size: int = field(default=8, metadata=option("requests of a group under burst arrivals"))
    num_requests: int = field(default=100, metadata=option("requests, unless a duration is set"))
    duration_s: float | None = field(default=None, metadata=option("seconds in which requests come, however many"))
    lengths: str = field(
        default="fixed",
        metadata=option("fixed, or drawn with a long tail as in ShareGPT, with these means", choices=LENGTHS),
    )
    input_len: int = field(default=128, metadata=option("prompt tokens; ShareGPT's mean is about 161"))
    output_len: int = field(default=128, metadata=option("generated tokens; ShareGPT's mean is about 338"))
    seed: int = field(default=0, metadata=option("of arrivals, lengths and prompts"))

    def __post_init__(self) -> None:
        for name in ("burst_size", "num_requests", "input_len", "output_len"):
            at_least(name, getattr(self, name), 1)
        for name in ("rate", "duration_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: expected more than 0, got {value}.")
        if self.duration_s is not None and math.isinf(self.rate * self.duration_s):
            raise ConfigError("duration_s: expected a finite rate and duration, got another. Set num_requests instead.")
        choice("arrivals", self.arrivals, ARRIVALS)
        choice("lengths", self.lengths, LENGTHS)


class PlannedRequest(NamedTuple):
    """One request.

    Attributes:
        due_s: When it is sent, seconds from the start.
        num_prompt_tokens: How long its prompt shall be.
        num_output_tokens: How many tokens it asks for.
        begins_with: (content, tokens) of pieces that the prompt begins with; equal content is equal tokens. What it has
            beyond is like nothing else.
    """

    due_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    begins_with: tuple[tuple[int, int], ...] = ()


def plan_load(config: SyntheticLoad, max_model_len: int | None) -> list[PlannedRequest]:
    """Return all requests in order; the same for the same settings.

    Args:
        config: Settings.
        max_model_len: Longest prompt and output together, if the server says it. Longer ones are cut.
    """
    times, sizes = random.Random(config.seed), random.Random(config.seed + 1)
    planned = []
    for due_s in arrivals(config, times):
        prompt, output = (_length(config, sizes, mean, spread) for mean, spread in
                          ((config.input_len, _SPREAD_IN), (config.output_len, _SPREAD_OUT)))  # fmt: skip
        if max_model_len is not None:
            output = min(output, max_model_len - 1)
            prompt = max(1, min(prompt, max_model_len - output))
        planned.append(PlannedRequest(due_s, prompt, output))
    return planned


def share_prefixes(
    planned: Sequence[PlannedRequest], num_prefixes: int, prefix_len: int, seed: int
) -> list[PlannedRequest]:
    """Return the requests with prompts that begin with one of several system prompts, drawn at random.

    Args:
        planned: Requests; prompts that are no longer than the prefix are part of it.
        num_prefixes: How many system prompts there are; 0 leaves prompts as they are.
        prefix_len: How long each of them is, in tokens.
        seed: Of the choice.
    """
    if not num_prefixes:
        return list(planned)
    rng = random.Random(seed + 2)
    return [
        item._replace(begins_with=((rng.randrange(num_prefixes), min(prefix_len, item.num_prompt_tokens)),))
        for item in planned
    ]


def arrivals(config: SyntheticLoad, rng: random.Random) -> Iterator[float]:
    """Yield due times: gaps of exponential length between requests, or between groups that come together."""
    if config.duration_s is None:
        yield from islice(_endless(config, rng), config.num_requests)
        return
    for due_s in _endless(config, rng):
        if due_s >= config.duration_s:
            return
        yield due_s


def _endless(config: SyntheticLoad, rng: random.Random) -> Iterator[float]:
    group = config.burst_size if config.arrivals == "burst" else 1
    now_s = 0.0
    while True:
        yield from repeat(now_s, group)
        if not math.isinf(config.rate):
            now_s += rng.expovariate(config.rate / group)


def _length(config: SyntheticLoad, rng: random.Random, mean: int, spread: float) -> int:
    if config.lengths == "fixed":
        return mean
    return max(1, round(rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)))
