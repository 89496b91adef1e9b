"""`quire verify ENGINE`: check every byte of an engine, and compute recorded logits again, bit for bit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from quire.cli.options import require, table

if TYPE_CHECKING:  # it imports torch, which `--help` can do without
    from quire.plan.plan import Plan


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("engine", metavar="ENGINE", help="engine directory")
    parser.add_argument("--record", action="store_true", help="record logits on this device, in place of earlier ones")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verify, or record; returns 1 if something differs."""
    from quire.plan.device import device_kind
    from quire.plan.engine_directory import is_engine_directory
    from quire.plan.plan import Plan
    from quire.runner.replay import record, write_recording

    root = Path(options.engine)
    require(is_engine_directory(root), "ENGINE", "an engine directory, made by `quire build`", options.engine)
    plan = Plan.load(root)
    if options.record:
        print(f"Wrote {write_recording(root, record(plan, device_kind('auto')))}.")
        return 0
    num_bytes = 0
    for name in plan.network.weights:
        num_bytes += plan.weights.read(name).nbytes
    print(table([("files", "as they were built"), ("weights", f"as they were built, {num_bytes / 2**20:,.1f} MiB")]))
    return _replay(plan, root)


def _replay(plan: Plan, root: Path) -> int:
    from quire.plan.device import device_kind
    from quire.plan.engine_directory import RECORDING
    from quire.runner.replay import read_recording, replay

    if not (root / RECORDING).exists():
        print("logits     none recorded; `quire verify ENGINE --record` records some")
        return 0
    recording = read_recording(root)
    found = replay(plan, recording, device_kind("auto"))
    rows = [("logits", f"{found.num_equal} of {found.num_rows} rows have the recorded bits")]
    if not found.is_same_device:
        rows.append(("recorded on", f"{recording.device}: bits may differ here"))
    if found.num_equal < found.num_rows:
        rows.append(("largest difference", f"{found.largest_difference:.3g}"))
    if found.tokens_differ_at is not None:
        rows.append(("other token", "sequence {}, token {}".format(*found.tokens_differ_at)))
    is_good = found.num_equal == found.num_rows or (not found.is_same_device and found.tokens_differ_at is None)
    print(table([*rows, ("verdict", "verified" if is_good else "NOT the engine that was recorded")]))
    return 0 if is_good else 1
