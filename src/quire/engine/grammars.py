"""A tokenizer's vocabulary as grammars need it."""

from __future__ import annotations

from quire.sampling.grammar.compiler import GrammarCompiler, TokenVocabulary
from quire.tokenizer.tokenizer import Tokenizer


def make_grammars(
    tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: frozenset[int]
) -> GrammarCompiler | None:
    """Return what compiles structured outputs; None without a tokenizer, or where no token says that a text ends.

    Args:
        tokenizer: None if the engine runs on ids alone.
        vocab_size: Logits of the model.
        eos_token_ids: Ids that end a sample.
    """
    eos = frozenset(token for token in eos_token_ids if token < vocab_size)
    if tokenizer is None or not eos:
        return None

    def vocabulary() -> TokenVocabulary:
        tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        return TokenVocabulary(
            tokens, frozenset(token for token in tokenizer.special_id_set if token < vocab_size), eos
        )

    return GrammarCompiler(vocabulary)
