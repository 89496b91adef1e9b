"""`Viewers`: who waits for a picture of the KV cache; it is asked for once, however many look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quire.core.request import CachePicture
from quire.server.engine_client import EngineDeadError


class Viewers:
    """Those who look get the next picture, all of them the same.

    Args:
        ask: Asks the engine process for one; called when nobody waits for one yet.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._next: asyncio.Future[CachePicture | None] | None = None

    async def look(self) -> CachePicture:
        """Return the next picture.

        Raises:
            EngineDeadError: There will be none.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            self._ask()
        picture = await asyncio.shield(self._next)
        if picture is None:
            raise EngineDeadError("The engine process ended before it could show its KV cache.")
        return picture

    def show(self, picture: CachePicture | None) -> None:
        """Give those who look what they wait for; None if there is nothing to see any more."""
        if self._next is not None:
            self._next.set_result(picture)
            self._next = None
