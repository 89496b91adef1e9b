"""What the server and its engine process say to each other: tagged structs, as msgpack, one a frame."""

from __future__ import annotations

import msgspec

from quire.core.config import BuildConfig, EngineConfig, SchedulerConfig
from quire.core.request import CachePicture, SampleUpdate


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first command: load a model.

    Attributes:
        model: As for `open_plan`.
        build: How to build it.
        engine: How to run it.
        tokenizer: Directory of another tokenizer, for structured outputs.
    """

    model: str
    build: BuildConfig
    engine: EngineConfig
    tokenizer: str | None = None


class Add(msgspec.Struct, frozen=True, tag=True):
    """Queue a request.

    Attributes:
        request_id: Its key, readable though the request may not be.
        request: A `Request` as msgpack.
    """

    request_id: str
    request: msgspec.Raw


class Abort(msgspec.Struct, frozen=True, tag=True):
    """End a request; there is no answer."""

    request_id: str


class Finish(msgspec.Struct, frozen=True, tag=True):
    """End one sample because of its text; there is no answer."""

    request_id: str
    index: int
    reason: str
    stop_reason: int | str | None


class Look(msgspec.Struct, frozen=True, tag=True):
    """Ask for a picture of the KV cache; it comes before the next step."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How far loading is."""

    title: str
    done: int
    total: int


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The Plan is there, its weights are not loaded yet.

    Attributes:
        directory: Where tokenizer and generation defaults are.
        eos_token_ids: Those of the model's config.
        vocab_size: Ids are below it.
    """

    directory: str | None
    eos_token_ids: tuple[int, ...]
    vocab_size: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Requests are taken from now on."""

    scheduler: SchedulerConfig


class StepDone(msgspec.Struct, frozen=True, tag=True):
    """All news of a step.

    Attributes:
        updates: What happened to samples.
        metrics: As `EngineLoop.metrics`.
    """

    updates: tuple[SampleUpdate, ...]
    metrics: dict[str, float]


class Looked(msgspec.Struct, frozen=True, tag=True):
    """The picture that was asked for."""

    picture: CachePicture


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A request could not be added; nothing else is touched."""

    request_id: str
    message: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The last event: loading failed, or the loop.

    Attributes:
        kind: Name of the error's class.
        message: Its text, if it is one of ours.
    """

    kind: str
    message: str


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Asks whether the process lives."""


class Pong(msgspec.Struct, frozen=True, tag=True):
    """It does.

    Attributes:
        step_age_s: Since when the present step runs, in seconds; 0 between steps.
    """

    step_age_s: float


Command = Start | Add | Abort | Finish | Look
"""Server to engine process."""

Event = Progress | Opened | Ready | StepDone | Looked | Refused | Failed
"""Engine process to server."""

_ENCODER = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """Return a message as msgpack."""
    return _ENCODER.encode(message)
