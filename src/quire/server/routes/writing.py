"""`Envelope`: what is around the choices of completions and chats, whole or in chunks: ids, usage, timing, warnings."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from quire.core.request import RequestMetrics, RequestOutput
from quire.server.http.exchange import event
from quire.server.protocol.common import SamplingFields, Timing, Usage
from quire.server.routes.endpoint import Call
from quire.server.routes.generation import Tally, timing

DONE = b"data: [DONE]\n\n"
"""The event that ends a stream of completions or chats."""


class Envelope:
    """Counts a request's outputs, and writes answers or chunks around its choices.

    Args:
        call: The request.
        body: Its body.
        prefix: Of the answer's id.
        chunk: Type of a stream's events.

    Attributes:
        id: The answer's id; the engine's ids are made from it.
        tally: Tokens so far.
    """

    def __init__(self, call: Call, body: SamplingFields, prefix: str, chunk: type[msgspec.Struct]) -> None:
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.tally = Tally(keeps_generated=getattr(body, "max_tokens", None) != 0)
        self._call = call
        self._body = body
        self._head = {"id": self.id, "created": int(time.time()), "model": call.model(body.model)}
        self._chunk = chunk
        self._metrics: RequestMetrics | None = None
        self._warnings: list[str] | UnsetType = call.warnings or UNSET
        options = body.stream_options
        self._has_usage = bool(options and options.include_usage)
        self._has_usage_always = bool(options and options.continuous_usage_stats)

    def count(self, index: int, output: RequestOutput) -> None:
        """Take note of an output of prompt `index`."""
        self.tally.add(index, output, is_delta=bool(self._body.stream))
        self._metrics = output.metrics
        self._call.exchange.notes.update(self.tally.notes())

    def fields(self) -> dict[str, Any]:
        """Return everything of a whole answer but its choices."""
        return {**self._head, "usage": self.tally.usage(), "timing": self._timing(), "warnings": self._warnings}

    def chunk(self, choices: list[Any]) -> bytes:
        """Return an event."""
        usage: Usage | UnsetType | None = None if self._has_usage else UNSET
        if self._has_usage_always:
            usage = self.tally.usage()
        frame = event(
            msgspec.json.encode(self._chunk(**self._head, choices=choices, usage=usage, warnings=self._warnings))
        )
        self._warnings = UNSET
        return frame

    def last_chunk(self) -> bytes | None:
        """Return the event without choices, if usage or timing was asked for."""
        if not self._has_usage and not self._body.include_timing:
            return None
        usage = self.tally.usage() if self._has_usage else UNSET
        made = self._chunk(**self._head, choices=[], usage=usage, timing=self._timing())
        return event(msgspec.json.encode(made))

    def _timing(self) -> Timing | UnsetType:
        return timing(self._metrics, self.tally.cached) if self._body.include_timing else UNSET
