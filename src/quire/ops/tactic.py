"""`Tactic`: one implementation of an op for one kind of device.

Besides running, a tactic may do work ahead: `pack` makes one object of constant arguments once when a plan is loaded,
`prepare` derives what depends only on a step's inputs once per step, shared by all nodes that read the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Tactic:
    """An implementation of an op.

    Attributes:
        op: Name of the op.
        name: Distinguishes the tactics of an op; "reference" is always there and always valid.
        run: Takes the op's arguments in order, packed ones packed, and `prepared` if there is a `prepare`.
        pack: Takes the arguments in `pack_args`, all constant, and returns what `run` gets in place of the first of
            them; in place of the others it gets None.
        pack_args: Names of those arguments; the first is a tensor.
        is_valid: Takes the op's arguments by name, tensors as `TensorSpec`s; whether `run` bears them.
        packed_bytes: Takes the arguments in `pack_args` by name, tensors as `TensorSpec`s; the bytes that the packed
            object holds. None, or a result of None: it keeps the tensors themselves.
        workspace_bytes: Takes the op's arguments by name, tensors as `TensorSpec`s without symbolic sizes; the most
            bytes that `run` holds at once beside its arguments: its results, and what it needs on the way. For a step's
            attention these are the arguments of the largest step, and the worst of all steps up to it is meant. None:
            the results alone.
        result_bytes: Takes the same; the bytes that the results keep when they are parts of something larger. None: as
            many as their shapes say.
        prepared_bytes: Takes the same; the bytes of what `prepare` returns, and the most that it holds at once.
        library_bytes: Takes the same; what a library keeps for the call in bytes, and before that a key that calls have
            in common which share it.
        prepare: Takes the op's arguments by name before the step's first use. It may read the values of the arguments
            in `prepare_reads`, and of all others only their shapes.
        prepare_reads: Names of those arguments; all of them inputs of the step or plain values.
        keeps_bits: Whether a row's bits do not depend on the rows beside it. Others are there for networks of any kind,
            and never chosen for their speed.
    """

    op: str
    name: str
    run: Callable[..., Any]
    pack: Callable[..., Any] | None = None
    pack_args: tuple[str, ...] = ()
    is_valid: Callable[..., bool] = field(default=lambda **arguments: True)
    packed_bytes: Callable[..., int | None] | None = None
    workspace_bytes: Callable[..., int] | None = None
    result_bytes: Callable[..., int] | None = None
    prepared_bytes: Callable[..., tuple[int, int]] | None = None
    library_bytes: Callable[..., tuple[object, int]] | None = None
    prepare: Callable[..., Any] | None = None
    prepare_reads: tuple[str, ...] = ()
    keeps_bits: bool = True


REFERENCE = "reference"
"""Name of the tactic that every op has."""
