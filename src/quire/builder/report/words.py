"""Numbers and names as readers want them, the same in tables, on the page and in comparisons."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

_NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])")
_STEP = 1024
_SHORT = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float8_e4m3fn": "fp8", "num_tokens": "tokens"}


def short_spec(spec: str) -> str:
    """Return shapes and dtypes in fewer letters: "bf16[tokens, 256]" for "bfloat16[num_tokens, 256]"."""
    for word, short in _SHORT.items():
        spec = spec.replace(word, short)
    return spec


def is_number(value: object) -> bool:
    """Return whether a value of a report is a finite number; JSON writes infinity and NaN as null."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """Return a number with some significant digits, never in scientific notation above 0.0001."""
    if not is_number(value):
        return "not a number"
    if value == 0 or abs(value) < 1e-4:
        return f"{value:.{digits - 1}g}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def percent(value: Any, digits: int = 2, signed: bool = False) -> str:
    """Return a share as per cent: 0.0123 is "1.23 %"."""
    return f"{100 * value:{'+' if signed else ''}.{digits}f} %" if is_number(value) else "not a number"


def num_bytes(count: int) -> str:
    """Return a number of bytes in the largest fitting unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < _STEP:
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= _STEP
    return f"{size:,.2f} GiB"


def plural(count: int, one: str, many: str = "") -> str:
    """Return "1 match", "2 matches"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def printable(text: object) -> str:
    """Return text for a terminal: what would move its cursor or change its colours is shown as its code."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in str(text))


def compress(names: Iterable[str]) -> list[str]:
    """Return names with those that differ in their first number alone written once.

    Example:
        >>> compress(["h_0_attn", "h_1_attn", "h_2_attn", "h_5_attn", "head"])
        ['h_{0..2,5}_attn', 'head']
    """
    groups: dict[tuple[str, str] | str, list[int]] = defaultdict(list)
    for name in names:
        found = _NUMBER.search(name)
        if found:
            groups[name[: found.start()], name[found.end() :]].append(int(found[0]))
        else:
            groups[name] = []
    return [key if isinstance(key, str) else _range(*key, sorted(set(found))) for key, found in groups.items()]


def _range(before: str, after: str, numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for found in numbers:
        if runs and found == runs[-1][-1] + 1:
            runs[-1].append(found)
        else:
            runs.append([found])
    shown = ",".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
    return f"{before}{{{shown}}}{after}" if len(numbers) > 1 else f"{before}{shown}{after}"


def by_reason(missed: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Return each reason with the names it was given for, the most frequent first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, reason in missed.items():
        groups[reason].append(name)
    return sorted(groups.items(), key=lambda pair: -len(pair[1]))


def compact(value: Any) -> str:
    """Return a JSON value in few letters: lists in brackets, objects as name=value, strings bare."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={compact(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        inner = [f"[{compact(item)}]" if isinstance(item, (list, tuple)) else compact(item) for item in value]
        return ", ".join(inner)
    return f"{value:g}" if isinstance(value, float) else str(value)
