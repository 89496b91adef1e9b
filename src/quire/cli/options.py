"""Command line options generated from dataclass fields, so that flag, default and help cannot drift.

And what all commands that run a model share: its options, and how it is opened.
"""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from quire.core.config import BuildConfig, EngineConfig
from quire.core.errors import ConfigError

if TYPE_CHECKING:
    from quire.llm import LLM

T = TypeVar("T")

MODEL = 'model directory, engine directory, hub id, or "quire-tiny" (built in)'
"""What a command's positional argument may be."""


def add_fields(parser: argparse.ArgumentParser, cls: type, skip: Collection[str] = ()) -> None:
    """Add one option per field of a dataclass to a group named after it."""
    group = parser.add_argument_group(cls.__name__)
    hints, docs = get_type_hints(cls), _documented(cls.__doc__ or "")
    for item in fields(cls):
        if item.name in skip:
            continue
        default = item.default if item.default is not MISSING else None
        text = item.metadata.get("help") or docs.get(item.name, "")
        settings: dict[str, Any] = {"dest": item.name, "default": default, "help": _escape(text, default)}
        kind = _plain(hints[item.name])
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings |= {"type": _reader(kind), "metavar": _metavar(kind)}
            if "choices" in item.metadata:
                settings |= {"choices": item.metadata["choices"], "metavar": None}
        flags = (f"--{item.name.replace('_', '-')}", *item.metadata.get("flags", ()))
        group.add_argument(*flags, **settings)


def read_fields(cls: type[T], namespace: argparse.Namespace, **fixed: Any) -> T:
    """Make a `cls` from parsed options; `fixed` wins.

    Raises:
        ConfigError, RequestError: A value is out of bounds.
    """
    given = {item.name: getattr(namespace, item.name) for item in fields(cls) if hasattr(namespace, item.name)}  # type: ignore[arg-type]
    return cls(**{**given, **fixed})


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and all options of how it is built and run."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_fields(parser, BuildConfig)
    add_fields(parser, EngineConfig, skip=("seed",))


def open_model(options: argparse.Namespace, **more: object) -> LLM:
    """Load the model that the options name."""
    from quire import LLM

    names = {item.name for cls in (BuildConfig, EngineConfig) for item in fields(cls)}
    return LLM(options.model, **{name: getattr(options, name) for name in names}, **more)  # type: ignore[arg-type]


def _plain(hint: Any) -> Any:
    """Return `int` for `int | None`, `str` for `str | Sequence[str] | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return _plain(next(kind for kind in get_args(hint) if kind is not type(None)))
    return get_origin(hint) or hint


def _reader(kind: Any) -> Any:
    if kind in (int, float, str):
        return kind
    return _json


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(f"expected JSON, got {text!r}: {error}") from None


def _metavar(kind: Any) -> str:
    if kind in (int, float, str):
        return {int: "N", float: "X", str: "TEXT"}[kind]
    return "JSON"


def _escape(text: str, default: Any) -> str:
    shown = "" if default is None or default == () else f" (default: {default})"
    return (text + shown).replace("%", "%%")


def _documented(doc: str) -> Mapping[str, str]:
    """Return the texts of a docstring's `Args:` section by name."""
    section = doc.partition("Args:\n")[2].partition("\n\n")[0]
    return {name: " ".join(text.split()) for name, text in re.findall(r"^ {8}(\w+): ((?:.|\n {12})*)", section, re.M)}


def require(condition: bool, what: str, expected: str, got: object) -> None:
    """Raise ConfigError in the usual wording unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{what}: expected {expected}, got {got!r}.")


_UNITS = {"": 1, "b": 1} | {
    unit + end: base**power
    for power, unit in enumerate("kmgt", 1)
    for end, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


def read_bytes(what: str, text: str) -> int:
    """Return a number of bytes as people write it: "16GiB" or "16G" (2**30 each), "16 GB" (10**9), "1.5T", "4096".

    Raises:
        ConfigError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(found[2].lower()) if found else None
    require(unit is not None, what, "a size such as 16GiB, 16GB or a number of bytes", text)
    assert found is not None and unit is not None
    num_bytes = int(float(found[1]) * unit)
    require(0 < num_bytes < 1 << 60, what, "a size above 0 and below 1 EiB", text)
    return num_bytes


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return two aligned columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
