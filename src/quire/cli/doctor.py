"""`quire doctor`: whether the ranks of this machine, or of several hosts, can work together, and if not, whose fault it is."""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from quire.core import env
from quire.core.env import LaunchedRank
from quire.core.errors import ConfigError

if TYPE_CHECKING:
    from quire.distributed.doctor.diagnosis import Finding

_MARKS = {"ok": "ok", "warning": "WARN", "error": "FAIL"}
_LOCAL = "127.0.0.1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks on this machine (default: one for each GPU, or 2)")
    parser.add_argument("--hosts", metavar="A,B", help="addresses of several hosts; run the same command on each of them")
    parser.add_argument("--ray", metavar="ADDRESS", help="all hosts of a Ray cluster; auto: the one that runs here")
    parser.add_argument("--port", type=int, default=29500, help="port of the first host (default: 29500)")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="how long to wait for other ranks (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Examine, and print what was found; 1 if something is wrong."""
    if options.ray is not None:
        findings = _on_ray(options)
    else:
        launched = env.launched_rank() or _as_one_of(options) or _with_children(options)
        findings = _examine(launched, options)
    return _print(findings, options) if findings else 0


def _examine(launched: LaunchedRank, options: argparse.Namespace) -> list[Finding]:
    from quire.distributed.doctor.examine import examine

    with ExitStack() as stack:
        if options.hosts is None and env.launched_rank() is None:
            for rank in range(1, launched.world_size):
                stack.callback(_end, _start(launched, rank, options))
        return examine(launched, options.timeout_s)
