"""`Backend`: what a vocabulary must offer, whichever library reads it."""

from __future__ import annotations

from typing import Protocol

from quire.tokenizer.decoding import Decoding


class Backend(Protocol):
    """One vocabulary with its rules.

    Attributes:
        num_ids: One more than the highest id.
        special_ids: Ids left out of text under `skip_special_tokens`.
        decoding: From ids to text.
        default_names: Special tokens of this kind of vocabulary, for files that name none.
    """

    num_ids: int
    special_ids: frozenset[int]
    decoding: Decoding
    default_names: dict[str, str]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of well-formed text."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary spells it."""
        ...


GPT2_NAMES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
