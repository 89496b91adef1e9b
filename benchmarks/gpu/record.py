"""Append a run on a GPU to `benchmarks/results.csv`, from the JSON that `benchmarks.gpu.run` wrote there.

    python -m benchmarks.gpu.record FILE.json [--no-save]

Each number is one measurement, named "gpu.<key>.<field>". Tables of kernels stay in the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import Origin, record

# By how a field's name ends, the longest first.
_UNITS = {
    "tokens_s": "tokens/s", "tflop_s": "TFLOP/s", "tb_s": "TB/s", "ms_per_token": "ms", "ms": "ms", "us": "us",
    "seconds": "s", "_s": "s", "requests": "requests",
}  # fmt: skip
_SHARE = "x"


def unit_of(field: str) -> str:
    """Return the unit of a field of the report; "x" of a share."""
    return next((unit for ending, unit in _UNITS.items() if field.endswith(ending)), _SHARE)


def numbers(found: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield the name, unit and value of every number of a run.

    Args:
        found: What `benchmarks.gpu.run` writes.
    """
    for key, fields in found.items():
        if isinstance(fields, dict) and key != "versions":
            for field, value in fields.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    yield f"gpu.{key}.{field}", unit_of(field), float(value)


def origin_of(found: Mapping[str, Any]) -> Origin:
    """Return the GPU, the versions and the date of a run."""
    versions = [f"{name} {version}" for name, version in found["versions"].items()]
    versions += [f"{name} {found[name]}" for name in ("cuda", "python") if found.get(name)]
    return Origin(found["device"], ", ".join(versions), found["date"])


def main() -> None:
    """Record a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    found = json.loads(options.file.read_text(encoding="utf-8"))
    for name, unit, value in numbers(found):
        record(name, unit, [value], save=not options.no_save, origin=origin_of(found))


if __name__ == "__main__":
    main()
