"""The machine's roofs, measured by a few lines of C++ that are compiled here."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_FLAGS = ("-O3", "-std=c++20", "-fopenmp", "-shared", "-fPIC", "-march=native")
_OPERATIONS = 4 * 2 * 16 * 16 * 32  # of one round of `multiply_tiles`


class Roofs:
    """Measures memory's read bandwidth and the rate of AMX tiles in registers, with torch's number of threads."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "roofs.so"
            headers = f"-I{_HERE.parent.parent / 'csrc'}"
            subprocess.run(["g++", *_FLAGS, headers, "-o", str(library), str(_HERE / "roofs.cpp")], check=True)
            self._library = ctypes.CDLL(str(library))
        self.has_tiles = self._library.allow_tiles() == 0

    def read(self, data: torch.Tensor) -> float:
        """Return the seconds that reading a tensor takes."""
        size = ctypes.c_size_t(data.nbytes // 256 * 256)
        start = time.perf_counter()
        self._library.read_all(ctypes.c_void_p(data.data_ptr()), size, torch.get_num_threads())
        return time.perf_counter() - start

    def multiply(self, operations: float) -> float:
        """Return the seconds that so many operations take in registers, for at most 2 ms of each thread's work."""
        threads = torch.get_num_threads()
        wanted = operations / _OPERATIONS / threads
        times = max(20, min(50_000, int(wanted)))
        start = time.perf_counter()
        self._library.multiply_tiles(ctypes.c_int64(times), threads)
        return (time.perf_counter() - start) * wanted / times
