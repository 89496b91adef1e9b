"""What a person declares: names, shapes, dtypes and ranges of inputs and weights, held to be valid at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quire.core.errors import BuildError, ShapeError
from quire.ops.op import is_integer
from quire.ops.spec import TensorSpec, dtype_of


def declared_spec(kind: str, name: Any, dtype: Any, shape: Any) -> TensorSpec:
    """Return the spec of an input or a weight; only an input may have symbolic sizes.

    Args:
        kind: "input" or "weight".
        name: Dotted parts, none of them empty.
        dtype: A name of `DTYPES`.
        shape: Sizes, and names of symbolic sizes.

    Raises:
        BuildError: It has no name.
        ShapeError: Its dtype or its shape is not valid.
    """
    if not isinstance(name, str) or not all(name.split(".")):
        raise BuildError(f"{kind} {name!r} of {dtype}{shape} has no name: expected one, such as 'model.norm.weight'.")
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise ShapeError(f"{kind} {name!r}: expected a tuple of sizes, got {shape!r}.")
    for size in shape:
        if not _is_size(size, may_be_symbolic=kind == "input"):
            named = ", or a name such as 'num_tokens' for one known only at run time" if kind == "input" else ""
            raise ShapeError(f"{kind} {name!r}: expected sizes of at least 0{named}, got {size!r} in {tuple(shape)}.")
    if not isinstance(dtype, str):
        raise ShapeError(f"{kind} {name!r}: expected the name of a dtype, such as 'float32', got {dtype!r}.")
    return TensorSpec(tuple(shape), dtype_of(dtype))


def _is_size(size: object, may_be_symbolic: bool) -> bool:
    if isinstance(size, str):
        return may_be_symbolic and size.isidentifier()
    return is_integer(size) and size >= 0  # type: ignore[operator]


def declared_ranges(
    name: str, declared: TensorSpec, given: Mapping[str, Any], known: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return the ranges of an input's symbolic sizes.

    Args:
        name: Of the input.
        declared: Its spec.
        given: By size, the least and the most.
        known: The ranges declared with other inputs.

    Raises:
        ShapeError: A range is none, or contradicts a known one, or the input has no such size.
    """
    ranges: dict[str, tuple[int, int]] = {}
    for size, bounds in given.items():
        if not isinstance(size, str) or size not in declared.shape:
            raise ShapeError(f"input {name!r}: expected ranges of its symbolic sizes, got one of {size!r}: {declared}.")
        low, high = _bounds(name, size, bounds)
        if known.get(size, (low, high)) != (low, high):
            raise ShapeError(f"input {name!r}: expected {size} in {known[size]} as declared first, got {(low, high)}.")
        ranges[size] = (low, high)
    return ranges


def _bounds(name: str, size: str, bounds: Any) -> tuple[int, int]:
    fits = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(is_integer, bounds))
    if not fits or not 0 <= bounds[0] <= bounds[1]:
        raise ShapeError(f"input {name!r}: expected least and most of {size}, such as (1, 2048), got {bounds!r}.")
    return bounds[0], bounds[1]


def check_range(
    name: str, declared: TensorSpec, sizes: Mapping[str, int], ranges: Mapping[str, tuple[int, int]]
) -> None:
    """Check the symbolic sizes of an input, as they were bound, against their ranges.

    Raises:
        ShapeError: One is out of its range.
    """
    for size in declared.shape:
        if isinstance(size, str) and size in ranges:
            low, high = ranges[size]
            if not low <= sizes[size] <= high:
                raise ShapeError(f"Invalid tensor for {name}: expected {size} in {low}..{high}, got {sizes[size]}.")
