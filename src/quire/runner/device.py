"""What the machine has: memory, and its measured roof."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from quire.ops.spec import dtype_of
from quire.plan.memory import ProcessMemory


def total_memory_bytes(device: str = "cpu") -> int:
    """Return the bytes of memory that this process may use: a GPU's, the machine's, or its control group's limit."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, int(text))
    return total


def available_memory_bytes(device: str = "cpu") -> int:
    """Return the bytes that can be taken now: of a GPU's memory, or of the machine's without swapping."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return min(int(line.split()[1]) * 1024, total_memory_bytes())
    except OSError:
        pass
    return total_memory_bytes()


PROCESS_BYTES = 260 << 20
"""What a process has taken when it has imported torch and opened a plan: not part of what it then finds available."""

PROCESS = ProcessMemory(code_bytes=24 << 20, slack=0.5)
"""What a process takes beside tensors once it runs a model, on Linux with glibc 2.36 and torch 2.13.

The code of MKL and oneDNN that the first steps touch was 20 to 30 MiB. glibc gives back an aligned piece of memory in a
size that does not quite hold the next one of that size, so holes stay: 15 to 60 percent of a step (models of 260 and
400 MiB of weights, steps of 512 and 2,048 tokens).
"""


GPU_PROCESS = ProcessMemory(code_bytes=256 << 20, slack=0.1)
"""What a process takes of a GPU's memory beside tensors: code of kernels, the vendor library's workspace, rounding."""


@dataclass(frozen=True, slots=True)
class Roof:
    """What the machine reaches, measured now.

    Attributes:
        read_bytes_per_s: Reading 1 GiB from memory.
        flops: Best of square GEMMs in the model's dtype and in float32, which a processor without instructions for
            16 bits is quicker with.
    """

    read_bytes_per_s: float
    flops: float


def measure_roof(dtype: str) -> Roof:
    """Measure memory bandwidth and matmul rate with all threads, in a few seconds.

    Args:
        dtype: Of the GEMM, for example "bfloat16".
    """
    data = torch.ones(1 << 28)
    read = data.nbytes / _best_seconds(data.sum, 5)
    return Roof(read, max(_matmul_rate(kind) for kind in {dtype_of(dtype), torch.float32}))


def _matmul_rate(dtype: torch.dtype) -> float:
    """Return the operations per second of square matrices, of large ones unless that would take minutes."""
    rate = 0.0
    for size in (256, 2048):
        a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
        if rate and 2 * size**3 / rate > 1.0:  # second
            break
        rate = max(rate, 2 * size**3 / _best_seconds(partial(torch.matmul, a, b), 5))
    return rate


def _best_seconds(run: Callable[[], object], times: int) -> float:
    best = float("inf")
    for _ in range(times + 1):  # the first warms up
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
