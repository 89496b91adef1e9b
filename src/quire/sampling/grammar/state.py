"""`GrammarState`: how far one sample is in its grammar, and which tokens may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quire.core.errors import RequestError
from quire.core.structured_outputs import StructuredOutputsParams
from quire.sampling.grammar.compiler import GrammarCompiler, Words
from quire.sampling.grammar.problems import explain

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarState:
    """Follows the tokens of one sample. It learns of them when a mask is asked for, after a preemption of all again.

    Args:
        compiler: Of the vocabulary.
        outputs: What the sample must look like; known to compile.
    """

    __slots__ = ("_compiler", "_matcher", "_num_consumed", "_outputs")

    def __init__(self, compiler: GrammarCompiler, outputs: StructuredOutputsParams) -> None:
        self._compiler = compiler
        self._outputs = outputs
        self._matcher: LLMatcher | None = None
        self._num_consumed = 0

    def mask(self, output_token_ids: Sequence[int]) -> Words:
        """Return the tokens that may follow those generated so far: an end-of-sequence token where the text may end.

        Args:
            output_token_ids: All of them; those of the last call come first.

        Raises:
            RequestError: The grammar does not allow them, or a step of it costs too much.
        """
        if self._matcher is None:
            self._matcher = self._compiler.start(self._outputs)
        matcher, words = self._matcher, np.zeros_like(self._compiler.text_words)
        matcher.consume_tokens(list(output_token_ids[self._num_consumed :]))
        self._num_consumed = len(output_token_ids)
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if matcher.is_error():  # whatever the mask says then, it says it of nothing
            raise RequestError(explain(self._outputs.kind, matcher.get_error()))
        words &= self._compiler.text_words
        return words
