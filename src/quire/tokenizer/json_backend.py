"""Vocabularies that the tokenizers library runs: `tokenizer.json`, or GPT-2's `vocab.json` with `merges.txt`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from quire.core import model_files
from quire.core.log import get_logger
from quire.tokenizer.backend import GPT2_NAMES, LLAMA_NAMES
from quire.tokenizer.decoding import METASPACE, ByteDecoding, Decoding, LibraryDecoding, byte_alphabet, piece_bytes
from quire.tokenizer.files import file_error, read_json, read_text
from quire.tokenizer.settings import AddedToken, Settings

_log = get_logger(__name__)
_METASPACE_STEP = {"type": "Replace", "pattern": {"String": METASPACE}, "content": " "}
_STRIP_STEP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


class JsonBackend:
    """A `tokenizers.Tokenizer` with the special tokens of its settings.

    Args:
        library: The tokenizer; changed in place.
        settings: Settings of the same directory.

    Attributes:
        num_ids: One more than the highest id.
        special_ids: Ids left out of text under `skip_special_tokens`.
        decoding: From ids to text.
        default_names: Special tokens of this kind of vocabulary, for files that name none.
        before: Ids put before a text, besides those that the library's own post-processor adds.
        after: Ids put after a text, likewise.
    """

    def __init__(self, library: tokenizers.Tokenizer, settings: Settings) -> None:
        # Truncation and padding saved in the file would silently change a prompt.
        library.no_truncation()
        library.no_padding()
        _add_tokens(library, settings)
        self._library = library
        self.before: list[int] = []
        self.after: list[int] = []
        added = library.get_added_tokens_decoder()
        self.num_ids = 1 + max(library.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.decoding = _decoding(library, self.special_ids)
        self.default_names = GPT2_NAMES if _is_byte_level(library) else LLAMA_NAMES

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of well-formed text."""
        # A batch, because `encode` holds Python's lock: 2.7 s for 900,000 characters, in which no other thread ran.
        (encoding,) = self._library.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        token_ids = encoding.ids
        return [*self.before, *token_ids, *self.after] if add_special_tokens else token_ids

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary spells it."""
        return self._library.token_to_id(token)


def load_tokenizer_json(directory: Path, settings: Settings) -> JsonBackend:
    """Load `tokenizer.json`, which alone decides whether BOS and EOS are added.

    Raises:
        PlanError: The file is damaged.
    """
    path = directory / model_files.TOKENIZER_JSON
    text = read_text(path)
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises bare Exception for every kind of damage.
        raise file_error(path, "a tokenizer of the tokenizers library", "something it cannot read") from error
    backend = JsonBackend(library, settings)
    for token in settings.added:
        found = backend.token_to_id(token.content)
        if found != token.token_id:
            _log.warning(
                "%s: added token %r has id %s here and %s in %s; %s is used.",
                path, token.content, found, token.token_id, model_files.TOKENIZER_CONFIG, found,
            )  # fmt: skip
    return backend


def load_vocab_and_merges(directory: Path, settings: Settings) -> JsonBackend:
    """Load GPT-2's byte-level BPE from `vocab.json` and `merges.txt`.

    Raises:
        PlanError: A file is damaged, or an added token does not get the id its file gives it.
    """
    path = directory / model_files.VOCAB_JSON
    vocabulary = read_json(path)
    if not all(isinstance(token_id, int) and token_id >= 0 for token_id in vocabulary.values()):
        raise file_error(path, "tokens mapped to non-negative integers", "another value")
    merges = _read_merges(directory / model_files.MERGES_TXT)
    try:
        library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # The library raises bare Exception here too.
        got = f"a merge of tokens that {model_files.VOCAB_JSON} lacks"
        raise file_error(
            directory / model_files.MERGES_TXT, f"merges of tokens in {model_files.VOCAB_JSON}", got
        ) from error
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.add_prefix_space))
    library.decoder = decoders.ByteLevel()
    if not settings.named:
        library.add_special_tokens([token for token in set(GPT2_NAMES.values()) if token in vocabulary])
    backend = JsonBackend(library, settings)
    for token in settings.added:
        found = backend.token_to_id(token.content)
        if found != token.token_id:
            raise file_error(path, f"{token.content!r} to follow the vocabulary as id {token.token_id}", f"id {found}")
    backend.before = _wrapping(directory, backend, settings, "bos_token") if settings.add_bos_token else []
    backend.after = _wrapping(directory, backend, settings, "eos_token") if settings.add_eos_token else []
    return backend


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of `merges.txt`, best first; its first line may be a version."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip() or line.startswith("#version"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise file_error(path, f"two tokens on line {number}", repr(line[:80]))
        merges.append((pair[0], pair[1]))
    return merges


def _wrapping(directory: Path, backend: JsonBackend, settings: Settings, name: str) -> list[int]:
    """Return the id of BOS or EOS, which `tokenizer_config.json` asks for, as a list of one."""
    token = settings.named.get(name)
    content = token.content if token is not None else backend.default_names[name]
    token_id = backend.token_to_id(content)
    if token_id is None:
        raise file_error(directory / model_files.TOKENIZER_CONFIG, f"{name} to be in the vocabulary", repr(content))
    return [token_id]


def _add_tokens(library: tokenizers.Tokenizer, settings: Settings) -> None:
    """Add the settings' tokens, in order of id, so that new ones follow the vocabulary."""
    library.add_tokens([_library_token(token) for token in settings.added])
    library.add_special_tokens([_library_token(token) for token in settings.special])


def _library_token(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _decoder_steps(library: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """Return the decoder as a list of steps, the way `tokenizer.json` writes them."""
    if library.decoder is None:
        return []
    decoder: dict[str, Any] = json.loads(library.decoder.__getstate__())
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _is_byte_level(library: tokenizers.Tokenizer) -> bool:
    return [step["type"] for step in _decoder_steps(library)] in (["ByteLevel"], ["ByteLevel", "Fuse"])


def _decoding(library: tokenizers.Tokenizer, special_ids: frozenset[int]) -> Decoding:
    """Choose byte decoding where it is exact, else the library's own."""
    if _is_byte_level(library):
        return ByteDecoding(_byte_level(library), strips_leading_space=False)
    steps = _decoder_steps(library)
    order = [step["type"] for step in steps]
    is_known = order in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"])
    if is_known and steps[0] == _METASPACE_STEP and (len(steps) == 3 or steps[3] == _STRIP_STEP):
        return ByteDecoding(_byte_fallback(library), strips_leading_space=len(steps) == 4)
    return LibraryDecoding(lambda ids: library.decode(ids, skip_special_tokens=False), special_ids)


def _byte_level(library: tokenizers.Tokenizer) -> Callable[[int], bytes]:
    """Return the bytes of ids whose tokens are spelled in GPT-2's alphabet; added tokens are spelled in plain text."""
    added = library.get_added_tokens_decoder()
    alphabet = byte_alphabet()

    def bytes_of(token_id: int) -> bytes:
        token = library.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if token_id not in added and all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
        return token.encode("utf-8")

    return bytes_of


def _byte_fallback(library: tokenizers.Tokenizer) -> Callable[[int], bytes]:
    """Return the bytes of ids whose tokens are text with metaspaces, or single bytes as `<0x0A>`."""

    def bytes_of(token_id: int) -> bytes:
        token = library.id_to_token(token_id) if token_id >= 0 else None
        return b"" if token is None else piece_bytes(token)

    return bytes_of
