"""What is asked when: arrivals and lengths drawn from a seed, and texts of a length in tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import islice, repeat
from typing import NamedTuple

from quire.cli.load.settings import LoadConfig

# Spread of the logarithm of a length. The means that people quote for ShareGPT are from vLLM's paper (figure 11); a
# log-normal with these spreads has its long tail, but is not a fit to the data.
_SPREAD_IN, _SPREAD_OUT = 1.2, 0.9
# Common words: one token in most vocabularies, so that a text's length is close to what was planned.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city name team minute idea kid body face level door art war party"
)


class PlannedRequest(NamedTuple):
    """One request.

    Attributes:
        due_s: When it is sent, seconds from the start.
        num_prompt_tokens: How long its prompt shall be.
        num_output_tokens: How many tokens it asks for.
    """

    due_s: float
    num_prompt_tokens: int
    num_output_tokens: int


def plan_load(config: LoadConfig, max_model_len: int | None) -> list[PlannedRequest]:
    """Return all requests in order; the same for the same settings.

    Args:
        config: Settings.
        max_model_len: Longest prompt and output together, if the server says it. Longer ones are cut.
    """
    times, sizes = random.Random(config.seed), random.Random(config.seed + 1)
    planned = []
    for due_s in _arrivals(config, times):
        prompt, output = (_length(config, sizes, mean, spread) for mean, spread in
                          ((config.input_len, _SPREAD_IN), (config.output_len, _SPREAD_OUT)))  # fmt: skip
        if max_model_len is not None:
            output = min(output, max_model_len - 1)
            prompt = max(1, min(prompt, max_model_len - output))
        planned.append(PlannedRequest(due_s, prompt, output))
    return planned


def _arrivals(config: LoadConfig, rng: random.Random) -> Iterator[float]:
    """Yield due times: gaps of exponential length between requests, or between groups that come together."""
    if config.duration_s is None:
        yield from islice(_endless(config, rng), config.num_requests)
        return
    for due_s in _endless(config, rng):
        if due_s >= config.duration_s:
            return
        yield due_s


def _endless(config: LoadConfig, rng: random.Random) -> Iterator[float]:
    group = config.burst_size if config.arrivals == "burst" else 1
    now_s = 0.0
    while True:
        yield from repeat(now_s, group)
        if not math.isinf(config.rate):
            now_s += rng.expovariate(config.rate / group)


def _length(config: LoadConfig, rng: random.Random, mean: int, spread: float) -> int:
    if config.lengths == "fixed":
        return mean
    return max(1, round(rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)))


class Texts:
    """Random texts of a length in tokens. How many tokens a word has is learned from what the server counted.

    Args:
        seed: Of the words.
    """

    def __init__(self, seed: int) -> None:
        self._rng, self._words = random.Random(seed + 2), _WORDS.split()
        self._tokens_per_word, self._overhead = 1.0, 0.0

    def of_words(self, num_words: int) -> str:
        """Return that many random words, never the same text twice."""
        return " ".join(self._rng.choices(self._words, k=num_words))

    def of_tokens(self, num_tokens: int) -> str:
        """Return a text that has about that many tokens where the server counts them."""
        return self.of_words(max(1, round((num_tokens - self._overhead) / self._tokens_per_word)))

    def learn(self, short: tuple[int, int], long: tuple[int, int]) -> None:
        """Learn from (words, tokens) of two texts of different length."""
        self._tokens_per_word = max(0.1, (long[1] - short[1]) / (long[0] - short[0]))
        self._overhead = short[1] - short[0] * self._tokens_per_word
