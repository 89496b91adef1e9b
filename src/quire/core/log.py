"""Logging: one `quire` logger to stderr, configured at the first door that opens."""

from __future__ import annotations

import logging

from quire.core import env
from quire.core.errors import ConfigError

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a room, for example `get_logger(__name__)`."""
    return logging.getLogger(name)


def configure() -> None:
    """Attach a stderr handler to the `quire` logger unless the application has set up logging itself.

    Raises:
        ConfigError: `QUIRE_LOG_LEVEL` is not a level.
    """
    level = env.log_level()
    if level not in _LEVELS:
        raise ConfigError(f"QUIRE_LOG_LEVEL: expected one of {', '.join(_LEVELS).lower()}, got {level.lower()!r}.")
    logger = logging.getLogger("quire")
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname).1s %(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(level)
