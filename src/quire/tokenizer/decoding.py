"""From ids to text: the bytes of each token where a decoder is a plain join of bytes, else the library's own decoder.

Byte decoding covers byte-level BPE (GPT-2, OPT, Llama 3, Qwen) and SentencePiece with byte fallback (Llama 2, Mistral,
Gemma): the text is the UTF-8 decoding of all tokens' bytes, each maximal invalid part replaced by U+FFFD as in Unicode
chapter 3.9 "U+FFFD Substitution of Maximal Subparts". For valid UTF-8 this equals the tokenizers library. For invalid
UTF-8 out of byte fallback tokens the library gives one U+FFFD for every byte of the run, valid characters in it
included; that cannot be streamed, so here the valid characters stay.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from string import hexdigits
from typing import Protocol

REPLACEMENT = "\ufffd"
METASPACE = "\u2581"
_MAX_CHARACTER_TOKENS = 4  # A UTF-8 character has at most four bytes, so at most four byte tokens.
_CONTEXT_TOKENS = 4
_HEX_DIGITS = frozenset(hexdigits)


class TextStream(Protocol):
    """Text of one growing sequence of ids."""

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that it completes."""
        ...

    def finish(self) -> str:
        """Return the text of an incomplete tail."""
        ...


class Decoding(Protocol):
    """How a vocabulary's ids become text."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that an id adds to a running text; none for an unknown id."""
        ...

    def decode(self, token_ids: Sequence[int], *, spaces_between_special_tokens: bool) -> str:
        """Return the text of a whole sequence."""
        ...

    def stream(self, context_ids: Iterable[int], *, spaces_between_special_tokens: bool) -> TextStream:
        """Return a stream of the text after `context_ids`, which come last id first and are read as far as needed."""
        ...


class ByteDecoding:
    """Decoding by joining bytes.

    Args:
        bytes_of: Returns the bytes of an id; called once per id.
        strips_leading_space: Whether one space at the very start of a text is dropped.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], *, strips_leading_space: bool) -> None:
        self._bytes_of = bytes_of
        self._known: dict[int, bytes] = {}
        self._strips_leading_space = strips_leading_space

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of an id."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._bytes_of(token_id)
        return found

    def decode(self, token_ids: Sequence[int], *, spaces_between_special_tokens: bool) -> str:
        """Return the text of a whole sequence; no decoder of this kind puts spaces between special tokens."""
        text = b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._strips_leading_space else text

    def stream(self, context_ids: Iterable[int], *, spaces_between_special_tokens: bool) -> TextStream:
        """Return a stream; of the context only its last incomplete character matters, and whether it has any text."""
        tail = b""
        for token_id in context_ids:
            tail = self.token_bytes(token_id) + tail
            if len(tail) >= _MAX_CHARACTER_TOKENS:
                break
        return ByteStream(self.token_bytes, tail, strips_leading_space=self._strips_leading_space and not tail)


class ByteStream:
    """Incremental UTF-8 over the bytes of tokens: constant work per byte."""

    def __init__(self, token_bytes: Callable[[int], bytes], tail: bytes, *, strips_leading_space: bool) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.decode(tail)
        self._strips_leading_space = strips_leading_space

    def push(self, token_id: int) -> str:
        """Take the next id and return the characters that it completes."""
        return self._strip(self._decoder.decode(self._token_bytes(token_id)))

    def finish(self) -> str:
        """Return U+FFFD for an incomplete character."""
        return self._strip(self._decoder.decode(b"", True))

    def _strip(self, text: str) -> str:
        if text and self._strips_leading_space:
            self._strips_leading_space = False
            return text.removeprefix(" ")
        return text


class LibraryDecoding:
    """Decoding by the tokenizers library, for decoders that look at neighbouring tokens (WordPiece, "</w>", ...).

    Where such a decoder joins byte tokens, streamed and whole text are equal for valid UTF-8 only.

    Args:
        decode: The library's decoder: ids to text, special tokens included.
        special_ids: Ids between which spaces may be left out.
    """

    def __init__(self, decode: Callable[[list[int]], str], special_ids: frozenset[int]) -> None:
        self._decode = decode
        self._special_ids = special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that an id adds after itself, so that a leading space or "##" shows its effect."""
        alone, twice = self._decode([token_id]), self._decode([token_id, token_id])
        text = twice[len(alone) :] if twice.startswith(alone) else alone
        return text.encode("utf-8")

    def decode(self, token_ids: Sequence[int], *, spaces_between_special_tokens: bool) -> str:
        """Return the text of a whole sequence."""
        if spaces_between_special_tokens:
            return self._decode(list(token_ids))
        stream = self.stream((), spaces_between_special_tokens=False)
        return "".join([*map(stream.push, token_ids), stream.finish()])

    def stream(self, context_ids: Iterable[int], *, spaces_between_special_tokens: bool) -> TextStream:
        """Return a stream that decodes a window of the last few tokens."""
        joined = frozenset[int]() if spaces_between_special_tokens else self._special_ids
        window = list(islice(context_ids, _CONTEXT_TOKENS))[::-1]
        return WindowStream(self._decode, window, joined)


class WindowStream:
    """Text differences of a sliding window of tokens: constant work per token."""

    def __init__(self, decode: Callable[[list[int]], str], window: list[int], joined_ids: frozenset[int]) -> None:
        self._decode = decode
        self._joined_ids = joined_ids
        self._window = window
        self._known = decode(window).rstrip(REPLACEMENT)
        self._num_held = 0

    def push(self, token_id: int) -> str:
        """Take the next id; hold text back while it ends in an incomplete character."""
        is_joined = bool(self._window) and {self._window[-1], token_id} <= self._joined_ids
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and self._num_held + 1 < _MAX_CHARACTER_TOKENS:
            self._num_held += 1
            return ""
        new = text[len(self._known) :]
        self._slide()
        return new.removeprefix(" ") if is_joined else new

    def finish(self) -> str:
        """Return what was held back."""
        return self._decode(self._window)[len(self._known) :]

    def _slide(self) -> None:
        self._window = self._window[-_CONTEXT_TOKENS:]
        self._known = self._decode(self._window)
        self._num_held = 0


def piece_bytes(piece: str) -> bytes:
    """Return the bytes of a SentencePiece piece: `<0x0A>` is the byte 10, U+2581 a space."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">") and _HEX_DIGITS.issuperset(piece[3:5]):
        return bytes.fromhex(piece[3:5])
    return piece.replace(METASPACE, " ").encode("utf-8")


def byte_alphabet() -> dict[str, int]:
    """Return the character that stands for each byte in byte-level BPE, as GPT-2 defined it.

    Printable Latin-1 characters stand for themselves; the other 68 bytes, in order, for U+0100 and following.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}
