"""One table of results: `benchmarks/results.csv`, a row per measurement, with the machine it was measured on."""

from __future__ import annotations

import csv
import datetime
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from quire import __version__
from quire.plan.device import isa_flags, num_threads, processor_name

RESULTS = Path(__file__).parent / "results.csv"
COLUMNS = ("date", "name", "unit", "p20", "p50", "p80", "n", "device", "versions")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie, by linear interpolation."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where results are from.

    Attributes:
        device: Processor or GPU, with what matters of it.
        versions: Of what ran there.
        date: When, as YYYY-MM-DD.
    """

    device: str
    versions: str
    date: str


def here() -> Origin:
    """Return this machine's processor, its instruction sets that matter and the threads used, and today."""
    return Origin(
        f"{processor_name()} ({' '.join(isa_flags())}), {num_threads()} threads",
        f"quire {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        datetime.date.today().isoformat(),
    )


def record(name: str, unit: str, values: Sequence[float], *, save: bool = True, origin: Origin | None = None) -> None:
    """Print a result, and append it to the table.

    Args:
        name: What was measured, for example "offline_64.quire.bf16".
        unit: For example "tokens/s".
        values: One per repetition.
        save: Whether to append it.
        origin: Where it was measured; None means here and now.
    """
    p20, p50, p80 = (percentile(values, share) for share in (0.2, 0.5, 0.8))
    print(f"{name:48} {p50:12,.2f} {unit:10} (p20 {p20:,.2f}, p80 {p80:,.2f}, n={len(values)})", flush=True)
    if not save:
        return
    is_new, of = not RESULTS.exists(), origin or here()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        numbers = (f"{v:.6g}" for v in (p20, p50, p80))
        writer.writerow((of.date, name, unit, *numbers, len(values), of.device, of.versions))
