"""The verdict and the figures in words: what was measured, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.builder.report.words import is_number, number, percent


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a build came out.

    Attributes:
        kind: "good", "bad", or "plain" where nothing was measured.
        headline: In a line.
        plain: In plain words.
        used: Share of the limit that is used, None where there is none.
    """

    kind: str
    headline: str
    plain: str
    used: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that was measured: its name, its value as shown, and a sentence on what it means."""

    name: str
    value: str
    meaning: str


def verdict(facts: Mapping[str, Any]) -> Verdict:
    """Return how a build came out, from a summary or a build report."""
    if "quantization" not in facts:
        return _not_measured(facts)
    accuracy, limit = facts["quantization"]["accuracy"], facts["quantization"]["max_kl"]
    kl = accuracy["kl"]
    has_passed = is_number(kl) and (not is_number(limit) or kl <= limit)
    headline = (
        f"{'Passed' if has_passed else 'Over the limit'}: KL divergence {number(kl, 2)} nats a token, {_at_most(limit)}"
    )
    used = kl / limit if is_number(kl) and is_number(limit) and limit > 0 else None
    plain = (
        f"On {accuracy['num_tokens']:,} tokens that calibration has not seen, the quantized model holds the same token "
        f"most likely as the exact one at {percent(accuracy['top1_agreement'])} of positions. Its perplexity is "
        f"{number(accuracy['perplexity'], 4)}, that of the exact model {number(accuracy['exact_perplexity'], 4)} "
        f"({percent(accuracy['perplexity_change'], signed=True)})."
    )
    return Verdict("good" if has_passed else "bad", headline, plain, used)


def _at_most(limit: Any) -> str:
    return f"of at most {number(limit, 2)}" if is_number(limit) else "with no limit set"


def _not_measured(facts: Mapping[str, Any]) -> Verdict:
    if "passes" not in facts:
        return Verdict("plain", "No build report", "This engine was saved without one: build it again to get it.")
    schemes = [name for name in facts.get("schemes", {}) if name not in ("bfloat16", "float16", "float32")]
    if schemes:
        return Verdict(
            "plain",
            f"Quantized before it came here: {', '.join(schemes)}",
            "The checkpoint is quantized already. The exact weights are not in it, so there is nothing to compare with "
            "and no accuracy was measured.",
        )
    return Verdict(
        "plain",
        "Not quantized: the numbers are the checkpoint's own",
        "The passes changed which ops compute the model, not its weights. Build with --quantization to make it "
        "smaller; what that costs is then measured and shown here.",
    )


def figures(quantization: Mapping[str, Any]) -> list[Figure]:
    """Return what was measured of a quantized network."""
    accuracy = quantization["accuracy"]
    return [
        Figure(
            "KL(exact ‖ quantized)",
            f"{number(accuracy['kl'])} nats",
            "The information lost, a token, when the quantized model stands in for the exact one. 0 is identical. This "
            f"is the figure that the build is held to: {_at_most(quantization['max_kl'])}.",
        ),
        Figure(
            "KL(quantized ‖ exact)",
            f"{number(accuracy['reverse_kl'])} nats",
            "The same the other way round. Much larger than the first: the quantized model is sure of tokens that the "
            "exact one holds unlikely.",
        ),
        Figure(
            "top-1 agreement",
            percent(accuracy["top1_agreement"]),
            "Positions at which both hold the same token most likely: where greedy decoding would take the same step.",
        ),
        Figure(
            "perplexity",
            f"{number(accuracy['exact_perplexity'], 4)} → {number(accuracy['perplexity'], 4)}",
            "How surprised each model is by the text, exact → quantized. The level depends on the text; the change of "
            f"{percent(accuracy['perplexity_change'], signed=True)} is what counts, and small changes go either way.",
        ),
        Figure(
            "worst token",
            f"{number(accuracy['kl_quantiles'].get('1'), 2)} nats",
            "The largest KL(exact ‖ quantized) of a single token. A mean can hide a few positions that went wrong.",
        ),
        Figure(
            "measured on",
            f"{accuracy['num_tokens']:,} tokens",
            f"Of {quantization['text'] or 'the text given'}, held out from calibration.",
        ),
    ]


def worst_layers(quantization: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the quantized layers with their records, the largest error first."""
    layers: Mapping[str, Mapping[str, Any]] = quantization["layers"]
    return sorted(layers.items(), key=lambda pair: -(pair[1]["error"] or 0.0))


def num_worst(layers: list[tuple[str, Mapping[str, Any]]]) -> int:
    """Return how many layers to mark: those with over twice the median error, three at most."""
    if not layers:
        return 0
    median = layers[len(layers) // 2][1]["error"] or 0.0
    return min(3, sum((record["error"] or 0.0) > 2 * median for _, record in layers) or 1)
