"""`Op`: a name, a signature, a check that infers the result, and the reference in plain torch that defines it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

from quire.core.errors import ShapeError
from quire.ops.spec import TensorSpec

P = ParamSpec("P")
R = TypeVar("R")
Result = TensorSpec | tuple[TensorSpec, ...] | None


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
            return self.infer(**self.bind(args, kwargs))
        except ShapeError as error:
            message = str(error)
            raise ShapeError(message if message.startswith(self.name) else f"{self.name}: {message}") from None


def op(infer: Callable[..., Result], mutates: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Make an `Op` of a reference function; `infer` takes the same parameters and returns the result's spec."""
    return lambda reference: Op(reference, infer, mutates)
