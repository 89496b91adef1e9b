"""`Checkpoint`: the tensors of a model directory, whichever files they lie in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec
import torch

from quire.core.errors import PlanError
from quire.ops.spec import TensorSpec
from quire.plan.storage.tensor_file import TensorFile
from quire.plan.weight_source import Part
from quire.weights.legacy import convert

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
LEGACY, LEGACY_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_MAX_INDEX_BYTES = 100_000_000


class _Index(msgspec.Struct):
    """An index file: which shard holds which tensor. Sizes and other metadata are not needed."""

    weight_map: dict[str, str]


class Checkpoint:
    """A `WeightSource` over a Hugging Face model directory, by the names in its files.

    Looks for one safetensors file, then for shards, then for the same in the legacy format, which is converted once.

    Args:
        directory: The model directory, or one safetensors file.

    Raises:
        PlanError: There are no weights, a file is damaged, or the index and the shards contradict each other.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        paths, expected = _find(directory)
        self._files = [TensorFile(path) for path in paths]
        self._file_of: dict[str, TensorFile] = {}
        for file in self._files:
            for name in file.names():
                if name in self._file_of:
                    first = self._file_of[name].path
                    raise PlanError(f"{file.path}, tensor {name!r}: expected it in one shard, got it in {first}, too.")
                self._file_of[name] = file
        lost = [name for name in expected if name not in self._file_of]
        if lost:
            raise PlanError(
                f"{directory}: expected the shards to hold all {len(expected)} tensors of the index, got none of "
                f"{', '.join(map(repr, lost[:3]))} ({len(lost)} in all). Fetch the model again."
            )

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def names(self) -> Iterable[str]:
        """Return the names of all tensors, in file order."""
        return self._file_of.keys()

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor.

        Raises:
            PlanError: There is no such tensor.
        """
        return self._file(name).spec(name)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into fresh memory.

        Raises:
            PlanError: There is no such tensor, or its file was cut.
        """
        return self._file(name).read(name)

    def read_part(self, name: str, part: Part) -> torch.Tensor:
        """Read a part of one tensor into fresh memory.

        Raises:
            PlanError: There is no such tensor, or its file was cut.
        """
        return self._file(name).read_part(name, part)

    def path(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._file(name).path

    def _file(self, name: str) -> TensorFile:
        if name not in self._file_of:
            raise PlanError(f"{self.directory}: expected a tensor {name!r}, got none of that name.")
        return self._file_of[name]


def _find(directory: Path) -> tuple[Sequence[Path], Sequence[str]]:
    """Return the safetensors files to open, and the tensors that an index promises."""
    if directory.is_file():
        return [directory], []
    if (directory / SAFETENSORS).is_file():
        return [directory / SAFETENSORS], []
    if (directory / SAFETENSORS_INDEX).is_file():
        return _read_index(directory / SAFETENSORS_INDEX)
    if (directory / LEGACY).is_file():
        return [convert(directory / LEGACY)], []
    if (directory / LEGACY_INDEX).is_file():
        paths, names = _read_index(directory / LEGACY_INDEX)
        return [convert(path) for path in paths], names
    looked_for = ", ".join((SAFETENSORS, SAFETENSORS_INDEX, LEGACY, LEGACY_INDEX))
    raise PlanError(f"{directory}: expected one of {looked_for}, got none of them. Fetch the weights into it.")


def _read_index(path: Path) -> tuple[list[Path], list[str]]:
    def fail(expected: str, got: object) -> NoReturn:
        raise PlanError(f"{path}: expected {expected}, got {got}. Fetch the model again.") from None

    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            fail(f"at most {_MAX_INDEX_BYTES} bytes", path.stat().st_size)
        weight_map = msgspec.json.decode(path.read_bytes(), type=_Index).weight_map
    except OSError as error:
        fail("a readable file", error.strerror)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fail('a JSON object with "weight_map"', error)
    shards = list(dict.fromkeys(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard or "\0" in shard:
            fail("names of files beside it", repr(shard))
    if not shards:
        fail("at least one tensor", "an empty weight_map")
    return [path.parent / shard for shard in shards], list(weight_map)
