"""`quire env`: versions, processor, GPU and memory, for bug reports."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import msgspec

from quire import __version__
from quire.cli.options import table
from quire.core.env import KNOWN, check_environment, num_threads_wish

PACKAGES = (
    "torch", "triton", "numpy", "tokenizers", "sentencepiece", "safetensors", "huggingface_hub", "jinja2", "msgspec",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print what Quire runs on."""
    from quire.ops.native.library import library
    from quire.plan.cores import find_cores, huge_pages
    from quire.plan.device import isa_flags, num_threads, processor_name

    cores = find_cores()
    check_environment()
    rows = {
        "quire": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "processor": processor_name(),
        "instruction sets": " ".join(isa_flags()) or "none of those that Quire looks for",
        "compiled kernels": ", ".join(native.isas()) if (native := library()) else "none: torch computes",
        "cores": str(cores),
        "threads": str(min(num_threads(), cores.num_threads) if num_threads_wish() is None else num_threads()),
        "huge pages": huge_pages(),
        "memory": _memory("cpu"),
        **_gpu(),
        **{name: os.environ.get(name, "(not set)") for name in KNOWN},
    }
    print(msgspec.json.encode(rows).decode() if options.json else table(list(rows.items())))


def _gpu() -> dict[str, str]:
    """Return what there is to say of the GPU that would be used."""
    from quire.plan.device import device_kind, driver_version, this_device

    if device_kind("auto") != "cuda":
        return {"gpu": "none that torch can use"}
    gpu = this_device("cuda")
    return {
        "gpu": f"{gpu.name} ({', '.join(gpu.features)}), {gpu.threads} multiprocessors",
        "gpu memory": _memory("cuda"),
        "gpu driver": driver_version(),
    }


def _memory(device: str) -> str:
    from quire.runner.device import available_memory_bytes, total_memory_bytes

    total, available = (read(device) / 2**30 for read in (total_memory_bytes, available_memory_bytes))
    return f"{total:.1f} GiB, {available:.1f} GiB available"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
