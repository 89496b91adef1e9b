"""The passes, in order: a list to be read aloud. Each returns how many places it changed."""

from __future__ import annotations

from collections.abc import Callable

from quire.builder.passes.drop_dead import drop_dead
from quire.builder.passes.gather_last_token import gather_last_token
from quire.graph.network import Network

PASSES: tuple[Callable[[Network], int], ...] = (gather_last_token, drop_dead)
