"""`Tokenizer`: one object for every kind of vocabulary that checkpoints ship."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from quire.core import model_files
from quire.core.errors import RequestError
from quire.tokenizer.backend import Backend
from quire.tokenizer.chat_template import ChatRenderer
from quire.tokenizer.decoding import Decoding
from quire.tokenizer.files import vocabulary_of
from quire.tokenizer.json_backend import load_tokenizer_json, load_vocab_and_merges
from quire.tokenizer.sentencepiece_backend import load_sentencepiece
from quire.tokenizer.settings import Settings, read_settings

_LOADERS: Mapping[str, Callable[[Path, Settings], Backend]] = {
    model_files.TOKENIZER_JSON: load_tokenizer_json,
    model_files.VOCAB_JSON: load_vocab_and_merges,
    model_files.SENTENCEPIECE_MODEL: load_sentencepiece,
}


class Tokenizer:
    """Text to ids and back, with the chat template of the checkpoint.

    Made by `from_directory`. Safe to share between threads: nothing changes after loading but caches.

    Args:
        backend: The vocabulary.
        settings: Its special tokens and chat templates.

    Attributes:
        decoding: From ids to text; `IncrementalDetokenizer` builds on it.
        special_id_set: Ids that `skip_special_tokens` leaves out.
    """

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self._backend = backend
        self._named = _named_tokens(backend, settings)
        self._renderer = ChatRenderer(settings.chat_templates, self._named)
        named_ids = (backend.token_to_id(content) for content in self._named.values())
        self.special_id_set = backend.special_ids | {token_id for token_id in named_ids if token_id is not None}
        self.decoding: Decoding = backend.decoding

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """Load the tokenizer of a local checkpoint or engine directory, without the network.

        The vocabulary is `tokenizer.json`, else `vocab.json` with `merges.txt`, else SentencePiece's `tokenizer.model`.

        Args:
            path: The directory.

        Raises:
            PlanError: The directory or its vocabulary is missing, or a file is damaged.
        """
        directory = Path(path)
        load = _LOADERS[vocabulary_of(directory)]
        settings = read_settings(directory)
        return cls(load(directory, settings), settings)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, added tokens included. A model's logits may be wider than this."""
        return self._backend.num_ids

    @cached_property
    def bos_token_id(self) -> int | None:
        """Id of the beginning-of-sequence token, None if there is none."""
        return self._named_id("bos_token")

    @cached_property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token, None if there is none."""
        return self._named_id("eos_token")

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that `skip_special_tokens` leaves out, ascending."""
        return sorted(self.special_id_set)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Special tokens by the names that checkpoints give them ("bos_token", ...)."""
        return dict(self._named)

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's main chat template, None if there is none."""
        return self._renderer.default_template

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint ships a chat template."""
        return self._renderer.has_template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text. Special tokens spelled out in it become their ids, as in Hugging Face.

        Args:
            text: Any text without lone surrogates.
            add_special_tokens: Add BOS and EOS as the checkpoint asks for.

        Raises:
            RequestError: The text is not a string, or holds half of a surrogate pair.
        """
        if not isinstance(text, str):
            raise RequestError(f"prompt: expected a string, got {type(text).__name__}.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"prompt: expected Unicode text, got a lone surrogate at character {error.start}. "
                "Replace it, for example with U+FFFD."
            ) from error
        return self._backend.encode(text, add_special_tokens=add_special_tokens)

    def decode(
        self, token_ids: Sequence[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """Return the text of ids. Ids outside the vocabulary (of padded logits) have no text.

        Args:
            token_ids: Ids.
            skip_special_tokens: Leave special tokens out.
            spaces_between_special_tokens: Keep the spaces that a word-level decoder puts between neighbouring special
                tokens. Byte-level and SentencePiece decoders put none, so there it changes nothing.
        """
        if skip_special_tokens:
            token_ids = [token_id for token_id in token_ids if token_id not in self.special_id_set]
        return self.decoding.decode(token_ids, spaces_between_special_tokens=spaces_between_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that an id adds to a running text, a leading space included; none for an unknown id."""
        return self.decoding.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """Return an id's text for people, with U+FFFD for bytes that are only a part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """Render a chat as the model was trained to read it.

        Args:
            messages: Objects with "role" and mostly "content": text, or a list of {"type": "text", "text": ...} parts.
                Parts go to the template as they are if it can read them, else joined with newlines.
            chat_template: A Jinja template, or the name of one that the checkpoint ships; the checkpoint's by default.
            add_generation_prompt: End with the header of the assistant's next message.
            continue_final_message: End inside the last message, so that the model goes on with it.
            tools: JSON schemas of functions.
            **kwargs: More variables for the template.

        Raises:
            RequestError: There is no template, the messages do not fit it, or it exceeds its limits.
        """
        return self._renderer.render(
            messages,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            variables=kwargs,
        )

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> list[int]:
        """Return the ids of a chat: `render_chat`, encoded without BOS and EOS since templates write their own.

        Args:
            messages: As in `render_chat`.
            **kwargs: As in `render_chat`.

        Raises:
            RequestError: As in `render_chat` and `encode`.
        """
        return self.encode(self.render_chat(messages, **kwargs), add_special_tokens=False)

    def _named_id(self, name: str) -> int | None:
        content = self._named.get(name)
        return None if content is None else self._backend.token_to_id(content)


def _named_tokens(backend: Backend, settings: Settings) -> dict[str, str]:
    """Return the special tokens by name; where no file names any, those usual for this kind of vocabulary."""
    if settings.named:
        return {name: token.content for name, token in settings.named.items() if token is not None}
    usual = backend.default_names.items()
    return {name: content for name, content in usual if backend.token_to_id(content) is not None}
