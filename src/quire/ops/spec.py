"""`TensorSpec` and the one wording for shape errors: how every op checks its arguments and infers its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch

from quire.core.errors import ShapeError

Dim = int | str
Shape = tuple[Dim, ...]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int32, torch.int64)
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int32": torch.int32,
    "int64": torch.int64,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "bool": torch.bool,
}


def dtype_name(dtype: torch.dtype) -> str:
    """Return "float32" for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """Return the torch dtype of a name in `DTYPES`.

    Raises:
        ShapeError: The name is not known.
    """
    if name not in DTYPES:
        raise ShapeError(f"Invalid dtype: expected one of {', '.join(DTYPES)}, got {name!r}.")
    return DTYPES[name]


class TensorLike(Protocol):
    """Anything with a shape and a dtype: a real tensor, or a `TensorSpec`."""

    @property
    def shape(self) -> Sequence[Dim]:
        """Sizes, symbolic ones as strings."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        ...


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor that does not exist yet.

    Attributes:
        shape: Sizes; a string names a size known only at run time, for example "num_tokens".
        dtype: Element type.
    """

    shape: Shape
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)}[{', '.join(map(str, self.shape))}]"


class Shapes:
    """Named sizes of one op call: the first tensor that mentions a name binds it, later ones must agree.

    Example:
        >>> shapes = Shapes()
        >>> shapes.check("x", x, "*rows hidden_size")
        >>> shapes.check("weight", weight, "hidden_size", like=x)
    """

    def __init__(self) -> None:
        self.sizes: dict[str, Dim | Shape] = {}

    def check(self, name: str, tensor: TensorLike, pattern: str, dtypes: Sequence[torch.dtype] | None = None) -> None:
        """Match `tensor` against a pattern of size names, integers and at most one leading `*name`.

        Raises:
            ShapeError: The rank, a size or the dtype differs.
        """
        words, shape = pattern.split(), tuple(tensor.shape)
        if words and words[0].startswith("*"):
            split = len(shape) - (len(words) - 1)
            ok = split >= 0 and self._bind(words[0], tuple(shape[: max(split, 0)]))
            pairs = list(zip(words[1:], shape[max(split, 0) :], strict=False))
        else:
            ok = len(words) == len(shape)
            pairs = list(zip(words, shape, strict=False))
        if not (ok and all([self._bind(word, size) for word, size in pairs])):
            raise ShapeError(f"Invalid shape of {name}: expected [{self._expected(words)}], got {_show(shape)}.")
        if dtypes is not None and tensor.dtype not in dtypes:
            expected = " or ".join(dtype_name(d) for d in dtypes)
            raise ShapeError(f"Invalid dtype of {name}: expected {expected}, got {dtype_name(tensor.dtype)}.")

    def _bind(self, word: str, size: Dim | Shape) -> bool:
        if word.isdigit():
            return size == int(word)
        return self.sizes.setdefault(word, size) == size

    def _expected(self, words: list[str]) -> str:
        """Return the pattern with what is known of its sizes, as in `num_tokens, hidden_size=64`."""
        known = (
            f"{w}={_show(s) if isinstance(s, tuple) else s}" if (s := self.sizes.get(w)) is not None and s != w else w
            for w in words
        )
        return ", ".join(known)

    def size(self, name: str) -> int:
        """Return a bound size that must be a known integer.

        Raises:
            ShapeError: It is symbolic.
        """
        value = self.sizes[name]
        if not isinstance(value, int):
            raise ShapeError(f"Invalid size {name}: expected a fixed integer, got {value!r}.")
        return value


def _show(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def same_dtype(**tensors: TensorLike | None) -> torch.dtype:
    """Return the dtype that all given tensors share; None is skipped.

    Raises:
        ShapeError: They differ.
    """
    found = {name: t.dtype for name, t in tensors.items() if t is not None}
    if len(set(found.values())) != 1:
        got = ", ".join(f"{name}: {dtype_name(d)}" for name, d in found.items())
        raise ShapeError(f"Invalid dtypes: expected one dtype for all, got {got}.")
    return next(iter(found.values()))


def spec_of(tensor: TensorLike) -> TensorSpec:
    """Return the spec of a real tensor, or the spec itself."""
    return TensorSpec(tuple(tensor.shape), tensor.dtype)


def sizes_of(tensor: TensorLike) -> tuple[int, ...]:
    """Return a shape that has no symbolic sizes.

    Raises:
        ShapeError: It has one.
    """
    sizes = tuple(size for size in tensor.shape if isinstance(size, int))
    if len(sizes) != len(tensor.shape):
        raise ShapeError(f"Invalid shape: expected fixed integers, got {_show(tensor.shape)}.")
    return sizes


def num_bytes(tensor: TensorLike, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of a tensor without symbolic sizes, or of one of its shape in another dtype."""
    return prod(sizes_of(tensor)) * (dtype or tensor.dtype).itemsize
