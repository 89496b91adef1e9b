"""Vocabularies in SentencePiece's `tokenizer.model` (Llama 2, Mistral), run by the sentencepiece library itself.

They are not converted to BPE merges: the library itself is exact by definition, for every model type, normalization
rule and user-defined symbol that a file may hold.
"""

from __future__ import annotations

import re
from pathlib import Path

import sentencepiece

from quire.core import model_files
from quire.tokenizer.backend import LLAMA_NAMES
from quire.tokenizer.decoding import METASPACE, ByteDecoding, Decoding, piece_bytes
from quire.tokenizer.files import file_error, read_bytes
from quire.tokenizer.settings import AddedToken, Settings

# ModelProto.normalizer_spec (field 3) with add_dummy_prefix (field 3) = false. Protocol buffers merge a message that
# occurs twice, so these bytes after a serialized model switch the dummy prefix off.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceBackend:
    """A SentencePiece model with added tokens, encoding as Hugging Face's Llama tokenizer.

    In the legacy way (`"legacy": true` in the settings, or not said) each stretch of text between added tokens goes to
    SentencePiece by itself and gets the dummy space in front. Otherwise only the start of the whole text gets it.

    Args:
        model: A serialized SentencePiece model.
        settings: Settings of the same directory.

    Attributes:
        num_ids: One more than the highest id.
        special_ids: Ids left out of text under `skip_special_tokens`.
        decoding: From ids to text.
        default_names: Special tokens of this kind of vocabulary, for files that name none.

    Raises:
        RuntimeError: The bytes are not a SentencePiece model.
    """

    def __init__(self, model: bytes, settings: Settings) -> None:
        self._is_legacy = settings.legacy is not False
        self._processor = sentencepiece.SentencePieceProcessor(
            model_proto=model if self._is_legacy else model + _NO_DUMMY_PREFIX
        )
        self.default_names = LLAMA_NAMES
        self._has_prefix = settings.add_prefix_space is not False
        if self._is_legacy:
            self._has_prefix = self._processor.encode("a", out_type=str)[0].startswith(METASPACE)
        self._added = self._place(settings)
        self._added_by_id = {token.token_id: token for token in self._added.values()}
        self.num_ids = 1 + max([self._processor.vocab_size() - 1, *filter(None, self._added_by_id)])
        controls = (i for i in range(self._processor.vocab_size()) if self._is_control(i))
        special = (i for i, token in self._added_by_id.items() if token.special and i is not None)
        self.special_ids = frozenset((*controls, *special))
        self.decoding: Decoding = ByteDecoding(self._bytes_of, strips_leading_space=self._has_prefix)
        longest_first = sorted(self._added, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._before = self._wrapping(settings, "bos_token", is_added=settings.add_bos_token is not False)
        self._after = self._wrapping(settings, "eos_token", is_added=bool(settings.add_eos_token))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of well-formed text."""
        if not self._is_legacy:
            text = text.replace(METASPACE, " ")
        token_ids: list[int] = []
        for index, piece in enumerate(self._split(text)):
            if isinstance(piece, int):
                token_ids.append(piece)
            elif piece:
                is_prefixed = index == 0 and self._has_prefix and not self._is_legacy
                token_ids += self._processor.encode(METASPACE + piece if is_prefixed else piece)
        return [*self._before, *token_ids, *self._after] if add_special_tokens else token_ids

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary spells it."""
        if token in self._added:
            return self._added[token].token_id
        token_id = int(self._processor.piece_to_id(token))
        return token_id if self._processor.id_to_piece(token_id) == token else None

    def _is_control(self, token_id: int) -> bool:
        return bool(self._processor.is_control(token_id) or self._processor.is_unknown(token_id))

    def _place(self, settings: Settings) -> dict[str, AddedToken]:
        """Return the added tokens by content, each with an id: its own, its piece's, or the next free one."""
        placed: dict[str, AddedToken] = {}
        named = [] if settings.named else [AddedToken(content) for content in LLAMA_NAMES.values()]
        next_id = max([self._processor.vocab_size() - 1, *(token.token_id or 0 for token in settings.added)]) + 1
        for token in [*settings.added, *settings.special, *named]:
            if token.content in placed or not token.content:
                continue
            token_id = token.token_id
            if token_id is None:
                token_id = int(self._processor.piece_to_id(token.content))
                if self._processor.id_to_piece(token_id) != token.content:
                    token_id, next_id = next_id, next_id + 1
            flags = {
                name: getattr(token, name) for name in ("lstrip", "rstrip", "single_word", "normalized", "special")
            }
            placed[token.content] = AddedToken(token.content, token_id, **flags)
        return placed

    def _wrapping(self, settings: Settings, name: str, *, is_added: bool) -> list[int]:
        """Return the id that goes before or after a text, if any."""
        token = settings.named.get(name)
        content = token.content if token is not None else None if name in settings.named else self.default_names[name]
        token_id = self.token_to_id(content) if is_added and content is not None else None
        return [] if token_id is None else [token_id]

    def _split(self, text: str) -> list[str | int]:
        """Split text at added tokens: stretches of text (maybe empty) and ids in turn, text first and last."""
        pieces: list[str | int] = []
        start, strips_left = 0, False
        for match in self._pattern.finditer(text):
            token = self._added[match.group()]
            if token.single_word and not _stands_alone(text, match):
                continue
            before = text[start : match.start()]
            before = before.lstrip() if strips_left else before
            assert token.token_id is not None, "every added token has been given an id"
            pieces += [before.rstrip() if token.lstrip else before, token.token_id]
            start, strips_left = match.end(), token.rstrip
        rest = text[start:]
        return [*pieces, rest.lstrip() if strips_left else rest]

    def _bytes_of(self, token_id: int) -> bytes:
        token = self._added_by_id.get(token_id)
        if token is not None:
            return token.content.encode("utf-8")
        if not 0 <= token_id < self._processor.vocab_size():
            return b""
        return piece_bytes(self._processor.id_to_piece(token_id))


def load_sentencepiece(directory: Path, settings: Settings) -> SentencePieceBackend:
    """Load `tokenizer.model`.

    Raises:
        PlanError: The file is not a SentencePiece model.
    """
    path = directory / model_files.SENTENCEPIECE_MODEL
    model = read_bytes(path)
    try:
        return SentencePieceBackend(model, settings)
    except RuntimeError as error:
        raise file_error(path, "a SentencePiece model", f"{len(model)} bytes of something else") from error


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    """Tell whether a match has spaces, or the ends of the text, around it."""
    left, right = text[max(match.start() - 1, 0) : match.start()], text[match.end() : match.end() + 1]
    return left in ("", " ") and right in ("", " ")
