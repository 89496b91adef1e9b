"""`quire env`: versions, processor and memory, for bug reports."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import msgspec

from quire import __version__
from quire.cli.options import table
from quire.core.env import KNOWN, check_environment

PACKAGES = ("torch", "numpy", "tokenizers", "sentencepiece", "safetensors", "huggingface_hub", "jinja2", "msgspec")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print what Quire runs on."""
    from quire.plan.device import isa_flags, num_threads, processor_name
    from quire.runner.device import available_memory_bytes, total_memory_bytes

    check_environment()
    rows = {
        "quire": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "processor": processor_name(),
        "instruction sets": " ".join(isa_flags()) or "none of those that Quire looks for",
        "cores": str(os.cpu_count()),
        "threads": str(num_threads()),
        "memory": f"{total_memory_bytes() / 2**30:.1f} GiB, {available_memory_bytes() / 2**30:.1f} GiB available",
        **{name: os.environ.get(name, "(not set)") for name in KNOWN},
    }
    print(msgspec.json.encode(rows).decode() if options.json else table(list(rows.items())))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
