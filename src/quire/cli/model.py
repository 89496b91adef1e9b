"""What all commands that run a model share: its options, and how it is opened."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from quire.cli.options import add_fields
from quire.core.config import BuildConfig, EngineConfig

if TYPE_CHECKING:
    from quire.llm import LLM


MODEL = 'model directory, engine directory, hub id, or "quire-tiny" (built in)'
"""What a command's positional argument may be."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and all options of how it is built and run."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_fields(parser, BuildConfig)
    add_fields(parser, EngineConfig, skip=("seed",))


def open_model(options: argparse.Namespace, **more: object) -> LLM:
    """Load the model that the options name."""
    from quire.llm import LLM

    names = {item.name for cls in (BuildConfig, EngineConfig) for item in fields(cls)}
    return LLM(options.model, **{name: getattr(options, name) for name in names}, **more)  # type: ignore[arg-type]
