"""`Op`: a name, a signature, a check that infers the result, and the reference in plain torch that defines it.

`Tactic`: one implementation of an op for one kind of device.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from quire.core.errors import ShapeError
from quire.ops.spec import TensorSpec

P = ParamSpec("P")
R = TypeVar("R")
Result = TensorSpec | tuple[TensorSpec, ...] | None


def is_tensor(value: object) -> bool:
    """Return whether a value has a shape and a torch dtype: a real tensor, a symbolic one, or a `TensorSpec`."""
    return hasattr(value, "shape") and isinstance(getattr(value, "dtype", None), torch.dtype)


def is_integer(value: object) -> bool:
    """Return whether a value is an integer, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value is an integer or a finite float."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _all(is_one: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(is_one, value))


_KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "Tensor": ("a tensor", is_tensor),
    "float": ("a finite number", is_number),
    "int": ("an integer", is_integer),
    "str": ("a string", lambda value: isinstance(value, str)),
    "bool": ("True or False", lambda value: isinstance(value, bool)),
    "None": ("None", lambda value: value is None),
    "Sequence[Tensor]": ("a list of tensors", _all(is_tensor)),
    "Sequence[int]": ("a list of integers", _all(is_integer)),
}
"""What the words of a reference's annotations stand for, in messages and as a check."""


class Op(Generic[P, R]):
    """One tensor operation. Calling it checks the arguments and runs the reference.

    Attributes:
        name: Its stem everywhere: function, tactics, tests.
        reference: The definition, in plain torch; valid on every device.
        infer: Checks arguments (real tensors or `TensorSpec`s) and returns the result's spec.
        mutates: Names of the arguments it writes into.
    """

    def __init__(self, reference: Callable[P, R], infer: Callable[..., Result], mutates: tuple[str, ...]) -> None:
        self.name = reference.__name__
        self.reference = reference
        self.infer = infer
        self.mutates = mutates
        update_wrapper(self, reference)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        self.check(*args, **kwargs)
        return self.reference(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    @cached_property
    def signature(self) -> inspect.Signature:
        """Signature of the reference."""
        return inspect.signature(self.reference)

    @cached_property
    def _kinds(self) -> dict[str, list[str]]:
        """By parameter the words of its annotation, alternatives of each other."""
        return {name: str(p.annotation).split(" | ") for name, p in self.signature.parameters.items()}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by parameter name, defaults filled in.

        Raises:
            ShapeError: They do not fit the signature.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ShapeError(f"{self.name}: {error}; expected {self.name}{self.signature}.") from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def check(self, *args: Any, **kwargs: Any) -> Result:
        """Check arguments and return the spec of the result.

        Raises:
            ShapeError: An argument does not fit; the message names the op and the argument.
        """
        try:
            bound = self.bind(args, kwargs)
            for name, value in bound.items():
                self._check_kind(name, value)
            return self.infer(**bound)
        except ShapeError as error:
            message = str(error)
            raise ShapeError(message if message.startswith(self.name) else f"{self.name}: {message}") from None

    def _check_kind(self, name: str, value: Any) -> None:
        kinds = [_KINDS[word] for word in self._kinds[name]]
        if not any(is_one(value) for _, is_one in kinds):
            expected = " or ".join(said for said, _ in kinds)
            got = f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, str)) else type(value).__name__
            raise ShapeError(f"Invalid {name}: expected {expected}, got {got}.")


def op(infer: Callable[..., Result], mutates: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Make an `Op` of a reference function; `infer` takes the same parameters and returns the result's spec."""
    return lambda reference: Op(reference, infer, mutates)


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a tactic is one compiled kernel, so that calls in a row run as one program, without Python between them.

    Attributes:
        name: Of the kernel; csrc/kernels/declarations.hpp says what it takes.
        operands: What it takes after its results: names of the op's arguments, and of fields of packed ones, as in
            "weight.blocks". An argument that is None stays away.
        numbers: Takes the op's arguments by name, tensors as `TensorSpec`s, and returns the kernel's attributes.
        scratch_bytes: Takes the same, without symbolic sizes, and returns what the kernel works in: bytes of each
            thread, and of all threads together.
    """

    name: str
    operands: tuple[str, ...]
    numbers: Callable[..., tuple[float, ...]] = field(default=lambda **arguments: ())
    scratch_bytes: Callable[..., tuple[int, int]] = field(default=lambda **arguments: (0, 0))


@dataclass(frozen=True, slots=True)
class Tactic:
    """An implementation of an op.

    Besides running, it may do work ahead: `pack` makes one object of constant arguments once when a plan is loaded,
    `prepare` derives what depends only on a step's inputs once per step, shared by all nodes that read the same inputs.

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
        kernel: The compiled kernel that does the same as `run`, if it is one.
        keeps_bits: Whether a row's bits do not depend on the rows beside it. Others are there for networks of any kind,
            and never chosen for their speed.
        reads_unwritten: Whether it reads what no token has written yet of a KV cache's blocks, and counts on numbers
            there: what others left in them is cleared first.
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
    kernel: Kernel | None = None
    keeps_bits: bool = True
    reads_unwritten: bool = False


@dataclass(frozen=True, slots=True)
class Fusion:
    """How two calls are one, where the second alone uses what the first makes.

    Attributes:
        first: Op and tactic of the first, which returns one tensor, and packs and prepares nothing.
        second: Op and tactic of the second, which packs nothing.
        argument: Name of the argument of the second that is the result of the first. If the second prepares something,
            the first has an argument of this name as well, of the same shape and dtype.
        run: Takes the arguments of the first in order, then those of the second but for `argument`, and `prepared` if
            the second prepares something; returns what the second would, the same bits.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    argument: str
    run: Callable[..., Any]


REFERENCE = "reference"
"""Name of the tactic that every op has."""
