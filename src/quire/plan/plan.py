"""`Plan`: what the builder makes and the runtime executes. Data only; on disk an engine directory.

An engine directory holds `config.json` (versions, the model's numbers, build settings, a hash of every other file and
of every tensor), `graph.json` (the network as text), `weights.safetensors`, and the tokenizer's files.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import torch

from quire import __version__
from quire.core.errors import PlanError
from quire.core.model_spec import ServingSpec
from quire.graph.network import Network
from quire.graph.text import network_from_text, network_to_text
from quire.ops.spec import TensorSpec
from quire.plan.tensor_file import TensorFile, file_order, tensor_hash, write_tensor_file
from quire.plan.weight_source import WeightSource

FORMAT = 1
CONFIG, GRAPH, WEIGHTS = "config.json", "graph.json", "weights.safetensors"


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """`config.json` of an engine directory."""

    quire_format: int
    quire_version: str
    spec: ServingSpec
    build: dict[str, Any]
    files: dict[str, str]
    tensors: dict[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """A model bound for execution: portable, device-neutral, complete.

    Attributes:
        network: What to compute; its outputs include "logits".
        spec: The model's numbers, as far as the runtime needs them.
        weights: Where the weights come from, one tensor at a time.
        directory: Where the model or engine lies; the tokenizer is read from there, if there is one.
        build: The settings it was built with, as plain JSON values.
        small_files: Tokenizer and generation defaults, as paths in `directory`; a saved engine takes them along.
        report: What the build did and measured, as plain JSON values.
    """

    network: Network
    spec: ServingSpec
    weights: WeightSource
    directory: Path | None = None
    build: Mapping[str, Any] = field(default_factory=dict)
    small_files: tuple[str, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kv_cache(self) -> TensorSpec:
        """Shape and dtype of the KV cache of one layer, the same for all: [2, num_blocks, num_kv_heads, block_size,
        head_dim]."""
        return self.network.inputs["kv_cache.0"]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token keeps over all layers."""
        caches = [spec for name, spec in self.network.inputs.items() if name.startswith("kv_cache.")]
        return sum(s.dtype.itemsize * prod(size for size in s.shape if isinstance(size, int)) for s in caches)

    def save(self, directory: str | Path) -> None:
        """Write an engine directory, streaming the weights one tensor at a time.

        Args:
            directory: Made if missing; an engine directory there is replaced.

        Raises:
            PlanError: The directory holds something else.
        """
        root = Path(directory)
        if root.exists() and any(root.iterdir()) and not is_engine_directory(root):
            raise PlanError(f"{root}: expected a new, empty or engine directory, got one with other files in it.")
        root.mkdir(parents=True, exist_ok=True)
        (root / CONFIG).unlink(missing_ok=True)  # what is half written is no engine directory
        (root / GRAPH).write_text(network_to_text(self.network), encoding="utf-8")
        specs = self.network.weights
        pairs = ((name, self.weights.read(name)) for name in file_order(specs))
        tensors = write_tensor_file(root / WEIGHTS, specs, pairs)
        if self.directory is not None and self.directory.resolve() != root.resolve():
            self._copy_small_files(self.directory, root)
        names = [GRAPH, *self.small_files]
        manifest = _Manifest(
            FORMAT, __version__, self.spec, dict(self.build), {n: _file_hash(root / n) for n in names}, tensors
        )
        (root / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))

    @classmethod
    def load(cls, directory: str | Path) -> Plan:
        """Open an engine directory: check its text, map its weights; data is checked as it is read.

        Raises:
            PlanError: Something is missing, damaged, or of another format version; the message names the part.
        """
        root = Path(directory)
        manifest = _read_manifest(root / CONFIG)
        for name, expected in manifest.files.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise PlanError(f"{root / CONFIG}: expected names of files inside the directory, got {name!r}.")
            if not (root / name).is_file():
                raise PlanError(f"{root / name}: expected a file, got none. Build the engine again.")
            if (got := _file_hash(root / name)) != expected:
                raise PlanError(
                    f"{root / name}: expected hash {expected}, got {got}: it was changed or damaged. "
                    "Build the engine again."
                )
        network = network_from_text((root / GRAPH).read_text(encoding="utf-8"), str(root / GRAPH))
        weights = HashedWeights(TensorFile(root / WEIGHTS), manifest.tensors)
        _check_weights(network, weights, root / WEIGHTS)
        small_files = tuple(name for name in manifest.files if name != GRAPH)
        return cls(network, manifest.spec, weights, root, manifest.build, small_files)

    def _copy_small_files(self, directory: Path, root: Path) -> None:
        for name in self.small_files:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / name, root / name)


class HashedWeights:
    """A `WeightSource` over an engine's tensor file that checks each tensor's hash as it is read.

    Args:
        file: The open file.
        hashes: Expected BLAKE2b-256 by tensor name.
    """

    def __init__(self, file: TensorFile, hashes: Mapping[str, str]) -> None:
        self._file = file
        self._hashes = hashes

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._file.names()

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor."""
        return self._file.spec(name)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises:
            PlanError: Missing, or its bytes are not those that were saved.
        """
        tensor = self._file.read(name)
        got, expected = tensor_hash(tensor), self._hashes.get(name)
        if got != expected:
            raise PlanError(
                f"{self._file.path}, tensor {name!r}: expected hash {expected}, got {got}: the file was "
                "changed or damaged. Build the engine again."
            )
        return tensor


def is_engine_directory(path: Path) -> bool:
    """Return whether `path` holds a saved Plan (and not, for example, a Hugging Face model)."""
    config = path / CONFIG
    if not config.is_file():
        return False
    try:
        return "quire_format" in msgspec.json.decode(config.read_bytes(), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return (path / GRAPH).is_file() and (path / WEIGHTS).is_file()


def _read_manifest(path: Path) -> _Manifest:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: expected an engine directory's config, got: {error.strerror}.") from None
    try:
        version = msgspec.json.decode(raw, type=dict[str, Any]).get("quire_format")
        if version != FORMAT:
            raise PlanError(f"{path}: expected engine format {FORMAT}, got {version!r}. Build the engine again.")
        return msgspec.json.decode(raw, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"{path}: expected an engine's config, got: {error}. Build the engine again.") from None


def _check_weights(network: Network, weights: WeightSource, path: Path) -> None:
    found = set(weights.names())
    for name, declared in network.weights.items():
        if name not in found or weights.spec(name) != declared:
            got = weights.spec(name) if name in found else "nothing"
            raise PlanError(f"{path}, tensor {name!r}: expected {declared}, got {got}. Build the engine again.")


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
