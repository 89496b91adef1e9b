"""`GrammarCompiler`: grammars of structured outputs for one vocabulary, compiled and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quire.core.errors import RequestError
from quire.core.structured_outputs import StructuredOutputsParams
from quire.sampling.grammar.checker import LIMITS
from quire.sampling.grammar.latest import Latest
from quire.sampling.grammar.problems import explain
from quire.sampling.grammar.source import grammar_of

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Words = npt.NDArray[np.int32]
"""A bit for each token, the lowest first, in words of 32."""


@dataclass(frozen=True, slots=True)
class TokenVocabulary:
    """What a grammar must know of tokens.

    Attributes:
        tokens: The bytes that each id adds to a text, one per logit; none for an id without text.
        special_ids: Ids that are no text, whatever they spell.
        eos_token_ids: Ids that end a text, at least one.
    """

    tokens: Sequence[bytes]
    special_ids: frozenset[int]
    eos_token_ids: frozenset[int]


class GrammarCompiler:
    """Compiles for one vocabulary. Safe to share between threads.

    Args:
        vocabulary: Returns it; called when the first grammar is compiled, since it takes 0.3 s for 128,000 tokens.
    """

    def __init__(self, vocabulary: Callable[[], TokenVocabulary]) -> None:
        self._make_vocabulary = vocabulary
        self._compiled: Latest[LLMatcher] = Latest()

    def prepare(self, outputs: StructuredOutputsParams | None = None) -> None:
        """Compile ahead of `start`: some milliseconds in which other threads go on. None prepares the vocabulary alone.

        Raises:
            RequestError: It cannot be compiled.
        """
        if outputs is None:
            _ = self._tokenizer
        else:
            self._matcher(outputs)

    def start(self, outputs: StructuredOutputsParams) -> LLMatcher:
        """Return a matcher at the beginning of a text.

        Raises:
            RequestError: It cannot be compiled.
        """
        return self._matcher(outputs).deep_copy()

    @cached_property
    def vocabulary(self) -> TokenVocabulary:
        """The vocabulary."""
        return self._make_vocabulary()

    @cached_property
    def text_words(self) -> Words:
        """The tokens that any grammar may allow: all but special ones, and those that end a text."""
        bits = np.zeros(num_words(len(self.vocabulary.tokens)) * 32, dtype=np.uint8)
        bits[: len(self.vocabulary.tokens)] = 1
        bits[list(self.vocabulary.special_ids)] = 0
        bits[list(self.vocabulary.eos_token_ids)] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        vocabulary = self.vocabulary
        eos = sorted(vocabulary.eos_token_ids)
        return LLTokenizer(TokenizerWrapper(_Tokens(vocabulary, eos[0])), n_vocab=len(vocabulary.tokens), eos_token=eos)

    def _matcher(self, outputs: StructuredOutputsParams) -> LLMatcher:
        found = self._compiled.get(outputs) or self._compile(outputs)  # nobody waits for another's grammar
        self._compiled.put(outputs, found)
        return found

    def _compile(self, outputs: StructuredOutputsParams) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
        matcher = LLMatcher(self._tokenizer, grammar_of(outputs), log_level=0, limits=limits)
        if matcher.is_error():
            raise RequestError(explain(outputs.kind, matcher.get_error()))
        return matcher


class _Tokens:
    """A vocabulary as llguidance reads it."""

    bos_token_id = None

    def __init__(self, vocabulary: TokenVocabulary, eos_token_id: int) -> None:
        self.tokens = list(vocabulary.tokens)
        self.special_token_ids = sorted(vocabulary.special_ids | vocabulary.eos_token_ids)
        self.eos_token_id = eos_token_id

    def __call__(self, text: object) -> list[int]:
        """Encode a text: not asked for but for a trial, since nothing is forced."""
        return []


def num_words(vocab_size: int) -> int:
    """Return the words of a mask."""
    return -(-vocab_size // 32)
