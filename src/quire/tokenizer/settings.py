"""What the small JSON files beside a vocabulary say: special tokens, BOS and EOS, chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quire.core import model_files
from quire.tokenizer.files import file_error, read_json, read_text

DEFAULT_TEMPLATE = "default"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched in the text before the vocabulary's own rules apply.

    Attributes:
        content: Its text.
        token_id: Its id, None if only its text is known.
        lstrip: Also swallow whitespace on its left.
        rstrip: Also swallow whitespace on its right.
        single_word: Match only between word boundaries.
        normalized: Match in the normalized text.
        special: Leave out of text under `skip_special_tokens`.
    """

    content: str
    token_id: int | None = None
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one tokenizer directory.

    Attributes:
        named: Special tokens by name ("bos_token", ...), None where the file says null.
        extra: Special tokens without a name.
        added: Tokens with ids, in order of id.
        chat_templates: Jinja sources by name; "default" is the main one.
        add_bos_token: Whether encoding starts with BOS, None if not said.
        add_eos_token: Whether encoding ends with EOS, None if not said.
        add_prefix_space: Whether a space is put before the text, None if not said.
        legacy: Llama's "legacy" switch, None if not said.
    """

    named: Mapping[str, AddedToken | None]
    extra: tuple[AddedToken, ...]
    added: tuple[AddedToken, ...]
    chat_templates: Mapping[str, str]
    add_bos_token: bool | None
    add_eos_token: bool | None
    add_prefix_space: bool | None
    legacy: bool | None

    @property
    def special(self) -> list[AddedToken]:
        """Named and extra tokens, each content once, with the flags of `added` where it has them."""
        flags = {token.content: token for token in self.added}
        tokens = [token for token in (*self.named.values(), *self.extra) if token is not None]
        return [replace(flags.get(token.content, token), special=True) for token in dict.fromkeys(tokens)]


def read_settings(directory: Path) -> Settings:
    """Read the settings of a tokenizer directory; every file is optional.

    As in Hugging Face's loaders, `special_tokens_map.json` and `added_tokens.json` count only where
    `tokenizer_config.json` has no `added_tokens_decoder`, and a `chat_template.jinja` wins over the config's template.

    Raises:
        PlanError: A file is damaged.
    """
    path = directory / model_files.TOKENIZER_CONFIG
    config = read_json(path, missing_ok=True)
    if "added_tokens_decoder" in config:
        added = _added_by_id(path, config["added_tokens_decoder"])
        values = config
    else:
        values = config | read_json(directory / model_files.SPECIAL_TOKENS_MAP, missing_ok=True)
        added = _added_by_content(directory / model_files.ADDED_TOKENS, _special_contents(values))
    named, extra = _special_tokens(path, values)
    return Settings(
        named=named,
        extra=extra,
        added=added,
        chat_templates=_chat_templates(directory, config.get("chat_template")),
        add_bos_token=_flag(path, config, "add_bos_token"),
        add_eos_token=_flag(path, config, "add_eos_token"),
        add_prefix_space=_flag(path, config, "add_prefix_space"),
        legacy=_flag(path, config, "legacy"),
    )


def _flag(path: Path, config: Mapping[str, Any], name: str) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise file_error(path, f"{name} to be true, false or null", repr(value))
    return value


def _token(path: Path, name: str, value: object, *, token_id: int | None = None, special: bool = True) -> AddedToken:
    """Return the token written as a plain string or as an object with "content"."""
    if isinstance(value, str):
        return AddedToken(value, token_id, special=special)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        keys = ("lstrip", "rstrip", "single_word", "normalized")
        flags = {key: bool(value[key]) for key in keys if key in value}
        return AddedToken(value["content"], token_id, special=bool(value.get("special", special)), **flags)
    raise file_error(path, f"{name} to be a string or an object with a string 'content'", repr(value)[:80])


def _added_by_id(path: Path, value: object) -> tuple[AddedToken, ...]:
    if not isinstance(value, dict) or not all(key.isdecimal() for key in value):
        raise file_error(path, "added_tokens_decoder to map ids to tokens", repr(value)[:80])
    tokens = [_token(path, f"token {key}", item, token_id=int(key), special=False) for key, item in value.items()]
    return tuple(sorted(tokens, key=lambda token: token.token_id or 0))


def _added_by_content(path: Path, special: set[str]) -> tuple[AddedToken, ...]:
    tokens = []
    for content, token_id in read_json(path, missing_ok=True).items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise file_error(path, f"the id of {content!r} to be a non-negative integer", repr(token_id))
        is_special = content in special
        tokens.append(AddedToken(content, token_id, normalized=not is_special, special=is_special))
    return tuple(sorted(tokens, key=lambda token: token.token_id or 0))


def _extra_values(values: Mapping[str, Any]) -> Any:
    return values.get("extra_special_tokens") or values.get("additional_special_tokens") or []


def _special_contents(values: Mapping[str, Any]) -> set[str]:
    """Return the texts of all special tokens, skipping malformed ones (they are refused when they are parsed)."""
    extra = _extra_values(values)
    items = [value for name, value in values.items() if name.endswith("_token")]
    items += list(extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else ())
    contents = [item.get("content") if isinstance(item, dict) else item for item in items]
    return {content for content in contents if isinstance(content, str)}


def _special_tokens(
    path: Path, values: Mapping[str, Any]
) -> tuple[dict[str, AddedToken | None], tuple[AddedToken, ...]]:
    """Return the named special tokens and the unnamed ones."""
    named: dict[str, AddedToken | None] = {}
    for name, value in values.items():
        if name.endswith("_token") and not isinstance(value, bool):
            named[name] = None if value is None else _token(path, name, value)
    extra = _extra_values(values)
    if isinstance(extra, dict):
        named.update({name: _token(path, name, value) for name, value in extra.items()})
        return named, ()
    if not isinstance(extra, list):
        raise file_error(path, "extra special tokens to be a list or an object", repr(extra)[:80])
    return named, tuple(_token(path, "an extra special token", value) for value in extra)


def _chat_templates(directory: Path, value: object) -> dict[str, str]:
    """Return the templates by name, from `.jinja` files if there are any, else from the config's value."""
    path = directory / model_files.CHAT_TEMPLATE
    templates = {DEFAULT_TEMPLATE: read_text(path)} if path.is_file() else {}
    for extra in sorted(directory.glob(model_files.NAMED_TEMPLATES)):
        templates[extra.stem] = read_text(extra)
    if templates or value is None:
        return templates
    if isinstance(value, str):
        return {DEFAULT_TEMPLATE: value}
    config = directory / model_files.TOKENIZER_CONFIG
    for item in value if isinstance(value, list) else [value]:
        name, template = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str):
            raise file_error(config, "chat_template to be text or a list of {name, template}", repr(item)[:80])
        templates[name] = template
    return templates
