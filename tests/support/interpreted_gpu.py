"""A GPU without a GPU: the engine, told to compute on "cuda", runs its kernels in Triton's interpreter on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from quire.engine import capacity, resolve, runners
from quire.plan import device
from quire.runner.device import available_memory_bytes

_real_kind = device.device_kind


def _kind(wanted: str) -> str:
    return wanted if wanted == "cuda" else _real_kind(wanted)


@contextmanager
def interpreted_gpu() -> Iterator[str]:
    """Let "cuda" be a device that there is; give it this machine's memory. With a GPU, change nothing.

    Yields:
        What to set `device` to.
    """
    if torch.cuda.is_available():
        yield "cuda"
        return
    with pytest.MonkeyPatch.context() as patch:
        for module in (device, capacity, resolve, runners):
            patch.setattr(module, "device_kind", _kind)
        patch.setattr(resolve, "available_memory_bytes", lambda kind: available_memory_bytes())
        yield "cuda"
