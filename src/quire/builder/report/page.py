"""`render_html`: the build report as one page that needs nothing else: no script, no font, no picture of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import quire
from quire import __version__
from quire.builder.report.figures import verdict
from quire.builder.report.markup import Html, join, tag
from quire.builder.report.plots import meter
from quire.builder.report.sections import (
    accuracy_section,
    layers_section,
    memory_section,
    network_section,
    passes_section,
    settings_section,
    tactics_section,
)
from quire.builder.report.summary import summarize
from quire.builder.report.words import num_bytes, number, percent, plural
from quire.plan.plan import Plan

_STYLE = Path(quire.__file__).parent / "assets" / "report.css"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_SECTIONS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], Html | None]], ...] = (
    ("accuracy", "Accuracy", accuracy_section),
    ("layers", "Error of each layer", layers_section),
    ("memory", "Bytes", memory_section),
    ("passes", "What the build did", passes_section),
    ("tactics", "Tactics", tactics_section),
    ("network", "The network, before and after", network_section),
    ("settings", "Settings", settings_section),
)


def render_html(report: Mapping[str, Any], title: str) -> str:
    """Return the page.

    Args:
        report: What `summarize` returned. A bare build report does, too: what it does not tell is left out.
        title: Of the page; what is in it is escaped, as is everything else.
    """
    made = [(key, name, section) for key, name, make in _SECTIONS if (section := make(report)) is not None]
    body = tag(
        "main",
        tag("h1", title),
        tag("p", _subtitle(report), class_="sub"),
        _verdict(report),
        _cards(report),
        tag("nav", *(tag("a", name, href=f"#{key}") for key, name, _ in made)),
        *(tag("section", tag("h2", name), section, id=key) for key, name, section in made),
        tag("footer", f"Written by Quire {__version__}. What the figures mean, and what to do when a build is refused: "
            "docs/accuracy-report.md."),
    )  # fmt: skip
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", f"{title} · build report"),
        tag("style", Html(_STYLE.read_text(encoding="utf-8"))),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def draw_page(plan: Plan) -> str:
    """Return the page of a plan, with all that it holds now."""
    facts = summarize(plan)
    return render_html(facts, facts["name"])


def _subtitle(facts: Mapping[str, Any]) -> str:
    """Return what was built, in a line."""
    model, schemes = facts.get("model", {}), facts.get("schemes", {})
    words = [str(model[key]) for key in ("architecture",) if key in model]
    words += [f"{model['num_layers']} layers"] if "num_layers" in model else []
    words += (
        [", ".join(f"{plural(count, 'linear layer')} in {name}" for name, count in schemes.items())] if schemes else []
    )
    return " · ".join(["Build report", *words])


def _verdict(facts: Mapping[str, Any]) -> Html:
    found = verdict(facts)
    used = found.used is not None and tag(
        "div", meter(found.used), tag("span", f"{percent(found.used, 0)} of the limit used"), class_="used"
    )
    return tag("div", tag("strong", found.headline), tag("p", found.plain), used, class_=f"verdict {found.kind}")


def _cards(facts: Mapping[str, Any]) -> Html:
    """Return the figures that one looks for first."""
    cards: list[tuple[str, str]] = []
    if "quantization" in facts:
        accuracy = facts["quantization"]["accuracy"]
        cards += [
            (number(accuracy["kl"], 2), "nats a token, KL(exact ‖ quantized)"),
            (percent(accuracy["top1_agreement"], 1), "of positions with the same most likely token"),
            (percent(accuracy["perplexity_change"], signed=True), "change of perplexity"),
        ]
    if "bytes" in facts:
        sizes = facts["bytes"]
        share = sizes["weights"] / sizes["defined"] if sizes.get("defined") else 1
        beside = f", {percent(share, 0)} of what it was" if share != 1 else ""
        cards.append((num_bytes(sizes["weights"]), f"of weights{beside}"))
        cards.append((num_bytes(sizes["kv_cache_per_token"]), "of KV cache for a token"))
    if "passes" in facts:
        matches = sum(record["matches"] for record in facts["passes"])
        missed = sum(len(record["missed"]) for record in facts["passes"])
        cards.append((f"{matches:,}", f"places changed by passes, {missed:,} missed"))
    return tag("div", *(tag("div", tag("b", value), tag("span", words), class_="card") for value, words in cards),
               class_="cards") if cards else join()  # fmt: skip
