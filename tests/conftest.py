"""Before Triton is imported: without a GPU its kernels run in its interpreter. Child processes run this tree's code."""

import os
import pathlib

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_ROOT = pathlib.Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join((str(_ROOT / "src"), str(_ROOT), os.environ.get("PYTHONPATH", "")))


@pytest.fixture(scope="module")
def gpu():
    """The device "cuda": a GPU, or without one this machine's CPU, on which its kernels are interpreted, slowly."""
    from tests.support.interpreted_gpu import interpreted_gpu

    with interpreted_gpu() as device:
        yield device
