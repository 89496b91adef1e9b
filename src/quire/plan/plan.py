"""`Plan`: what the builder makes and the runtime executes. Data only; on disk an engine directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from quire.core.errors import PlanError
from quire.core.model_spec import ServingSpec
from quire.graph.network import Network
from quire.graph.text import network_from_text, network_to_text
from quire.ops.spec import TensorSpec
from quire.plan import engine_directory as engine
from quire.plan.engine_directory import GRAPH, PAGE, REPORT, Manifest
from quire.plan.storage.stored_weights import StoredWeights, save_weights
from quire.plan.tactics import DeviceTactics, read_tactics, write_tactics
from quire.plan.weight_source import WeightSource


@dataclass(frozen=True, slots=True)
class Plan:
    """A model bound for execution: portable, device-neutral, complete.

    Attributes:
        network: What to compute; its outputs include "logits".
        spec: The model's numbers, as far as the runtime needs them.
        weights: Where the weights come from, one tensor at a time.
        directory: Where the model or engine lies; the tokenizer is read from there, if there is one.
        source: What it was built from, as a person called it.
        build: The settings it was built with, as plain JSON values.
        small_files: Tokenizer and generation defaults, as paths in `directory`; a saved engine takes them along.
        report: What the build did and measured, as plain JSON values.
        page: The same for people, as HTML, of an engine that was loaded; empty if it has none.
        draw_page: Makes the page of a plan that is about to be saved; None keeps `page`.
        tactics: Which implementations are the fastest, by device, as far as that was measured.
    """

    network: Network
    spec: ServingSpec
    weights: WeightSource
    directory: Path | None = None
    source: str = ""
    build: Mapping[str, Any] = field(default_factory=dict)
    small_files: tuple[str, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    page: str = ""
    draw_page: Callable[[Plan], str] | None = None
    tactics: tuple[DeviceTactics, ...] = ()

    @property
    def kv_cache(self) -> TensorSpec:
        """Shape and dtype of the KV cache of one layer, the same for all: [2, num_blocks, num_kv_heads, block_size,
        head_dim]."""
        return next(iter(self.kv_caches.values()))

    @property
    def kv_caches(self) -> Mapping[str, TensorSpec]:
        """The KV caches of all layers by the name of the network's input, in order."""
        return {name: spec for name, spec in self.network.inputs.items() if name.startswith("kv_cache.")}

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token keeps over all layers."""
        caches = self.kv_caches.values()
        return sum(s.dtype.itemsize * prod(size for size in s.shape if isinstance(size, int)) for s in caches)

    def save(self, directory: str | Path, *, copy_weights: bool = False) -> None:
        """Write an engine directory, streaming the weights one tensor at a time.

        Args:
            directory: Made if missing; an engine directory there is replaced.
            copy_weights: Write weights, too, that lie unchanged in the checkpoint; otherwise the engine refers to them.

        Raises:
            PlanError: The directory holds something else, or a weight cannot be read.
        """
        root = Path(directory)
        small = {} if self.directory is None else {name: self.directory / name for name in self.small_files}
        is_own = self.directory is not None and self.directory.resolve() == root.resolve()
        page = self.page if self.draw_page is None else self.draw_page(self)
        engine.make_room(root)
        (root / GRAPH).write_text(network_to_text(self.network), encoding="utf-8")
        tensors = save_weights(root, self.network.weights, self.weights, copy=copy_weights)
        for name, source in small.items() if not is_own else ():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, root / name)
        (root / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(self.report), indent=1))
        if page:
            (root / PAGE).write_text(page, encoding="utf-8")
        for tactics in self.tactics:
            write_tactics(root, tactics)
        names = [GRAPH, REPORT, *([PAGE] if page else []), *small]
        files = {name: engine.file_hash(root / name) for name in names}
        engine.write_manifest(root, Manifest.of(self.spec, self.source, self.build, files, tensors))

    @classmethod
    def load(cls, directory: str | Path) -> Plan:
        """Open an engine directory: check its files, open its weights; tensors are checked as they are read.

        Raises:
            PlanError: Something is missing, damaged, or of another format version; the message names the part.
        """
        root = Path(directory)
        manifest = engine.read_manifest(root)
        hint = f"Build the engine again: {manifest.command(root)}"
        for name in (GRAPH, REPORT):
            if name not in manifest.files:
                raise PlanError(f"{root / engine.CONFIG}: expected it to list {name}, got nothing of it. {hint}")
        network = network_from_text((root / GRAPH).read_text(encoding="utf-8"), str(root / GRAPH))
        weights = StoredWeights(root, manifest.tensors, network.weights, hint)
        return cls(
            network=network,
            spec=manifest.spec,
            weights=weights,
            directory=root,
            source=manifest.source,
            build=manifest.build,
            small_files=tuple(name for name in manifest.files if name not in (GRAPH, REPORT, PAGE)),
            report=msgspec.json.decode((root / REPORT).read_bytes(), type=dict[str, Any]),
            page=(root / PAGE).read_text(encoding="utf-8") if PAGE in manifest.files else "",
            tactics=read_tactics(root),
        )
