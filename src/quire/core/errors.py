"""The one tree of errors. A message says what, what was expected, what was got, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuireError(Exception):
    """Root of every error that Quire raises on purpose."""


class ConfigError(QuireError, ValueError):
    """A configuration, model config or command line option cannot be honoured."""


class RequestError(QuireError, ValueError):
    """A request is not valid; only that request is refused."""


class ShapeError(QuireError, ValueError):
    """A tensor's shape, dtype or device differs from what an op requires."""


class BuildError(QuireError):
    """A network cannot be defined or built."""


class PlanError(QuireError):
    """An engine directory or a checkpoint is missing, damaged or not what it says."""


class TacticError(QuireError):
    """No implementation of an op fits this device."""


class CapacityError(QuireError):
    """The memory budget does not hold what was asked for."""


class WorkerError(QuireError):
    """A process that computes a part of a model is lost, and what it computed with it.

    Args:
        message: As for every error.
        rank: Whose process, None if that of none in particular.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
