"""The socket a server listens on, taken before a model is loaded, so that a port in use is known at once."""

from __future__ import annotations

import socket
import stat
from contextlib import suppress
from pathlib import Path

from quire.core.errors import ConfigError
from quire.core.server_config import ServerConfig


def bind(config: ServerConfig) -> socket.socket:
    """Return a bound socket that does not listen yet.

    Raises:
        ConfigError: The address or path is in use or not one of this machine's.
    """
    return _bind_unix(Path(config.uds)) if config.uds is not None else _bind_tcp(config.host, config.port)


def url(config: ServerConfig, bound: socket.socket) -> str:
    """Return where clients find the server."""
    if config.uds is not None:
        return f"unix:{config.uds}"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{bound.getsockname()[1]}"


def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError):
        raise ConfigError(f"host: expected an address or name of this machine, got {host!r}.") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"port: expected a free one at {host}, got {port}: {error.strerror}. Stop what uses it, or take "
            "another one; 0 takes any."
        ) from None
    return bound


def _bind_unix(path: Path) -> socket.socket:
    """Bind a socket that only this user may use; one that a dead server left is replaced."""
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode) or _is_answered(path):
            raise ConfigError(f"uds: expected a path that is not in use, got {str(path)!r}.")
        path.unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        bound.close()
        raise ConfigError(f"uds: expected a path for a socket, got {str(path)!r}: {error.strerror}.") from None
    return bound


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.connect(str(path))
        return True
    return False


def release(config: ServerConfig, bound: socket.socket) -> None:
    """Close the socket, and remove its path if it has one."""
    bound.close()
    if config.uds is not None:
        Path(config.uds).unlink(missing_ok=True)
