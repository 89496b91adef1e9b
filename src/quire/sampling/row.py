"""`SamplingRow`: what the sampler needs of one sample; `SampledToken`: what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from quire.core.request import TokenLogprobs
from quire.core.sampling_params import SamplingParams
from quire.sampling.grammar.state import GrammarState
from quire.sampling.history import BadWords, Ids, TokenCounts

NO_IDS: Ids = np.zeros(0, dtype=np.int64)


class SampledToken(msgspec.Struct, frozen=True):
    """Result of one row.

    Attributes:
        token_id: The chosen token, -1 if the row failed.
        logprobs: If the row asked for them: the chosen token's, then the most likely tokens'.
        error: Why this row alone failed, or None.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None


class SamplingRow:
    """One running sample. Made when the sample starts, told of every token with `append`.

    Args:
        params: Parameters of this sample alone (`n=1`); `seed` is filled in unless it is greedy.
        prompt_token_ids: The prompt; read once, and only if `repetition_penalty` needs it.
        output_token_ids: Tokens generated so far; more than none after a preemption.
        stop_token_ids: Ids that may not be sampled before `params.min_tokens` tokens.
        bad_words_ids: Token sequences that may not be generated.
        grammar: Where the sample is in its structured output, if it has one; at the beginning, whatever was generated.
    """

    __slots__ = (
        "_bad_words",
        "_id_ranges",
        "_stop_ids",
        "allowed",
        "bias",
        "counts",
        "grammar",
        "output_token_ids",
        "params",
    )

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int] = (),
        stop_token_ids: Iterable[int] = (),
        bad_words_ids: Sequence[Sequence[int]] = (),
        grammar: GrammarState | None = None,
    ) -> None:
        assert params.seed is not None or params.is_greedy, "the engine fills in the seed before it makes rows"
        self.params = params
        self.grammar = grammar
        self.output_token_ids = list(output_token_ids)
        self.allowed = None if params.allowed_token_ids is None else _ids(params.allowed_token_ids)
        self.bias = _bias(params)
        self.counts = _counts(params, prompt_token_ids, output_token_ids)
        self._bad_words = BadWords(bad_words_ids) if bad_words_ids else None
        self._stop_ids = sorted(set(stop_token_ids)) if params.min_tokens else []
        self._id_ranges = self._ranges()

    def append(self, token_id: int) -> None:
        """Tell the row which token it got."""
        self.output_token_ids.append(token_id)
        if self.counts is not None:
            self.counts.append(token_id)

    @property
    def has_edits(self) -> bool:
        """Whether anything but temperature and the filters may change this row's logits."""
        listed = (self.allowed, self.bias, self.counts, self.grammar)
        return any(each is not None for each in listed) or bool(self._bad_words or self._stop_ids)

    def banned_ids(self) -> Ids:
        """Return the ids that may not come next: stop tokens before `min_tokens`, ends of bad words. int64."""
        banned: list[int] = []
        if len(self.output_token_ids) < self.params.min_tokens:
            banned += self._stop_ids
        if self._bad_words is not None:
            banned += self._bad_words.banned_ids(self.output_token_ids)
        return np.array(banned, dtype=np.int64) if banned else NO_IDS

    def problem(self, vocab_size: int) -> str | None:
        """Return why this row cannot be sampled from `vocab_size` logits, or None."""
        for name, low, high in self._id_ranges:
            if low < 0 or high >= vocab_size:
                got = low if low < 0 else high
                return (
                    f"{name}: expected token ids in [0, {vocab_size}), got {got}. Use ids of this model's vocabulary."
                )
        return None

    def _ranges(self) -> list[tuple[str, int, int]]:
        """Return (name, lowest id, highest id) of every list that will index logits."""
        params = self.params
        lists: dict[str, Iterable[int]] = {
            "allowed_token_ids": params.allowed_token_ids or (),
            "logit_bias": params.logit_bias or (),
            "stop_token_ids": self._stop_ids,
            "bad_words": self._bad_words.last_token_ids if self._bad_words else (),
            "tokens under a penalty": () if self.counts is None else self.counts.token_ids.tolist(),
        }
        return [(name, min(ids), max(ids)) for name, ids in lists.items() if ids]


def _ids(token_ids: Iterable[int]) -> Ids:
    return np.array(sorted(set(token_ids)), dtype=np.int64)


def _bias(params: SamplingParams) -> tuple[Ids, npt.NDArray[np.float32]] | None:
    """Return ids and values of `logit_bias`, or None without any."""
    if not params.logit_bias:
        return None
    values = np.array(list(params.logit_bias.values()), dtype=np.float32)
    return np.array(list(params.logit_bias), dtype=np.int64), values


def _counts(params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> TokenCounts | None:
    """Return the bookkeeping that the penalties need, or None without any."""
    if params.repetition_penalty != 1.0:
        return TokenCounts(prompt, output)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        return TokenCounts((), output)
    return None
