"""`IncrementalDetokenizer`: the text of a running sample, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quire.tokenizer.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns the ids of one continuation into text as they come, with constant work per token.

    For every way to split `ids` over calls of `append`, the pieces joined with `finish()` equal

    - `tokenizer.decode(ids)` without a prompt;
    - `tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)):]` with a prompt that ends with a whole character.
      If the prompt's ids end inside a character, the text starts with that whole character instead.

    So a continuation keeps its leading space after a prompt, and loses it only where `decode` drops it.

    Args:
        tokenizer: Whose ids they are.
        skip_special_tokens: Leave special tokens out of the text.
        spaces_between_special_tokens: As in `Tokenizer.decode`.
        prompt_token_ids: What the continuation follows; its text is not returned.

    Example:
        >>> detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=prompt)
        >>> text = "".join(detokenizer.append([token]) for token in tokens) + detokenizer.finish()
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        self._skipped_ids = tokenizer.special_id_set if skip_special_tokens else frozenset[int]()
        visible = (token_id for token_id in reversed(prompt_token_ids) if token_id not in self._skipped_ids)
        self._stream = tokenizer.decoding.stream(visible, spaces_between_special_tokens=spaces_between_special_tokens)

    def append(self, token_ids: Iterable[int]) -> str:
        """Take the next ids and return the text that they complete."""
        push, skipped = self._stream.push, self._skipped_ids
        return "".join([push(token_id) for token_id in token_ids if token_id not in skipped])

    def finish(self) -> str:
        """Return the end of the text: U+FFFD if the last character is incomplete, mostly nothing."""
        return self._stream.finish()
