"""Two plans beside each other: what differs, and what one wants to see of both whether it differs or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ACCURACY = ("kl", "reverse_kl", "top1_agreement", "perplexity", "exact_perplexity", "perplexity_change")
"""Figures that are shown side by side."""

Pair = tuple[Any, Any]


def compare(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return two summaries side by side; a value that one of them lacks is None.

    Args:
        one: What `summarize` returned.
        other: The same of another plan.

    Returns:
        names: Of both.
        model, settings, ops: Names to pairs of values, those that differ.
        passes: Names to pairs of matches and number missed, those that differ.
        layers: Names of linear layers to pairs of schemes, those that differ.
        accuracy: Names of figures to pairs, all that were measured.
        bytes: Parts of the weights to pairs of bytes, all of them; then "weights" and "kv_cache_per_token".
    """
    return {
        "names": [one["name"], other["name"]],
        **{key: _differing(one[key], other[key]) for key in ("model", "settings", "ops")},
        "passes": _differing(_passes(one), _passes(other)),
        "layers": _differing(_schemes(one), _schemes(other)),
        "accuracy": _both(_accuracy(one), _accuracy(other)),
        "bytes": _both(_parts(one), _parts(other)) | _both(_totals(one), _totals(other)),
    }


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Pair]:
    return {name: (one.get(name), other.get(name)) for name in _names(one, other)}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Pair]:
    return {name: pair for name, pair in _both(one, other).items() if pair[0] != pair[1]}


def _names(one: Iterable[str], other: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*one, *other]))


def _passes(facts: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    return {
        record["pass"]: {"matches": record["matches"], "missed": len(record["missed"])}
        for record in facts.get("passes", ())
    }


def _schemes(facts: Mapping[str, Any]) -> dict[str, str]:
    return {name: layer["scheme"] for name, layer in facts["layers"].items()}


def _accuracy(facts: Mapping[str, Any]) -> dict[str, Any]:
    if "quantization" not in facts:
        return {}
    found: Mapping[str, Any] = facts["quantization"]["accuracy"]
    return {name: found[name] for name in ACCURACY}


def _parts(facts: Mapping[str, Any]) -> dict[str, int]:
    return {f"{part['part']} ({part['dtype']})": part["bytes"] for part in facts["bytes"]["parts"]}


def _totals(facts: Mapping[str, Any]) -> dict[str, int]:
    return {name: facts["bytes"][name] for name in ("weights", "kv_cache_per_token")}
