"""Texts of a length in tokens, never the same twice."""

from __future__ import annotations

import random

# Common words: one token in most vocabularies, so that a text's length is close to what was planned.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city name team minute idea kid body face level door art war party"
)


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
