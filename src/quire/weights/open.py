"""`open_weights`: a checkpoint held against the weights that a network declares, before any data is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from quire.core.errors import PlanError
from quire.ops.spec import TensorSpec
from quire.plan.weight_source import DeclaredWeights, Part, Place, WeightSource, can_cast, cast_weight, part_spec
from quire.weights.checkpoint import Checkpoint

_SHOWN = 3


def open_weights(
    directory: Path, declared: Mapping[str, TensorSpec], canonical: Callable[[str], str | None]
) -> WeightSource:
    """Open a model directory's weights under the names, shapes and dtypes that a network declares.

    Args:
        directory: A Hugging Face model directory, or a safetensors file.
        declared: The network's weights by name.
        canonical: Maps a tensor's name in the files to its name in the network, or to None if it is to be ignored.

    Returns:
        A source of exactly the declared tensors. Reading casts to the declared dtype.

    Raises:
        PlanError: A tensor is missing, not expected, or of another shape or kind; names file, tensor, expected and got.
    """
    checkpoint = Checkpoint(directory)
    try:
        stored = _stored_names(checkpoint, canonical)
        _check(checkpoint, stored, declared)
    except BaseException:
        checkpoint.close()
        raise
    return CheckpointWeights(checkpoint, stored, declared)


def open_stored(directory: Path, canonical: Callable[[str], str | None]) -> CheckpointWeights:
    """Open a model directory's weights as they are stored, whatever a network declares.

    Args:
        directory: A Hugging Face model directory.
        canonical: Maps a tensor's name in the files to its name in the network, or to None if it is to be ignored.

    Returns:
        A source of all tensors under the network's names; close it.

    Raises:
        PlanError: There are no weights, or a file is damaged.
    """
    checkpoint = Checkpoint(directory)
    try:
        stored = _stored_names(checkpoint, canonical)
    except BaseException:
        checkpoint.close()
        raise
    return CheckpointWeights(checkpoint, stored, {name: checkpoint.spec(of) for name, of in stored.items()})


class CheckpointWeights(DeclaredWeights):
    """A `WeightSource` of a network's weights out of a checkpoint.

    Args:
        checkpoint: The open files.
        stored: Name in the files by name in the network.
        declared: The network's weights.
    """

    def __init__(self, checkpoint: Checkpoint, stored: Mapping[str, str], declared: Mapping[str, TensorSpec]) -> None:
        super().__init__(declared, str(checkpoint.directory))
        self._checkpoint = checkpoint
        self._stored = dict(stored)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor and cast it to its declared dtype.

        Raises:
            PlanError: There is no such tensor, its file was cut, or a value does not fit into float16.
        """
        return self._cast(self._checkpoint.read(self._stored[name]), self.spec(name), name)

    def read_part(self, name: str, part: Part) -> torch.Tensor:
        """Read a part of one tensor and cast it to its declared dtype.

        Raises:
            PlanError: As `read`.
        """
        read = self._checkpoint.read_part(self._stored[name], part)
        return self._cast(read, part_spec(self.spec(name), part), name)

    def _cast(self, read: torch.Tensor, wanted: TensorSpec, name: str) -> torch.Tensor:
        stored = self._stored[name]
        return cast_weight(read, wanted, f"{self._checkpoint.path(stored)}, tensor {stored!r}")

    def place(self, name: str) -> Place | None:
        """Return where a tensor lies, None if it was converted from the legacy format."""
        path = self._checkpoint.path(self._stored[name])
        own = self._checkpoint.directory
        return Place(path, self._stored[name]) if own in (path, path.parent) else None

    def close(self) -> None:
        """Close the files."""
        self._checkpoint.close()


def _stored_names(checkpoint: Checkpoint, canonical: Callable[[str], str | None]) -> dict[str, str]:
    """Return name in the files by name in the network."""
    stored: dict[str, str] = {}
    for name in checkpoint.names():
        target = canonical(name)
        if target is None:
            continue
        if target in stored:
            raise PlanError(
                f"{checkpoint.path(name)}: expected one tensor for {target!r}, got {stored[target]!r} and {name!r}."
            )
        stored[target] = name
    return stored


def _check(checkpoint: Checkpoint, stored: Mapping[str, str], declared: Mapping[str, TensorSpec]) -> None:
    missing = [name for name in declared if name not in stored]
    extra = [stored[name] for name in stored if name not in declared]
    wrong = [
        f"{stored[name]!r} in {checkpoint.path(stored[name]).name}: expected {spec}, got {got}"
        for name, spec in declared.items()
        if name in stored and not _fits(spec, got := checkpoint.spec(stored[name]))
    ]
    parts = [
        _count("tensors missing", [f"{name!r} {declared[name]}" for name in missing]),
        _count("tensors not expected", [f"{name!r} {checkpoint.spec(name)}" for name in extra]),
        _count("tensors that do not fit", wrong),
    ]
    if missing or extra or wrong:
        raise PlanError(
            f"{checkpoint.directory}: expected the {len(declared)} weights that the network declares, got "
            f"{'; '.join(part for part in parts if part)}. Check that the model's definition and its weights belong "
            "together."
        )


def _count(what: str, items: Sequence[str]) -> str:
    more = ", ..." if len(items) > _SHOWN else ""
    return f"{what} ({len(items)}): {', '.join(items[:_SHOWN])}{more}" if items else ""


def _fits(declared: TensorSpec, got: TensorSpec) -> bool:
    """Return whether a stored tensor can be cast to the declared one: same shape, both floating point."""
    return declared.shape == got.shape and can_cast(got.dtype, declared.dtype)
