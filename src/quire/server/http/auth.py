"""API keys: who may ask, and what their cached prefixes are salted with."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from quire.core.errors import ConfigError
from quire.core.server_config import ServerConfig

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Keys:
    """The keys that clients may use.

    Only digests are kept, and a key is compared with all of them, so that time tells nothing about any.

    Args:
        keys: None at all lets everybody in.
        share_prefix_cache: Give all keys the same salt.
    """

    def __init__(self, keys: Iterable[str], *, share_prefix_cache: bool = False) -> None:
        self._digests = [_digest(key.encode()) for key in keys]
        self._shares = share_prefix_cache

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._digests

    def identify(self, authorization: bytes | None) -> bytes | None:
        """Return who sends a request, as bytes that salt their prefixes; None if it must be refused.

        Args:
            authorization: The header's value, "Bearer KEY".
        """
        if self.is_open:
            return b""
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            return None
        return b"" if self._shares else given


def cache_salt(identity: bytes, wish: str | None) -> str:
    """Return the salt of a request's cached prefixes: another one for each key, and for each wish under a key.

    Args:
        identity: From `Keys.identify`.
        wish: The request's own `cache_salt`.
    """
    if not identity and not wish:
        return ""
    key = identity[:32]
    return hashlib.blake2b((wish or "").encode(), key=key, digest_size=16).hexdigest()


def read_keys(config: ServerConfig) -> list[str]:
    """Return the keys of a configuration.

    Raises:
        ConfigError: The file cannot be read, holds no key, or a key is not plain ASCII without spaces.
    """
    keys = [key.strip() for key in (config.api_key or "").split(",") if key.strip()]
    if config.api_key is not None and not keys:
        raise ConfigError("api_key: expected at least one key, got none.")
    if config.api_key_file is not None:
        path = Path(config.api_key_file)
        try:
            found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"api_key_file: expected a readable text file, got {str(path)!r}.") from None
        if not found:
            raise ConfigError(f"api_key_file: expected a key a line, got none in {str(path)!r}.")
        keys += found
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError("api_key: expected printable ASCII without spaces, got another character.")
    return keys


def check_address(config: ServerConfig, keys: Keys) -> None:
    """Refuse to serve strangers by accident.

    Raises:
        ConfigError: The address is not this machine's own, there is no key, and it was not allowed explicitly.
    """
    if config.uds is None and config.host not in _LOOPBACK and keys.is_open and not config.allow_unauthenticated:
        raise ConfigError(
            f"host: expected 127.0.0.1, ::1 or localhost while there is no API key, got {config.host!r}. Set --api-key "
            "or --api-key-file, or say --allow-unauthenticated."
        )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
