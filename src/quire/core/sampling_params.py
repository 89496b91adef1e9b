"""`SamplingParams`: how one request is sampled, checked once when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from quire.core.errors import RequestError
from quire.core.structured_outputs import StructuredOutputsParams

MAX_N = 128
MAX_TOKENS = 1 << 24
MAX_LOGPROBS = 1 << 20
MAX_STOPS = 64
MAX_LIST = 1 << 16
GREEDY_EPSILON = 1e-5
_SEED_RANGE = 1 << 63


class RequestOutputKind(Enum):
    """What each `RequestOutput` of a running request carries."""

    CUMULATIVE = "cumulative"
    DELTA = "delta"
    FINAL_ONLY = "final_only"


def _fail(name: str, expected: str, got: object) -> None:
    raise RequestError(f"{name}: expected {expected}, got {got!r}.")


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    """Return `value` as a float inside [low, high] (or (low, high])."""
    bracket = "(" if open_low else "["
    expected = f"a finite number in {bracket}{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _fail(name, expected, value)
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number) or number < low or number > high or (open_low and number == low):
        _fail(name, expected, value)
    return number


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        _fail(name, f"an integer in [{low}, {high}]", value)
    return value  # type: ignore[return-value]


def _optional_integer(name: str, value: object, low: int, high: int) -> int | None:
    return None if value is None else _integer(name, value, low, high)


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        _fail(name, "true or false", value)
    return value  # type: ignore[return-value]


def _strings(name: str, value: object, most: int) -> tuple[str, ...]:
    """Return a tuple of non-empty strings from None, one string or a sequence of them."""
    items: object = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(items, Sequence) or len(items) > most:
        _fail(name, f"a string or a list of at most {most} strings", value)
    for item in items:  # type: ignore[attr-defined]
        if not isinstance(item, str) or not item:
            _fail(name, "non-empty strings", item)
    return tuple(items)  # type: ignore[arg-type]


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    items = () if value is None else value
    if not isinstance(items, Sequence) or isinstance(items, (str, bytes)) or len(items) > MAX_LIST:
        _fail(name, f"a list of at most {MAX_LIST} token ids", value)
    return tuple(_integer(name, item, 0, (1 << 31) - 1) for item in items)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample the continuations of one prompt. Names, defaults and bounds are vLLM's.

    Args:
        n: Number of continuations, 1..128. Continuation `i` is bit-identical to a request of its own with `seed + i`.
        presence_penalty: Subtracted once from the logit of every token generated so far, in [-2, 2].
        frequency_penalty: Subtracted once per occurrence of a token generated so far, in [-2, 2].
        repetition_penalty: Divides positive, multiplies negative logits of tokens in prompt and output, in [0.01, 2].
        temperature: Finite, in [0, 2]. Below 1e-5 means greedy, and top_p, top_k and min_p are reset.
        top_p: Smallest probability mass to keep, in (0, 1].
        top_k: Number of most likely tokens to keep; 0 or -1 keeps all.
        min_p: Drop tokens less likely than `min_p` times the most likely one, in [0, 1].
        seed: Makes the continuation reproducible whatever else is in the batch; None lets the engine choose.
        stop: String or strings that end a continuation. Needs `detokenize`.
        stop_token_ids: Token ids that end a continuation; they stay in `token_ids`, not in `text`.
        ignore_eos: Go on after the end-of-sequence token.
        max_tokens: Most tokens to generate; None means up to `max_model_len`.
        min_tokens: No end-of-sequence or stop token id may be sampled before this many tokens.
        logprobs: Report this many most likely tokens per position beside the sampled one; -1 reports the vocabulary.
        prompt_logprobs: The same for the prompt's tokens; the first entry is None.
        detokenize: Produce text.
        skip_special_tokens: Leave special tokens out of the text.
        spaces_between_special_tokens: Put a space between neighbouring special tokens in the text.
        include_stop_str_in_output: Keep the stop string in the text.
        output_kind: What each output of a running request carries.
        structured_outputs: The form that the text must have; excludes `ignore_eos`, since it says where the text ends.
        logit_bias: Token id to a number in [-100, 100] added to its logit.
        allowed_token_ids: Only these tokens may be sampled.
        bad_words: Strings that may not be generated. Needs `detokenize`.

    Raises:
        RequestError: A field is out of bounds; the message names it, what is expected and what was given.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = field(default=None)

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_lists()
        self._check_together()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_numbers(self) -> None:
        self._set("n", _integer("n", self.n, 1, MAX_N))
        for name in ("presence_penalty", "frequency_penalty"):
            self._set(name, _number(name, getattr(self, name), -2, 2))
        # From below: what is divided by less leaves the range of float32.
        self._set("repetition_penalty", _number("repetition_penalty", self.repetition_penalty, 0.01, 2))
        self._set("temperature", _number("temperature", self.temperature, 0, 2))
        self._set("top_p", _number("top_p", self.top_p, 0, 1, open_low=True))
        self._set("min_p", _number("min_p", self.min_p, 0, 1))
        self._set("top_k", max(0, _integer("top_k", self.top_k, -1, MAX_TOKENS)))
        self._set("seed", _optional_integer("seed", self.seed, -_SEED_RANGE, 2 * _SEED_RANGE - 1))
        self._set("max_tokens", _optional_integer("max_tokens", self.max_tokens, 1, MAX_TOKENS))
        self._set("min_tokens", _integer("min_tokens", self.min_tokens, 0, MAX_TOKENS))
        for name in ("logprobs", "prompt_logprobs"):
            self._set(name, _optional_integer(name, getattr(self, name), -1, MAX_LOGPROBS))
        for name in (
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "include_stop_str_in_output",
        ):
            self._set(name, _boolean(name, getattr(self, name)))
        if self.temperature < GREEDY_EPSILON:
            for name, value in (("temperature", 0.0), ("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
                self._set(name, value)

    def _check_lists(self) -> None:
        self._set("stop", _strings("stop", self.stop, MAX_STOPS))
        self._set("bad_words", _strings("bad_words", self.bad_words, MAX_LIST))
        self._set("stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        if self.allowed_token_ids is not None:
            self._set("allowed_token_ids", _token_ids("allowed_token_ids", self.allowed_token_ids))
            if not self.allowed_token_ids:
                _fail("allowed_token_ids", "at least one token id, or None", self.allowed_token_ids)
        if self.logit_bias is not None:
            self._set("logit_bias", self._checked_bias(self.logit_bias))

    @staticmethod
    def _checked_bias(bias: object) -> dict[int, float]:
        if not isinstance(bias, Mapping) or len(bias) > MAX_LIST:
            _fail("logit_bias", f"a mapping of at most {MAX_LIST} token ids to numbers", bias)
        checked = {}
        for key, value in bias.items():  # type: ignore[attr-defined]
            token = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 11 else key
            checked[_integer("logit_bias key", token, 0, (1 << 31) - 1)] = _number("logit_bias", value, -100, 100)
        return checked

    def _check_together(self) -> None:
        if not isinstance(self.output_kind, RequestOutputKind):
            _fail("output_kind", "a RequestOutputKind", self.output_kind)
        if self.structured_outputs is not None:
            if not isinstance(self.structured_outputs, StructuredOutputsParams):
                _fail("structured_outputs", "StructuredOutputsParams or None", self.structured_outputs)
            if self.ignore_eos:
                raise RequestError("ignore_eos: expected False with structured_outputs, which end the text, got True.")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            _fail("min_tokens", f"at most max_tokens={self.max_tokens}", self.min_tokens)
        for name in ("stop", "bad_words"):
            if getattr(self, name) and not self.detokenize:
                raise RequestError(f"{name} needs text: expected detokenize=True, got False.")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    def for_sample(self, index: int) -> SamplingParams:
        """Return the parameters of continuation `index` alone: `n=1` and seed `seed + index` (mod 2**64)."""
        seed = None if self.seed is None else (self.seed + index) % (1 << 64)
        return replace(self, n=1, seed=seed)


@dataclass(frozen=True, slots=True)
class BeamSearchParams:
    """How to run a beam search over one prompt.

    Args:
        beam_width: Number of beams kept and returned.
        max_tokens: Most tokens to generate.
        ignore_eos: Go on after the end-of-sequence token.
        temperature: Divides the logits before the log-softmax; 0 leaves them as they are.
        length_penalty: A beam's score is its summed logprob over `length ** length_penalty`.
        include_stop_str_in_output: Keep the end-of-sequence token in the beam's text.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        _integer("beam_width", self.beam_width, 1, MAX_N)
        _integer("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        _number("temperature", self.temperature, 0, 2)
        _number("length_penalty", self.length_penalty, -10, 10)
        _boolean("ignore_eos", self.ignore_eos)
        _boolean("include_stop_str_in_output", self.include_stop_str_in_output)
