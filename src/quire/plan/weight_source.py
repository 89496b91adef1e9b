"""`WeightSource`: where a Plan's weights come from, one tensor at a time."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, product
from math import prod
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from quire.core.errors import PlanError
from quire.ops.spec import FLOATS, TensorSpec, dtype_name, sizes_of, spec_of

_OWN_PAGES_BYTES, _HUGE_PAGE_BYTES = 1 << 18, 1 << 21


def empty_weight(spec: TensorSpec) -> torch.Tensor:
    """Return uninitialised memory for one weight, 64-byte aligned.

    Large ones get pages of their own, which go back to the system as soon as the weight has been packed. Taken from the
    heap, the holes that packed weights leave between them made loading peak at 1.6 times the weights (2-core EPYC,
    150 MB in bf16, glibc 2.36); with pages of their own it peaks at 1.1 times.
    """
    shape = [size for size in spec.shape if isinstance(size, int)]
    num_bytes = prod(shape) * spec.dtype.itemsize
    if num_bytes < _OWN_PAGES_BYTES:
        return torch.empty(shape, dtype=spec.dtype)
    return torch.frombuffer(own_pages(num_bytes), dtype=spec.dtype).view(shape)


def own_pages(num_bytes: int) -> mmap.mmap:
    """Return fresh memory, zeros, in huge pages if there is enough of it. Nothing is taken before it is written.

    Private and in huge pages reading 966 MB into it took half as long (Intel Xeon, Linux 6).

    Raises:
        OSError: The system has not enough.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, num_bytes)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and num_bytes >= _HUGE_PAGE_BYTES:
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


_CASTABLE = (*FLOATS, torch.float64)


def can_cast(stored: torch.dtype, wanted: torch.dtype) -> bool:
    """Return whether a stored weight may become one of another dtype: both are floating point, or the same."""
    return stored == wanted or stored in _CASTABLE


def cast_weight(tensor: torch.Tensor, wanted: TensorSpec, origin: str) -> torch.Tensor:
    """Return a weight in its declared dtype.

    Args:
        tensor: As stored.
        wanted: As declared.
        origin: File and tensor, for errors.

    Raises:
        PlanError: A value does not fit into float16.
    """
    if tensor.dtype == wanted.dtype:
        return tensor
    cast = empty_weight(wanted).copy_(tensor)
    if wanted.dtype == torch.float16 and bool((cast.isinf() & tensor.isfinite()).any()):
        raise PlanError(
            f"{origin}: expected values within float16, got {float(tensor.abs().max()):g} in "
            f"{dtype_name(tensor.dtype)}. Choose dtype bfloat16 or float32."
        )
    return cast


class WeightSource(Protocol):
    """Tensors by checkpoint name, read when asked for and never kept."""

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        ...

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor without reading its data.

        Raises:
            PlanError: There is no such tensor.
        """
        ...

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into memory of its own (contiguous, 64-byte aligned, writable).

        Raises:
            PlanError: It is missing, truncated or damaged; the message names file, tensor, expected and got.
        """
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies that nobody has changed.

    Attributes:
        path: A safetensors file that stays where it is.
        name: Name of the tensor in it.
    """

    path: Path
    name: str

    def __str__(self) -> str:
        return f"{self.path}, tensor {self.name!r}"


@runtime_checkable
class PlacedWeights(Protocol):
    """A `WeightSource` that can say where its tensors lie."""

    def place(self, name: str) -> Place | None:
        """Return where a tensor lies unchanged but for its dtype, None if nowhere."""
        ...


def place_of(weights: WeightSource, name: str) -> Place | None:
    """Return where a tensor of a source lies unchanged but for its dtype, None if nowhere."""
    return weights.place(name) if isinstance(weights, PlacedWeights) else None


Part = tuple[tuple[tuple[int, int], ...], ...]
"""Which places of a tensor are wanted: for each dimension ranges (start, stop), in order, none of them empty."""


def whole(spec: TensorSpec) -> Part:
    """Return the part of a tensor that is all of it."""
    return tuple(((0, size),) for size in sizes_of(spec))


def part_spec(spec: TensorSpec, part: Part) -> TensorSpec:
    """Return shape and dtype of a part of a tensor."""
    return TensorSpec(tuple(sum(stop - start for start, stop in ranges) for ranges in part), spec.dtype)


@runtime_checkable
class PartialWeights(Protocol):
    """A `WeightSource` that can read less than a tensor."""

    def read_part(self, name: str, part: Part) -> torch.Tensor:
        """Read a part of one tensor into memory of its own, contiguous.

        Raises:
            PlanError: As `read`; what the part is read together with counts, too.
        """
        ...


def read_part(weights: WeightSource, name: str, part: Part) -> torch.Tensor:
    """Return a part of a tensor of a source, which reads no more of it than it must.

    Raises:
        PlanError: As `WeightSource.read`.
    """
    if part == whole(weights.spec(name)):
        return weights.read(name)
    return weights.read_part(name, part) if isinstance(weights, PartialWeights) else cut(weights.read(name), part)


def cut(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    """Return a part of a tensor in memory of its own."""
    out = empty_weight(part_spec(spec_of(tensor), part))
    for source, target in blocks(part):
        out[target].copy_(tensor[source])
    return out


def blocks(part: Part) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Yield the rectangles that a part consists of: where each is in the tensor, and where in the part."""
    by_dim = []
    for ranges in part:
        starts = accumulate((stop - start for start, stop in ranges), initial=0)
        by_dim.append([(slice(a, b), slice(at, at + b - a)) for (a, b), at in zip(ranges, starts, strict=False)])
    for block in product(*by_dim):
        yield tuple(source for source, _ in block), tuple(target for _, target in block)


class DeclaredWeights:
    """Names and specs of a network's weights, in its order.

    Args:
        declared: The weights by name.
        origin: Where they come from, for errors.
    """

    def __init__(self, declared: Mapping[str, TensorSpec], origin: str) -> None:
        self._declared = dict(declared)
        self._origin = origin

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._declared.keys()

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor as the network declares it.

        Raises:
            PlanError: There is no such tensor.
        """
        if name not in self._declared:
            raise PlanError(f"{self._origin}: expected a declared weight, got {name!r}.")
        return self._declared[name]


class TensorWeights:
    """A `WeightSource` of tensors in memory, before those of another source.

    Args:
        tensors: By name; handed out as they are.
        rest: Where all other names are looked up.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], rest: WeightSource | None = None) -> None:
        self._tensors = dict(tensors)
        self._rest = rest

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        rest = () if self._rest is None else self._rest.names()
        return [*self._tensors, *(name for name in rest if name not in self._tensors)]

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor.

        Raises:
            PlanError: There is no such tensor.
        """
        return spec_of(self._tensors[name]) if name in self._tensors else self._other(name).spec(name)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor.

        Raises:
            PlanError: There is no such tensor, or it cannot be read.
        """
        return self._tensors[name] if name in self._tensors else self._other(name).read(name)

    def place(self, name: str) -> Place | None:
        """Return where a tensor lies unchanged but for its dtype, None if nowhere."""
        return None if name in self._tensors or self._rest is None else place_of(self._rest, name)

    def _other(self, name: str) -> WeightSource:
        if self._rest is None:
            raise PlanError(f"weights: expected one of {len(self._tensors)} tensors given, got {name!r}.")
        return self._rest
