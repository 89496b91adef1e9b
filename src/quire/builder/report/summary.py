"""`summarize`: everything that can be told of a Plan, as plain JSON values; what is printed and drawn starts here."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from quire.builder.report.sizes import byte_parts, count_ops, linear_layers
from quire.builder.report.timings import measured_tactics
from quire.ops.spec import num_bytes
from quire.plan.engine_directory import is_engine_directory
from quire.plan.plan import Plan
from quire.plan.weight_source import place_of


def summarize(plan: Plan) -> dict[str, Any]:
    """Return the facts of a Plan; no weight data is read.

    Returns:
        A superset of the build report (passes, quantization, tactics, network), with:
        name: Of its directory.
        source: What it was built from.
        model: The model's numbers.
        settings: What it was built with.
        ops: How often each op is called in a step.
        layers: Scheme, sizes and bytes of every linear layer.
        schemes: How many layers of each scheme.
        bytes: weights (all, as stored), defined (before any pass, if the report tells), parts, kv_cache_per_token,
            kept (own: bytes that the build made, referenced: bytes that lie unchanged in files, is_saved: whether this
            is an engine directory).
    """
    layers = linear_layers(plan.network)
    report, measured = dict(plan.report), measured_tactics(plan)
    texts = {**report.get("network", {}), "after": str(plan.network)}
    return {
        "name": _name(plan),
        "source": plan.source,
        "model": {name: value for name, value in asdict(plan.spec).items() if isinstance(value, (int, str))},
        "settings": dict(plan.build),
        "schemes": dict(Counter(layer["scheme"] for layer in layers.values()).most_common()),
        "ops": count_ops(plan.network),
        "layers": layers,
        "bytes": _bytes(plan, texts),
        **({"tactics": measured} if measured else {}),
        **report,
        "network": texts,
    }


def _name(plan: Plan) -> str:
    return plan.network.name if plan.directory is None else plan.directory.resolve().name


def _bytes(plan: Plan, texts: dict[str, Any]) -> dict[str, Any]:
    parts = byte_parts(plan.network)
    return {
        "weights": sum(part["bytes"] for part in parts),
        "defined": texts.get("defined_bytes"),
        "parts": parts,
        "kv_cache_per_token": plan.kv_bytes_per_token,
        "kept": _kept(plan),
    }


def _kept(plan: Plan) -> dict[str, Any]:
    """Return how many bytes of weights the build made, and how many lie unchanged where they were."""
    places = {name: place_of(plan.weights, name) for name in plan.network.weights}
    sizes = {name: num_bytes(declared) for name, declared in plan.network.weights.items()}
    own = sum(size for name, size in sizes.items() if places[name] is None)
    files = dict.fromkeys(str(place.path) for place in places.values() if place is not None)
    is_saved = plan.directory is not None and is_engine_directory(plan.directory)
    return {"is_saved": is_saved, "own": own, "referenced": sum(sizes.values()) - own, "files": list(files)}
