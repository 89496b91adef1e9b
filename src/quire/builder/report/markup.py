"""HTML and SVG as values: text becomes markup in one place only, and that place escapes it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_VOID = frozenset({"meta", "br"})


class Html(str):
    """Text that is markup already; everything else is escaped where it is put into a tag."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element.

    Args:
        name: Of the element.
        children: `Html` as it is, None and False not at all, all else as escaped text.
        attributes: None and False are left out; `class_` is `class`, `stroke_width` is `stroke-width`.
    """
    opening = "".join([name, *(_attribute(key, value) for key, value in attributes.items())])
    return Html(f"<{opening}>") if name in _VOID else Html(f"<{opening}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Return children one after the other."""
    return Html("".join(_text(child) for child in children))


def _text(child: object) -> str:
    if child is None or child is False:
        return ""
    return str(child) if isinstance(child, Html) else escape(str(child))


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
    return f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"'


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, numeric: tuple[int, ...] = ()) -> Html:
    """Return a table.

    Args:
        header: A word for each column.
        rows: Cells, `Html` or text.
        numeric: Columns that are aligned to the right.
    """
    kinds = ["number" if i in numeric else None for i in range(len(header))]
    head = join(*(tag("th", word, class_=kind, scope="col") for word, kind in zip(header, kinds, strict=True)))
    body = (join(*(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows)
    inner = tag("table", tag("thead", tag("tr", head)), tag("tbody", *(tag("tr", row) for row in body)))
    return tag("div", inner, class_="scroll")


def details(summary: object, *children: object) -> Html:
    """Return what is folded away under a line."""
    return tag("details", tag("summary", summary), *children)


def svg(width: float, height: float, *children: object, label: str) -> Html:
    """Return a drawing.

    Args:
        width: In pixels; it shrinks with its place.
        height: In pixels.
        children: Its elements.
        label: What it shows, for those who cannot see it.
    """
    box = f"0 0 {width:.0f} {height:.0f}"
    size = {"width": round(width), "height": round(height)}
    return tag("svg", *children, viewBox=box, role="img", **size, **{"aria_label": label})
