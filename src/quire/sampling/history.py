"""What a sample has said so far, kept up to date token by token, so that a step costs no pass over the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class TokenCounts:
    """The distinct tokens of a sample and how often each was generated. Sparse: a vocabulary is large.

    Args:
        prompt_token_ids: Tokens that count as seen but not as generated.
        output_token_ids: Tokens generated so far.
    """

    __slots__ = ("_counts", "_ids", "_slots")

    def __init__(self, prompt_token_ids: Iterable[int] = (), output_token_ids: Iterable[int] = ()) -> None:
        self._slots = {token_id: slot for slot, token_id in enumerate(dict.fromkeys(prompt_token_ids))}
        self._ids = np.fromiter(self._slots, dtype=np.int64, count=len(self._slots))
        self._counts = np.zeros(len(self._slots), dtype=np.float32)
        for token_id in output_token_ids:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Count one more generated token, in constant time on average."""
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot >= len(self._ids):
            self._grow()
        self._ids[slot] = token_id
        self._counts[slot] += 1

    def _grow(self) -> None:
        extra = max(64, len(self._ids))
        self._ids = np.concatenate([self._ids, np.zeros(extra, dtype=np.int64)])
        self._counts = np.concatenate([self._counts, np.zeros(extra, dtype=np.float32)])

    @property
    def token_ids(self) -> Ids:
        """Distinct ids, [num_seen], int64. A view: do not keep it."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """How often each of `token_ids` was generated, [num_seen], float32: 0 if only in the prompt. A view."""
        return self._counts[: len(self._slots)]


class BadWords:
    """Token sequences that may not be generated, found by what precedes their last token.

    Args:
        sequences: Token ids of each bad word. An empty sequence bans nothing.
    """

    __slots__ = ("_last_ids", "_lengths", "last_token_ids")

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self._last_ids: dict[tuple[int, ...], list[int]] = {}
        for *beginning, last_id in filter(None, sequences):
            self._last_ids.setdefault(tuple(beginning), []).append(last_id)
        self._lengths = sorted({len(beginning) for beginning in self._last_ids})
        self.last_token_ids = [last_id for last_ids in self._last_ids.values() for last_id in last_ids]

    def banned_ids(self, output_token_ids: Sequence[int]) -> list[int]:
        """Return the tokens that would complete a bad word after `output_token_ids`.

        Only generated tokens are looked at: a word that begins in the prompt is not generated as a whole.
        """
        num_output_tokens = len(output_token_ids)
        banned: list[int] = []
        for length in self._lengths:
            if length <= num_output_tokens:
                beginning = tuple(output_token_ids[num_output_tokens - length :])
                banned += self._last_ids.get(beginning, ())
        return banned
