"""The compiled module: what it says of itself, and its plainest kernel on every set of instructions."""

from itertools import pairwise

import pytest
import torch

from quire.ops.native.library import call, kernel_names, library

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels")
ISAS = library().isas() if library() else []


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (0, 3), (64, 33)])
def test_copy(isa, threads, shape):
    x, out = torch.randn(shape), torch.zeros(shape)
    call("copy", [out, x], num_threads=threads, isa=isa)
    assert torch.equal(x, out)


def test_every_set_of_instructions_has_what_smaller_ones_have():
    for better, worse in pairwise(ISAS):
        assert kernel_names(worse) <= kernel_names(better)


def test_unknown_kernels_and_wrong_operands_are_refused():
    with pytest.raises(ValueError, match="expected a known name"):
        call("no_such_kernel", [])
    with pytest.raises(ValueError, match="wrong number"):
        call("copy", [torch.zeros(1, 1)])
