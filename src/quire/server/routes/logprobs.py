"""Logprobs in the two shapes that clients know: parallel lists of completions, and objects of chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quire.core.request import CompletionOutput, Logprob, RequestOutput
from quire.core.sampling_params import SamplingParams
from quire.server.protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob
from quire.server.protocol.completions import CompletionLogprobs
from quire.tokenizer.detokenizer import IncrementalDetokenizer
from quire.tokenizer.tokenizer import Tokenizer

Entry = Mapping[int, Logprob]

# JSON has no infinity; OpenAI's answers show this for tokens that cannot be sampled.
_NEVER = -9999.0


def chat_logprobs(tokenizer: Tokenizer, completion: CompletionOutput, num_top: int) -> ChatLogprobs:
    """Return the logprobs of an answer's new tokens.

    Args:
        tokenizer: For texts and bytes.
        completion: With logprobs.
        num_top: Most likely tokens at each position.
    """
    entries = zip(completion.token_ids, completion.logprobs or (), strict=True)
    return ChatLogprobs([_chat_entry(tokenizer, token, entry, num_top) for token, entry in entries])


def _chat_entry(tokenizer: Tokenizer, token: int, entry: Entry, num_top: int) -> TokenLogprob:
    likely = sorted((value.rank or 0, other) for other, value in entry.items() if (value.rank or 0) <= num_top)
    top = [TopLogprob(tokenizer.token_text(other), _finite(entry[other].logprob), list(tokenizer.token_bytes(other)))
           for _, other in likely[:num_top]]  # fmt: skip
    text, data = tokenizer.token_text(token), list(tokenizer.token_bytes(token))
    return TokenLogprob(text, _finite(entry[token].logprob), data, top)


class CompletionWriter:
    """Writes the logprobs of one continuation, piece by piece; keeps where in the text it is.

    Args:
        tokenizer: None writes tokens as ids, without offsets.
        prompt_token_ids: What is continued.
        params: Of the request.
        start: Characters of the choice's text before the continuation.
        as_ids: Write tokens as "token_id:N".
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        start: int = 0,
        *,
        as_ids: bool = False,
    ) -> None:
        self._tokenizer = None if as_ids else tokenizer
        self._offset = start
        self._detokenizer = None
        if tokenizer is not None:
            self._detokenizer = IncrementalDetokenizer(
                tokenizer, prompt_token_ids=prompt_token_ids, skip_special_tokens=params.skip_special_tokens
            )

    def write(self, token_ids: Sequence[int], entries: Sequence[Entry | None]) -> CompletionLogprobs:
        """Return the next tokens, an entry for each; None where there is no logprob."""
        shape = CompletionLogprobs([], [], [], [])
        for token, entry in zip(token_ids, entries, strict=True):
            shape.tokens.append(self._text(token))
            shape.token_logprobs.append(None if entry is None else _finite(entry[token].logprob))
            shape.top_logprobs.append(None if entry is None else self._top(entry))
            shape.text_offset.append(self._offset)
            if self._detokenizer is not None:
                self._offset += len(self._detokenizer.append([token]))
        return shape

    def _top(self, entry: Entry) -> dict[str, float]:
        """Return text to logprob, the likelier token where two have the same text."""
        top: dict[str, float] = {}
        for token, value in entry.items():
            text = self._text(token)
            top[text] = max(top.get(text, _NEVER), _finite(value.logprob))
        return top

    def _text(self, token: int) -> str:
        if self._tokenizer is None:
            return f"token_id:{token}"
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def prompt_entries(output: RequestOutput) -> list[Entry | None]:
    """Return an entry for each prompt token, None for the first."""
    return list(output.prompt_logprobs or [None] * len(output.prompt_token_ids))


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """Return two pieces as one."""
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )


def _finite(logprob: float) -> float:
    return max(logprob, _NEVER)
