"""One layer of a network as boxes and arrows, boxes coloured by what their op is for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from quire.builder.report.layout import Layout, lay_out
from quire.builder.report.listing import Line, Part
from quire.builder.report.markup import Html, join, svg, tag
from quire.builder.report.words import short_spec

KINDS = {
    "matmul": "matrix products",
    "attention": "attention and its cache",
    "norm": "norms",
    "elementwise": "elementwise",
    "quantize": "rounding",
    "layout": "layout only",
}
"""What an op is for, and what the legend calls it."""

_WORDS = (
    ("matmul", ("linear", "embedding", "matmul", "moe")),
    ("attention", ("attention", "kv", "rope")),
    ("norm", ("norm",)),
    (
        "layout",
        ("view", "permute", "transpose", "slice", "concat", "cast", "index_select", "expand", "argsort", "full"),
    ),
)
_MADE_OF = {
    "add_rms_norm": ("add", "rms_norm"),
    "silu_mul": ("silu", "mul"),
    "rope_append_kv": ("rope", "rope", "append_kv"),
    "rms_norm_quant": ("rms_norm", "quantize_rows"),
    "add_rms_norm_quant": ("add", "rms_norm", "quantize_rows"),
    "silu_mul_quant": ("silu", "mul", "quantize_rows"),
}
_MOST_BOXES = 80
_TITLE, _MONO, _LINE, _PAD, _WIDEST = 6.9, 6.2, 14, 8, 250
_MARGIN, _ROUND = 2, 8


@dataclass(frozen=True, slots=True)
class _Box:
    """A call as drawn: its words, from the most to the least important, and how it looks."""

    line: Line
    words: tuple[tuple[str, str], ...]
    classes: str
    width: float
    height: float


def kind(op: str) -> str:
    """Return what an op is for: a key of `KINDS`."""
    if op.startswith(("quant", "dequant", "pack", "unpack")):
        return "quantize"
    return next((found for found, words in _WORDS if any(word in op for word in words)), "elementwise")


def draw(part: Part, replaced: Collection[Line], label: str) -> Html:
    """Draw a part of a network.

    Args:
        part: What to draw; of a very large one, the beginning.
        replaced: The lines of the network that it was made from; a box made of several of them says so.
        label: What the drawing shows.
    """
    lines = [*part.before, *part.lines[:_MOST_BOXES], *part.after]
    outside = {id(line) for line in (*part.before, *part.after)}
    boxes = [_box(line, part.prefix, replaced, id(line) in outside) for line in lines]
    edges = _edges(lines)
    layout = lay_out([(box.width, box.height) for box in boxes], [(start, end) for start, end, _ in edges])
    arrows = [_arrow(layout.paths[i], i in layout.rails, is_write) for i, (_, _, is_write) in enumerate(edges)]
    return svg(
        layout.width + 2 * _MARGIN,
        layout.height + 2 * _MARGIN,
        tag("g", *arrows, *_draw_boxes(boxes, layout)),
        label=label,
    )


def _edges(lines: Sequence[Line]) -> list[tuple[int, int, bool]]:
    """Return from, to, and whether it is not a result that goes there but what was written into an input."""
    makers: dict[str, int] = {}
    writers: dict[str, int] = {}
    found: dict[tuple[int, int], bool] = {}
    for i, line in enumerate(lines):
        for name in line.uses:
            if name in makers:
                found[makers[name], i] = False
        for name in line.inputs:
            if name in writers:
                found.setdefault((writers[name], i), True)
        makers.update(dict.fromkeys(line.names, i))
        if not line.names:
            writers.update((name, i) for name in line.inputs if "cache" in name)
    return [(start, end, is_write) for (start, end), is_write in found.items()]


def _box(line: Line, prefix: str, replaced: Collection[Line], is_outside: bool) -> _Box:
    is_small = kind(line.op) == "layout"
    words = [("op", line.op)] if not is_small else [("small", f"{line.op} {_shape(line)}")]
    if not is_small:
        words += [("name", name) for name in [_own_name(line, prefix)] if name]
        words += [("spec", spec) for spec in _specs(line)]
        words += [("made", f"replaces {made}") for made in [made_of(line, replaced)] if made]
    longest = max(len(text) * (_TITLE if style == "op" else _MONO) for style, text in words)
    classes = ["box", kind(line.op), "outside" if is_outside else "", "fused" if words[-1][0] == "made" else ""]
    height = len(words) * _LINE + (4 if is_small else _PAD)
    return _Box(line, tuple(words), " ".join(filter(None, classes)), min(longest, _WIDEST) + 2 * _PAD, height)


def made_of(line: Line, replaced: Collection[Line]) -> str:
    """Return which ops or layers of the network before a call stands for, "" if it is one of them.

    Args:
        line: The call.
        replaced: The network before.
    """
    if line.op in _MADE_OF and all(line.op != before.op for before in replaced):
        return " + ".join(_MADE_OF[line.op])
    if not line.op.startswith("linear") or not line.weights:
        return ""
    mine = _modules(line.weights[0])
    before = [name for other in replaced if other.op.startswith("linear") for name in _modules(other.weights[0])]
    if len(mine) == 1:
        mine = [name for name in before if _is_within(name, mine[0])] if mine[0] not in before else []
    return ", ".join(name.rpartition(".")[2] for name in mine)


def _is_within(part: str, whole: str) -> bool:
    """Return whether a joined layer's name tells of a part: `a.q_proj` in `a.qkv_proj`."""
    (parent, _, name), (joined_parent, _, joined) = part.rpartition("."), whole.rpartition(".")
    (stem, _, suffix), (joined_stem, _, joined_suffix) = name.partition("_"), joined.rpartition("_")
    return parent == joined_parent and suffix == joined_suffix and stem in joined_stem


def _modules(weight: str) -> list[str]:
    """Return the layers that a printed weight belongs to: `a.{q,k}_proj.weight` to `a.q_proj` and `a.k_proj`."""
    before, _, rest = weight.rpartition(".")[0].partition("{")
    names, _, after = rest.partition("}")
    return [f"{before}{name}{after}" for name in names.split(",")]


def _own_name(line: Line, prefix: str) -> str:
    if line.weights:
        return line.weights[0].rpartition(".")[0].removeprefix(prefix)
    return next((name for name in line.inputs if "cache" in name), "")


def _specs(line: Line) -> list[str]:
    """Return the results' specs, two to a row."""
    specs = short_spec(line.spec).replace("], ", "]; ").split("; ") if line.spec else []
    return [", ".join(specs[i : i + 2]) for i in range(0, len(specs), 2)]


def _shape(line: Line) -> str:
    """Return the shape of a result whose dtype is that of what it was made of."""
    spec = short_spec(line.spec)
    return spec if line.op in ("cast", "full") else spec[spec.find("[") :]


def _draw_boxes(boxes: Sequence[_Box], layout: Layout) -> list[Html]:
    return [_draw_box(box, x + _MARGIN, y + _MARGIN) for box, (x, y) in zip(boxes, layout.boxes, strict=True)]


def _draw_box(box: _Box, x: float, y: float) -> Html:
    most = round((box.width - 2 * _PAD) / _MONO)
    top = y + (box.height - len(box.words) * _LINE) / 2
    texts = [
        tag("text", text if len(text) <= most else text[: most - 1] + "…", class_=style,
            x=x + box.width / 2, y=top + i * _LINE + 10.5)
        for i, (style, text) in enumerate(box.words)
    ]  # fmt: skip
    rect = tag("rect", x=x, y=y, width=box.width, height=float(box.height), rx="5")
    return tag("g", tag("title", box.line.text), rect, *texts, class_=box.classes)


def _arrow(points: Sequence[tuple[float, float]], is_rail: bool, is_write: bool) -> Html:
    """Return an edge with its head."""
    points = [(x + _MARGIN, y + _MARGIN) for x, y in points]
    path, head = _rail(points) if is_rail else _curve(points)
    return join(tag("path", d=path, class_="edge written" if is_write else "edge"), tag("path", d=head, class_="head"))


def _curve(points: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """Return path and head of an edge from top to bottom: bends between ranks, straight lines within them."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for i, ((x, y), (to_x, to_y)) in enumerate(pairwise(points)):
        end = to_y - (4 if i == len(points) - 2 else 0)
        half = (y + end) / 2
        path += f"L{to_x:.1f} {end:.1f}" if i % 2 else f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {end:.1f}"
    return path, f"M{points[-1][0]:.1f} {points[-1][1]:.1f}l-3.5 -6h7z"


def _rail(points: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """Return path and head of an edge that goes around: out at a side, down, and in again, with round corners."""
    (x, y), (rail, _), _, (to_x, to_y) = points
    side = 1 if rail > x else -1
    corner = f"Q{rail:.1f} {y:.1f} {rail:.1f} {y + _ROUND:.1f}"
    path = f"M{x:.1f} {y:.1f}H{rail - side * _ROUND:.1f}{corner}V{to_y - _ROUND:.1f}"
    path += f"Q{rail:.1f} {to_y:.1f} {rail - side * _ROUND:.1f} {to_y:.1f}H{to_x + 4 * side:.1f}"
    return path, f"M{to_x:.1f} {to_y:.1f}l{6 * side} -3.5v7z"
