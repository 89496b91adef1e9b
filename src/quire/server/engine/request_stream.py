"""`RequestStream`: the news of one request, between the engine's events and the reader of its outputs."""

from __future__ import annotations

import asyncio

from quire.core.errors import QuireError


class RequestStream:
    """A flag, not a queue: outputs are made when they are read, of all that has happened until then.

    So whoever reads slowly gets fewer and larger pieces, and nothing piles up but the text itself.

    Args:
        arrival_time_s: When it was asked for, monotonic seconds.
        num_prompt_tokens: Length of its prompt.

    Attributes:
        engine: Which of the server's engines has it; None before it was sent to one.
        is_over: Whether the engine has nothing of this request: not yet, or not any more.
        last_token_s: When the last token of each sample came, monotonic seconds.
        num_generated: Tokens of all samples so far.
    """

    __slots__ = (
        "_error",
        "_event",
        "arrival_time_s",
        "engine",
        "is_over",
        "last_token_s",
        "num_generated",
        "num_prompt_tokens",
    )

    def __init__(self, arrival_time_s: float, num_prompt_tokens: int) -> None:
        self.arrival_time_s = arrival_time_s
        self.num_prompt_tokens = num_prompt_tokens
        self.engine: int | None = None
        self.is_over = True
        self.last_token_s: dict[int, float] = {}
        self.num_generated = 0
        self._event = asyncio.Event()
        self._error: QuireError | None = None

    def notify(self) -> None:
        """Wake the reader: there is something to report."""
        self._event.set()

    def fail(self, error: QuireError) -> None:
        """Wake the reader with an error, the first of which counts; the request is over."""
        self._error = self._error or error
        self.is_over = True
        self._event.set()

    async def wait(self) -> None:
        """Wait for news.

        Raises:
            QuireError: What `fail` was called with.
        """
        await self._event.wait()
        self._event.clear()
        if self._error is not None:
            raise self._error
