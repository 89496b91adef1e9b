"""A printed network read back as lines of calls, as far as a drawing needs them; and the part that is one layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_INPUT = re.compile(r"^  input  (\S+): ")
_CALL = re.compile(r"^  (?:((?:%\w+|_)(?:, (?:%\w+|_))*) = )?(\w+)\((.*?)\)(?:  : (.*))?$")
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, slots=True)
class Line:
    """One call of a printed network.

    Attributes:
        op: Its op.
        names: Of its results; none if it only writes into an input.
        uses: Names of the results that it takes.
        weights: Names of the weights that it takes, as printed: `a.{q,k,v}_proj.weight` is one.
        inputs: Names of the network's inputs that it takes.
        spec: Shapes and dtypes of its results, as printed.
        text: All of it.
    """

    op: str
    names: tuple[str, ...]
    uses: tuple[str, ...]
    weights: tuple[str, ...]
    inputs: tuple[str, ...]
    spec: str
    text: str

    @property
    def layer(self) -> int | None:
        """Number of the layer that its weights belong to."""
        numbers = (_LAYER.search(name) for name in self.weights)
        return next((int(found[1]) for found in numbers if found), None)


@dataclass(frozen=True, slots=True)
class Part:
    """Some lines, and what they hang on.

    Attributes:
        lines: In order.
        before: Lines outside whose results they take, without those that are made of nothing (a table of angles).
        after: The line that follows, if it belongs to another part.
        prefix: What the names of all weights begin with.
    """

    lines: Sequence[Line]
    before: Sequence[Line] = ()
    after: Sequence[Line] = ()
    prefix: str = ""


def read_listing(text: str) -> list[Line]:
    """Return the calls of a printed network; lines of any other form are passed over."""
    inputs = {found[1] for line in text.splitlines() if (found := _INPUT.match(line))}
    return [_line(found, line.strip(), inputs) for line in text.splitlines() if (found := _CALL.match(line))]


def _line(found: re.Match[str], text: str, inputs: set[str]) -> Line:
    names = tuple(name.lstrip("%") for name in (found[1] or "").split(", ") if name and name != "_")
    leaves = _leaves(found[3])
    uses = tuple(dict.fromkeys(leaf[1:] for leaf in leaves if leaf.startswith("%")))
    plain = [leaf for leaf in leaves if not leaf.startswith("%")]
    weights = tuple(dict.fromkeys(leaf for leaf in plain if leaf not in inputs))
    return Line(found[2], names, uses, weights, tuple(leaf for leaf in plain if leaf in inputs), found[4] or "", text)


def _leaves(arguments: str) -> list[str]:
    """Return the nodes, weights and inputs among the arguments of a call, those of calls inside it included."""
    found = []
    for argument in _split(arguments):
        inner = re.fullmatch(r"\w+\((.*)\)", argument)
        if inner:
            found += _leaves(inner[1])
        elif argument.startswith("[") and "%" in argument:
            found += _leaves(argument[1:-1])
        elif "=" not in argument and argument and argument[0] not in "['\"-0123456789":
            found.append(argument)
    return found


def _split(arguments: str) -> list[str]:
    """Split at the commas that are inside no bracket."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def first_layer(lines: Sequence[Line]) -> Part:
    """Return the first decoder layer: from its first weight to the next weight that is not its own.

    A network without numbered layers is one part.
    """
    start = next((i for i, line in enumerate(lines) if line.layer is not None), None)
    if start is None:
        return Part(lines)
    number = lines[start].layer
    later = (i for i in range(start, len(lines)) if lines[i].weights and lines[i].layer != number)
    end = next(later, len(lines))
    inside, maker = lines[start:end], {name: line for line in lines for name in line.names}
    own = {name for line in inside for name in line.names}
    outside = dict.fromkeys(name for line in inside for name in line.uses if name not in own and name in maker)
    before = list({id(maker[name]): maker[name] for name in outside}.values())
    return Part(
        inside,
        [line for line in before if line.uses or line.weights or line.inputs],
        lines[end : end + 1],
        _prefix(lines[start]),
    )


def _prefix(line: Line) -> str:
    name = next(name for name in line.weights if _LAYER.search(name))
    found = _LAYER.search(name)
    assert found is not None
    return name[: found.end()]
