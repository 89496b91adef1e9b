"""Processes that compute: `python -m quire.distributed.program MODULE ARGUMENTS` calls `main` of the module."""

from __future__ import annotations

import gc
import os
import sys

from quire import import_quickly

PROGRAM = "quire.distributed.program"
"""This module, for `python -m`."""


def command(module: str, *arguments: object) -> list[str]:
    """Return what starts a process that calls `main` of a module, with the arguments as text."""
    # -P: a folder named quire where this was started is not the engine.
    return [sys.executable, "-P", "-m", PROGRAM, module, *map(str, arguments)]


def main(module: str, *arguments: str) -> int:
    """Import a module and return what its `main` returns. What was imported is never looked at for garbage again."""
    program = import_quickly(module)
    gc.freeze()
    return int(program.main(*arguments))


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # others wait for the end of this process, and torch takes a second for an orderly one
