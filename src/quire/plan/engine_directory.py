"""An engine directory: a Plan on disk, every byte of it accounted for.

- `config.json`: versions, the model's numbers, build settings, a hash of every other file and of every tensor, and one
  of itself.
- `graph.json`: the network as text, one line a node.
- `weights.safetensors`: what the build made of the weights. What it left as it was stays where it lies, and is referred
  to, unless it was asked to be copied.
- `report.json`, `report.html`: what the build did and measured.
- `tactics/<device>.json`: which implementations are the fastest, per device; may be missing (`plan.tactics`).
- `recording.json`: logits to be computed again, if somebody recorded some.
- The tokenizer's files and the generation defaults.

Loading checks every file, maps nothing and runs nothing of it; tensors are checked as they are read.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from quire import __version__
from quire.core.errors import PlanError
from quire.core.model_spec import ServingSpec
from quire.plan.storage.stored_weights import StoredTensor
from quire.plan.tactics import DIRECTORY as TACTICS

FORMAT = 3
CONFIG, GRAPH, REPORT, PAGE = "config.json", "graph.json", "report.json", "report.html"
RECORDING = "recording.json"


class Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """`config.json`.

    Attributes:
        quire_format: Version of this layout.
        quire_version: What built it.
        hash: SHA-256 of all this with an empty hash.
        spec: The model's numbers.
        source: What it was built from.
        build: Build settings that were set.
        files: SHA-256 by name of every other file but the weights and the tactics.
        tensors: Where each weight is.
    """

    quire_format: int
    quire_version: str
    hash: str
    spec: ServingSpec
    source: str
    build: dict[str, Any]
    files: dict[str, str]
    tensors: dict[str, StoredTensor]

    @classmethod
    def of(
        cls,
        spec: ServingSpec,
        source: str,
        build: Mapping[str, Any],
        files: Mapping[str, str],
        tensors: Mapping[str, StoredTensor],
    ) -> Manifest:
        """Return the manifest of an engine that is built now."""
        made = cls(FORMAT, __version__, "", spec, source, dict(build), dict(files), dict(tensors))
        made.hash = made.digest()
        return made

    def digest(self) -> str:
        """Return the SHA-256 of all fields but `hash`."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, hash=""))).hexdigest()

    def command(self, directory: Path) -> str:
        """Return the command that builds the engine again."""
        options = "".join(f" --{name.replace('_', '-')} {_option(value)}" for name, value in self.build.items())
        return f"quire build {self.source or 'MODEL'} -o {directory}{options}"


def _option(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def is_engine_directory(path: Path) -> bool:
    """Return whether `path` holds a saved Plan (and not, for example, a Hugging Face model)."""
    config = path / CONFIG
    if not config.is_file():
        return False
    try:
        return "quire_format" in msgspec.json.decode(config.read_bytes(), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return (path / GRAPH).is_file()


def make_room(root: Path) -> None:
    """Make a directory for an engine, or take an earlier engine out of it.

    Raises:
        PlanError: The directory holds something else.
    """
    if root.exists() and any(root.iterdir()) and not is_engine_directory(root):
        raise PlanError(f"{root}: expected a new, empty or engine directory, got one with other files in it.")
    root.mkdir(parents=True, exist_ok=True)
    (root / CONFIG).unlink(missing_ok=True)  # what is half written is no engine directory
    shutil.rmtree(root / TACTICS, ignore_errors=True)
    for name in (REPORT, PAGE, RECORDING):
        (root / name).unlink(missing_ok=True)


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `config.json`, which makes the directory an engine directory."""
    (root / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def read_manifest(root: Path) -> Manifest:
    """Read `config.json`, and check every file that it lists.

    Raises:
        PlanError: Something is missing, damaged, or of another format version; the message names the part and how to
            make it again.
    """
    path = root / CONFIG
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: expected an engine directory's config, got: {error.strerror}.") from None
    try:
        version = msgspec.json.decode(raw, type=dict[str, Any]).get("quire_format")
        if version != FORMAT:
            raise PlanError(f"{path}: expected engine format {FORMAT}, got {version!r}. Build the engine again.")
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"{path}: expected an engine's config, got: {error}. Build the engine again.") from None
    if (got := manifest.digest()) != manifest.hash:
        raise PlanError(
            f"{path}: expected hash {manifest.hash}, got {got}: it was changed or damaged. Build the engine again."
        )
    for name, expected in manifest.files.items():
        _check_file(root, name, expected, manifest)
    return manifest


def _check_file(root: Path, name: str, expected: str, manifest: Manifest) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not name:
        raise PlanError(f"{root / CONFIG}: expected names of files inside the directory, got {name!r}.")
    hint = _hint(root, name, manifest)
    if not (root / name).is_file():
        raise PlanError(f"{root / name}: expected a file, got none. {hint}")
    if (got := file_hash(root / name)) != expected:
        raise PlanError(f"{root / name}: expected hash {expected}, got {got}: it was changed or damaged. {hint}")


def _hint(root: Path, name: str, manifest: Manifest) -> str:
    if name in (GRAPH, REPORT, PAGE):
        return f"Build the engine again: {manifest.command(root)}"
    return f"Copy it again from {manifest.source or 'where the tokenizer is'}."


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
