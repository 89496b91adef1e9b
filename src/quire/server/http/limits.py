"""What one connection may take: sizes, counts and times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that hold before anything of a request is believed.

    Attributes:
        max_body_bytes: Longest body: a million token ids of prompt, or more. It is decoded in one piece, which holds up
            other streams by up to 20 ms per MiB.
        max_json_depth: Deepest nesting; JSON schemas in use stay below 30.
        max_json_brackets: Most opening brackets, those in texts included. An empty list takes a microsecond to read.
        max_head_bytes: Request line and all headers; twice what nginx takes by default.
        max_headers: Number of headers.
        head_timeout_s: From a connection or the first byte of a request to the end of its headers.
        body_timeout_s: From the end of the headers to the end of the body.
        keep_alive_s: How long a connection may be idle between two requests; clients that pool connections give them up
            earlier, and so never send into one that is being closed.
        linger_s: How long a body is still taken in and dropped after a request was refused, so that the client reads
            the answer rather than a reset.
    """

    max_body_bytes: int = 8 << 20
    max_json_depth: int = 64
    max_json_brackets: int = 1 << 16
    max_head_bytes: int = 16 << 10
    max_headers: int = 100
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keep_alive_s: int = 75
    linger_s: float = 2.0
