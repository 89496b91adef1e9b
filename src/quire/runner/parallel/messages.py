"""What a driver and its workers say to each other: tagged structs, as msgpack, one a frame."""

from __future__ import annotations

import msgspec

from quire.core.config import SchedulerConfig
from quire.core.request import ModelOutput, SchedulerOutput


class Open(msgspec.Struct, frozen=True, tag=True):
    """The first command: who you are. The answer is `Opened`.

    Attributes:
        engine: An engine directory.
        rank: Of this worker.
        tp_size: Ranks that share every layer.
        pp_size: Stages.
        device: Kind of device.
        store: "host:port" where the ranks find each other.
        num_local: Ranks on this machine, which share it.
        local_rank: Place among them.
        pp_partition: Layers of each stage, as of `Mapping`.
        deterministic: Keep bits: over ranks where they can be kept, and use only tactics that keep a row's.
    """

    engine: str
    rank: int
    tp_size: int
    pp_size: int
    device: str
    store: str
    num_local: int
    local_rank: int
    pp_partition: tuple[int, ...] | None = None
    deterministic: bool = True


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load your part. The answers are `Progress` and `Ready`.

    Attributes:
        scheduler: Sizes.
        enforce_eager: On a GPU, launch every kernel of every step.
        is_reporting: Whether the driver wants your results.
    """

    scheduler: SchedulerConfig
    enforce_eager: bool
    is_reporting: bool = False


class Vocabulary(msgspec.Struct, frozen=True, tag=True):
    """What grammars must know of tokens, as `TokenVocabulary`; comes before the first row that needs it."""

    tokens: list[bytes]
    special_ids: frozenset[int]
    eos_token_ids: frozenset[int]


class Step(msgspec.Struct, frozen=True, tag=True):
    """Run a step. The answer of the rank that reports is `Result`; the others are silent.

    Attributes:
        step: What changes, and what to compute.
        num_taken: Steps whose results the driver has taken, in all: take as many of yours first.
        sampled: Row ids and their newest tokens that a stage which does not sample cannot know.
    """

    step: SchedulerOutput
    num_taken: int
    sampled: tuple[tuple[int, int], ...] = ()


class Sleep(msgspec.Struct, frozen=True, tag=True):
    """As `ModelRunner.sleep`. The answer is `Held`."""

    level: int


class WakeUp(msgspec.Struct, frozen=True, tag=True):
    """As `ModelRunner.wake_up`. The answer is `Held`."""


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The rank has met the others.

    Attributes:
        available_bytes: Of memory, for its part.
    """

    available_bytes: int


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How many weights are loaded. From rank 0 alone: the driver reads what others send when that one is ready, which
    may need them for that, and a socket holds some hundred messages.
    """

    done: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Steps are taken from now on.

    Attributes:
        num_bytes: Of weights and KV cache.
        max_ahead: As of the rank's runner.
        can_pool: As of the rank's runner.
    """

    num_bytes: int
    max_ahead: int
    can_pool: bool


class Result(msgspec.Struct, frozen=True, tag=True):
    """What the oldest step produced whose result has not been sent."""

    output: ModelOutput


class Held(msgspec.Struct, frozen=True, tag=True):
    """What the rank holds now, in bytes."""

    num_bytes: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The last message.

    Attributes:
        kind: Name of the error's class.
        message: Its text.
    """

    kind: str
    message: str


class Work(msgspec.Struct, frozen=True, array_like=True):
    """What a rank says of itself when it is asked whether it lives.

    Attributes:
        num_steps: That it has run.
        busy_s: Seconds in which it computed: not those in which it waited for a message, or for another stage.
        num_collectives: Exchanges with other ranks.
        sent_bytes: Bytes of tensors that it has sent to other ranks.
    """

    num_steps: int
    busy_s: float
    num_collectives: int
    sent_bytes: int


Command = Open | Load | Vocabulary | Step | Sleep | WakeUp
"""Driver to worker."""

Answer = Opened | Progress | Ready | Result | Held | Failed
"""Worker to driver."""

_ENCODER = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """Return a message as msgpack."""
    return _ENCODER.encode(message)
