"""Keyed chained hashes: the name of a full block in the prefix cache."""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections.abc import Sequence

_DIGEST_BYTES = (
    16  # Nobody sees a digest and the key is secret, so chance is the only opponent: 2**-64 at 2**32 blocks.
)


class BlockHasher:
    """Names a block by all that its keys and values depend on: its tokens, every token before it, and the salt.

    The chain is `hash(parent, token ids of the block)` with `hash(salt)` at the root. The key is random and stays in
    the process, so that nobody can craft a prompt which collides with the blocks of another.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def root(self, salt: str) -> bytes:
        """Return the parent of every first block under `salt`."""
        return self._digest(salt.encode("utf-8", "surrogatepass"), b"root")

    def child(self, parent: bytes, token_ids: Sequence[int]) -> bytes:
        """Return the hash of a full block that follows `parent`."""
        return self._digest(parent + array("q", token_ids).tobytes(), b"block")

    def _digest(self, data: bytes, kind: bytes) -> bytes:
        # `person` separates the two kinds: no salt, however chosen, is the content of a block.
        return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, key=self._key, person=kind).digest()
