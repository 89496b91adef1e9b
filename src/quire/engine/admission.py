"""The door of the engine: a prompt and its parameters become a valid `Request`, or a `RequestError`."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from quire.core.errors import RequestError
from quire.core.request import Request
from quire.core.sampling_params import SamplingParams
from quire.sampling.grammar.checker import GrammarChecker
from quire.tokenizer.tokenizer import Tokenizer

Prompt = str | Mapping[str, Any] | Sequence[int]


class Admission:
    """Checks requests against one model.

    Args:
        tokenizer: None if the engine runs on ids alone.
        vocab_size: Ids are below this.
        max_model_len: Longest prompt plus output, in tokens.
        eos_token_ids: Ids that end a sample.
        seed: From which requests without a seed get one, by order of admission.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        seed: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._eos_token_ids = eos_token_ids
        self._seed = seed
        self._checker = GrammarChecker()
        self._numbers = itertools.count(1)  # its `next` is one step for all threads

    def close(self) -> None:
        """End the process that checks structured outputs, if there is one."""
        self._checker.close()

    def admit(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        priority: int,
        arrival_time_s: float,
        cache_salt: str = "",
    ) -> Request:
        """Return the request.

        Args:
            request_id: Its key.
            prompt: Text, token ids, or `{"prompt": str}` or `{"prompt_token_ids": [...]}`.
            params: Its parameters.
            priority: Lower is served first.
            arrival_time_s: Monotonic seconds.
            cache_salt: Cached prefixes are shared with requests of the same salt.

        Raises:
            RequestError: The prompt is empty, too long or not of a known form, an id is not in the vocabulary, or a
                structured output cannot be compiled.
        """
        if not isinstance(params, SamplingParams):
            raise RequestError(f"sampling_params: expected SamplingParams, got {type(params).__name__}.")
        text, ids = self.token_ids(prompt)
        if not ids or text == "":
            raise RequestError("prompt: expected at least one token, got an empty prompt.")
        if len(ids) >= self._max_model_len:
            raise RequestError(
                f"prompt: expected at most {self._max_model_len - 1} tokens (max_model_len={self._max_model_len}, one "
                f"left to generate), got {len(ids)}. Shorten it or raise max_model_len."
            )
        self._check_ids("prompt_token_ids", ids)
        self._check_params(params)
        room = self._max_model_len - len(ids)
        params = replace(
            params,
            max_tokens=min(params.max_tokens or room, room),
            min_tokens=min(params.min_tokens, room),
            seed=params.seed if params.seed is not None else self._next_seed(),
        )
        return Request(
            request_id,
            tuple(ids),
            params,
            frozenset() if params.ignore_eos else self._eos_token_ids,
            text,
            priority,
            arrival_time_s,
            cache_salt,
            bad_words_ids=self._bad_words_ids(params),
        )

    def token_ids(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """Return a prompt's text, if it has one, and its ids.

        Raises:
            RequestError: It is not of a known form.
        """
        text: object = prompt
        ids: object = None
        if isinstance(prompt, Mapping):
            unknown = set(prompt) - {"prompt", "prompt_token_ids"}
            if unknown:
                raise RequestError(f"prompt: expected the keys prompt or prompt_token_ids, got {sorted(unknown)}.")
            text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        elif not isinstance(prompt, str):
            text, ids = None, prompt
        if ids is not None:
            return (text if isinstance(text, str) else None), _integers(ids)
        if not isinstance(text, str):
            raise RequestError(f"prompt: expected text or token ids, got {type(prompt).__name__}.")
        if self._tokenizer is None:
            raise RequestError("prompt: expected prompt_token_ids, because there is no tokenizer, got text.")
        return text, self._tokenizer.encode(text)

    def _check_ids(self, name: str, ids: Iterable[int]) -> None:
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise RequestError(f"{name}: expected ids in [0, {self._vocab_size}), got {token}.")

    def _check_params(self, params: SamplingParams) -> None:
        self._check_ids("stop_token_ids", params.stop_token_ids or ())
        self._check_ids("allowed_token_ids", params.allowed_token_ids or ())
        self._check_ids("logit_bias", params.logit_bias or ())
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(params, name)) is not None and value > self._vocab_size:
                raise RequestError(f"{name}: expected at most {self._vocab_size}, the vocabulary's size, got {value}.")
        if params.detokenize and self._tokenizer is None:
            raise RequestError("detokenize: expected False, because there is no tokenizer, got True.")
        if params.structured_outputs is not None:
            if self._tokenizer is None or all(token >= self._vocab_size for token in self._eos_token_ids):
                raise RequestError("structured_outputs: expected None: the model has no tokenizer that ends a text.")
            self._checker.check(params.structured_outputs)

    def _bad_words_ids(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Encode each bad word as it appears at the start of a text and after a space."""
        if not params.bad_words or self._tokenizer is None:
            return ()
        found: dict[tuple[int, ...], None] = {}
        for word in params.bad_words:
            for text in (word.lstrip(), " " + word.lstrip()):
                ids = tuple(self._tokenizer.encode(text, add_special_tokens=False))
                if ids:
                    found[ids] = None
        return tuple(found)

    def _next_seed(self) -> int:
        """Return the seed of the next request without one: a hash of the engine's seed and a counter."""
        digest = hashlib.blake2b(f"{self._seed}:{next(self._numbers)}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def _integers(ids: object) -> list[int]:
    if not isinstance(ids, Iterable) or isinstance(ids, (str, bytes)):
        raise RequestError(f"prompt_token_ids: expected a list of integers, got {type(ids).__name__}.")
    items = list(ids)
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int):
            raise RequestError(f"prompt_token_ids: expected integers, got {item!r}.")
    return items
