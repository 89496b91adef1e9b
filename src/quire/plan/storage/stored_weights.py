"""Where a saved plan's weights lie: in its own file, or where they were, each with the hash of its bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch

from quire.core.errors import PlanError
from quire.ops.spec import TensorSpec
from quire.plan.storage.block_hashes import (
    BLOCK_HASH_LENGTH,
    block_hash,
    block_hashes,
    covering_blocks,
    has_blocks,
    merged,
    within,
)
from quire.plan.storage.tensor_file import TensorFile, file_order, tensor_hash, write_tensor_file
from quire.plan.weight_source import (
    DeclaredWeights,
    Part,
    Place,
    WeightSource,
    can_cast,
    cast_weight,
    cut,
    part_spec,
    place_of,
    whole,
)

WEIGHTS = "weights.safetensors"


class StoredTensor(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One tensor of a saved plan.

    Attributes:
        hash: BLAKE3 of its bytes as they are stored.
        file: The safetensors file that holds it, relative to the engine directory; empty for the engine's own.
        name: What it is called there; empty if as in the network.
        rows: `block_hashes` of its rows, empty if it is small or no matrix.
        columns: The same of its columns.
    """

    hash: str
    file: str = ""
    name: str = ""
    rows: str = ""
    columns: str = ""

    @classmethod
    def of(cls, tensor: torch.Tensor, file: str = "", name: str = "") -> StoredTensor:
        """Return the entry of a tensor, all hashes computed."""
        rows, columns = (block_hashes(tensor, dim) if has_blocks(tensor) else "" for dim in (0, 1))
        return cls(tensor_hash(tensor), file, name, rows, columns)


def save_weights(
    root: Path, declared: Mapping[str, TensorSpec], weights: WeightSource, *, copy: bool
) -> dict[str, StoredTensor]:
    """Write into an engine directory what lies nowhere else, and hash the rest where it is.

    Args:
        root: The engine directory.
        declared: The network's weights.
        weights: Their source; read once, a tensor at a time.
        copy: Whether to write all of them.

    Returns:
        Where each tensor is.
    """
    places = {name: None if copy else place_of(weights, name) for name in declared}
    found: dict[str, StoredTensor] = {}
    files = {place.path: TensorFile(place.path) for place in places.values() if place is not None}
    for name, place in places.items():
        if place is not None:
            stored = files[place.path].read(place.name)
            cast_weight(stored, declared[name], str(place))
            file = Path(os.path.relpath(os.path.abspath(place.path), root.resolve())).as_posix()
            found[name] = StoredTensor.of(stored, file, place.name)
    own = {name: spec for name, spec in declared.items() if places[name] is None}
    if own:
        written = root / f"{WEIGHTS}.new"  # the source may be the file that is to be replaced

        def note(name: str) -> torch.Tensor:
            tensor = weights.read(name)
            found[name] = StoredTensor.of(tensor)
            return tensor

        write_tensor_file(written, own, ((name, note(name)) for name in file_order(own)))
        os.replace(written, root / WEIGHTS)
    else:
        (root / WEIGHTS).unlink(missing_ok=True)
    return {name: found[name] for name in declared}


class StoredWeights(DeclaredWeights):
    """A `WeightSource` over a saved plan's tensors that checks each one's hash as it is read.

    Args:
        root: The engine directory.
        tensors: Where each tensor is.
        declared: The network's weights.
        hint: What to do when something is damaged.

    Raises:
        PlanError: A file or a tensor is missing, or is not what the network declares.
    """

    def __init__(
        self, root: Path, tensors: Mapping[str, StoredTensor], declared: Mapping[str, TensorSpec], hint: str
    ) -> None:
        super().__init__(declared, str(root))
        self._hint = hint
        self._files: dict[Path, TensorFile] = {}
        self._places: dict[str, Place] = {}
        self._tensors = {name: tensors[name] for name in declared if name in tensors}
        for name, wanted in declared.items():
            if name not in tensors:
                raise PlanError(f"{root}: expected weight {name!r} to be listed, got nothing of it. {hint}")
            path = _path(root, tensors[name].file)
            if path not in self._files:
                self._files[path] = TensorFile(path)
            place = Place(path, tensors[name].name or name)
            got = self._files[path].spec(place.name)
            if got.shape != wanted.shape or not can_cast(got.dtype, wanted.dtype):
                raise PlanError(f"{place}: expected {wanted}, got {got}. {hint}")
            self._places[name] = place

    def place(self, name: str) -> Place | None:
        """Return where a tensor lies that is not the engine's own."""
        return self._places[name] if self._tensors[name].file else None

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, check it, and cast it to its declared dtype.

        Raises:
            PlanError: Its bytes are not those that were there when the plan was saved.
        """
        wanted, place = self.spec(name), self._places[name]
        tensor = self._files[place.path].read(place.name)
        self._check(place, tensor_hash(tensor), self._tensors[name].hash)
        return cast_weight(tensor, wanted, str(place))

    def read_part(self, name: str, part: Part) -> torch.Tensor:
        """Read a part of one tensor, check it, and cast it to its declared dtype.

        Every byte that is used is checked. So a large matrix is read in whole blocks of rows or columns, each of which
        has a hash of its own: a part that begins and ends between blocks, as for 2, 4, 8 or 16 ranks, costs nothing
        more. Whatever has no such hashes (small tensors, engines saved without) is read and checked whole.

        Raises:
            PlanError: Bytes of these blocks are not those that were there when the plan was saved.
        """
        stored, place = self._tensors[name], self._places[name]
        spec = self._files[place.path].spec(place.name)
        dims = [dim for dim, ranges in enumerate(part) if ranges != whole(spec)[dim]]
        if not stored.rows or len(dims) != 1:
            return cut(self.read(name), part)
        dim, hashes = dims[0], (stored.rows, stored.columns)[dims[0]]
        blocks = covering_blocks(int(spec.shape[dim]), part[dim])
        covered = (*part[:dim], merged(blocks.values()), *part[dim + 1 :])
        tensor, at = self._files[place.path].read_part(place.name, covered), 0
        for block, (start, stop) in blocks.items():
            got = block_hash(tensor.narrow(dim, at, stop - start))
            self._check(place, got, hashes[block * BLOCK_HASH_LENGTH :][:BLOCK_HASH_LENGTH], f" of block {block}")
            at += stop - start
        if covered != part:
            tensor = cut(tensor, (*part[:dim], within(covered[dim], part[dim]), *part[dim + 1 :]))
        return cast_weight(tensor, part_spec(self.spec(name), part), str(place))

    def _check(self, place: Place, got: str, expected: str, what: str = "") -> None:
        if got != expected:
            raise PlanError(f"{place}: expected hash {expected}{what}, got {got}: it was changed or damaged, or "
                            f"belongs to another model. {self._hint}")  # fmt: skip


def _path(root: Path, file: str) -> Path:
    """Return where a file of weights is, the engine's own if `file` is empty."""
    if not file:
        return root / WEIGHTS
    path = Path(os.path.normpath(root.resolve() / file))
    if not path.is_file():
        raise PlanError(
            f"{path}: expected the weights that the engine {root} refers to, got no file. Put it back, or build an "
            "engine that holds its own weights, with --copy-weights."
        )
    return path
