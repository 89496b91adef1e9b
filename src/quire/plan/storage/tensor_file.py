"""Safetensors files, read and written one tensor at a time.

A file is eight bytes of header length, a JSON header, then the data (https://github.com/huggingface/safetensors).
Data is read with plain reads, not mapped: a mapped file would count as resident memory beside the packed weights,
and its tensors are only 8-byte aligned, which some kernels cannot bear.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import msgspec
import torch
from blake3 import blake3

from quire.core.errors import PlanError
from quire.ops.spec import TensorSpec, num_bytes
from quire.plan.weight_source import Part, cut, empty_weight, part_spec, whole

ALIGNMENT = 64
_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


_PAGE_BYTES, _PIECE_BYTES = 1 << 12, 1 << 20


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Place:
    spec: TensorSpec
    start: int
    num_bytes: int


class TensorFile:
    """An open safetensors file whose header has been checked against the file's size.

    Args:
        path: The file.

    Raises:
        PlanError: Missing, truncated, or a header that contradicts itself or the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise PlanError(f"{path}: expected a readable safetensors file, got: {error.strerror}.") from None
        try:
            self._places = self._read_header()
        except BaseException:
            self._file.close()
            raise
        weakref.finalize(self, self._file.close)  # a source has no owner that must remember to close it

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def names(self) -> Iterable[str]:
        """Return the names of all tensors, in file order."""
        return self._places.keys()

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor.

        Raises:
            PlanError: There is no such tensor.
        """
        return self._place(name).spec

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into fresh memory.

        Raises:
            PlanError: There is no such tensor, or the file ends before it does.
        """
        place = self._place(name)
        tensor = empty_weight(place.spec)
        self._fill(_bytes(tensor), place.start, name)
        return tensor

    def read_part(self, name: str, part: Part) -> torch.Tensor:
        """Read a part of one tensor into fresh memory, and of the file hardly more.

        Rows are read as they are. Of columns, pieces of a page of memory or more are read one by one; smaller ones lie
        in pages that are all read anyway, so some rows are read whole at a time, and cut.

        Args:
            name: Of the tensor.
            part: Which places of it.

        Raises:
            PlanError: There is no such tensor, or the file ends before it does.
        """
        place = self._place(name)
        out = empty_weight(part_spec(place.spec, part))
        if out.numel() == 0:
            return out
        row_bytes, done = place.num_bytes // int(place.spec.shape[0]), 0
        for start, stop in part[0]:
            rows, at = out[done : done + stop - start], place.start + start * row_bytes
            if part[1:] == whole(place.spec)[1:]:
                self._fill(_bytes(rows), at, name)
            elif len(part) == 2 and min(b - a for a, b in part[1]) * out.itemsize >= _PAGE_BYTES:
                self._fill_columns(rows, at, row_bytes, part[1], name)
            else:
                self._fill_cut(rows, at, place.spec, part, name)
            done += stop - start
        return out

    def _fill(self, target: memoryview, start: int, name: str) -> None:
        """Read as many bytes as a target holds."""
        done = 0
        while done < len(target):
            count = os.preadv(self._file.fileno(), [target[done:]], start + done)
            if count == 0:
                raise self._error(f"expected {len(target)} bytes of tensor {name!r}, got {done}")
            done += count

    def _fill_columns(
        self, rows: torch.Tensor, start: int, row_bytes: int, ranges: Sequence[tuple[int, int]], name: str
    ) -> None:
        """Read some columns of rows in a row, piece by piece."""
        target, at = _bytes(rows), 0
        for row in range(len(rows)):
            for first, last in ranges:
                size = (last - first) * rows.itemsize
                self._fill(target[at : at + size], start + row * row_bytes + first * rows.itemsize, name)
                at += size

    def _fill_cut(self, rows: torch.Tensor, start: int, spec: TensorSpec, part: Part, name: str) -> None:
        """Read rows in a row whole, some at a time, and keep a part of each."""
        row_bytes = num_bytes(spec) // int(spec.shape[0])
        step = max(1, _PIECE_BYTES // row_bytes)
        for first in range(0, len(rows), step):
            count = min(step, len(rows) - first)
            read = empty_weight(TensorSpec((count, *spec.shape[1:]), spec.dtype))
            self._fill(_bytes(read), start + first * row_bytes, name)
            rows[first : first + count] = cut(read, (((0, count),), *part[1:]))

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise self._error(f"expected a tensor {name!r}, got none of that name")
        return self._places[name]

    def _error(self, what: str) -> PlanError:
        return PlanError(f"{self.path}: {what}. The file is damaged or incomplete; fetch or build it again.")

    def _read_header(self) -> dict[str, _Place]:
        file_bytes = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little") if file_bytes >= 8 else 0
        if not 2 <= length <= min(file_bytes - 8, _MAX_HEADER_BYTES):
            raise self._error(f"expected a header length between 2 and {max(file_bytes - 8, 0)} bytes, got {length}")
        try:
            raw = msgspec.json.decode(self._file.read(length), type=dict[str, msgspec.Raw])
            raw.pop("__metadata__", None)
            entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._error(f"expected a JSON header of tensors, got: {error}") from None
        return self._checked(entries, 8 + length, file_bytes)

    def _checked(self, entries: Mapping[str, _Entry], data_start: int, file_bytes: int) -> dict[str, _Place]:
        """Check every entry's size and that the tensors cover the data exactly, without overlap."""
        places: dict[str, _Place] = {}
        position = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
            begin, end = entry.data_offsets
            if entry.dtype not in _DTYPES:
                raise self._error(f"tensor {name!r}: expected a dtype of {', '.join(_DTYPES)}, got {entry.dtype!r}")
            dtype = _DTYPES[entry.dtype]
            num_bytes = prod(entry.shape) * dtype.itemsize if all(d >= 0 for d in entry.shape) else -1
            if begin != position or end - begin != num_bytes:
                expected = f"{num_bytes} bytes from offset {position}"
                raise self._error(
                    f"tensor {name!r} of {entry.dtype}{entry.shape}: expected {expected}, got {begin}..{end}"
                )
            places[name] = _Place(TensorSpec(tuple(entry.shape), dtype), data_start + begin, num_bytes)
            position = end
        if data_start + position != file_bytes:
            raise self._error(f"expected {data_start + position} bytes in all, got {file_bytes}")
        return places


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def tensor_hash(tensor: torch.Tensor) -> str:
    """Return the BLAKE3 of a tensor's bytes, in hex.

    With one thread 4.0 GB/s, where SHA-256 by the processor's own instructions takes 1.1 (Intel Xeon with AVX-512).
    """
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return blake3(flat.numpy().data).hexdigest()


def write_tensor_file(path: Path, specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write a safetensors file, holding one tensor in memory at a time.

    The header is padded so that data starts at a multiple of 64 bytes, and tensors whose size is no such multiple come
    last, so that all others are aligned.

    Args:
        path: The file to make.
        specs: Every tensor's spec; sets the order of `tensors` through `file_order`.
        tensors: (name, tensor) pairs in the order of `file_order(specs)`.
    """
    header, position = {}, 0
    for name in file_order(specs):
        end = position + num_bytes(specs[name])
        header[name] = {
            "dtype": _NAMES[specs[name].dtype],
            "shape": list(specs[name].shape),
            "data_offsets": [position, end],
        }
        position = end
    text = msgspec.json.encode(header)
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in tensors:
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def file_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Return the names with those first whose size is a multiple of the alignment."""
    return sorted(specs, key=lambda name: num_bytes(specs[name]) % ALIGNMENT != 0)
