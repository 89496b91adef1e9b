"""Before Triton is imported: without a GPU its kernels run in its interpreter."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="module")
def gpu():
    """The device "cuda": a GPU, or without one this machine's CPU, on which its kernels are interpreted, slowly."""
    from tests.support.interpreted_gpu import interpreted_gpu

    with interpreted_gpu() as device:
        yield device
