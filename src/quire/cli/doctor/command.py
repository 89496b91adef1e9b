"""The command: options, run, and what is printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from quire.distributed.doctor.diagnosis import Finding

_MARKS = {"ok": "ok", "warning": "WARNING", "error": "ERROR"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--ranks", type=int, metavar="N", help="ranks on this machine (default: one a GPU, at least 2)")
    where.add_argument("--hosts", metavar="A,B", help="addresses of all hosts; run the same command on each of them")
    where.add_argument("--ray", action="store_true", help="all hosts of the Ray cluster that this one belongs to")
    parser.add_argument("--port", type=int, default=29500, help="where the first host listens (default: 29500)")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="how long to wait for other ranks (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Examine together with the other ranks; the first one prints what was found.

    Returns:
        1 if something keeps the ranks from working together.

    Raises:
        ConfigError: The first rank cannot be reached, or none of the hosts is this one.
    """
    from quire.core import env
    from quire.distributed.doctor.examine import examine
    from quire.distributed.doctor.launching import examine_cluster, examine_here, rank_of_host

    launched = env.launched_rank()
    if launched is None and options.hosts is not None:
        launched = rank_of_host([name.strip() for name in options.hosts.split(",")], options.port)
    if options.ray:
        findings = examine_cluster(options.timeout_s)
    elif launched is None:
        findings = examine_here(options.ranks, options.timeout_s)
    else:
        findings = examine(launched, options.timeout_s)
    if findings:
        print(msgspec.json.encode(findings).decode() if options.json else _text(findings))
    return int(any(finding.level == "error" for finding in findings))


def _text(findings: Sequence[Finding]) -> str:
    """Return a line for each finding, and a verdict."""
    rows = [(finding.check, f"{_MARKS[finding.level]:8}{finding.message}") for finding in findings]
    width = max(len(check) for check, _ in rows)
    levels = [finding.level for finding in findings]
    verdict = f"{levels.count('error')} errors, {levels.count('warning')} warnings"
    return "\n".join([*(f"{check:{width}}  {text}" for check, text in rows), verdict])
