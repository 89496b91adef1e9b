"""`linear` and `silu_mul` as one kernel: the bits of both, whatever the number of rows."""

import pytest
import torch

from quire.ops.triton.elementwise import silu_mul
from quire.ops.triton.fused.gated_linear import linear_silu_mul
from quire.ops.triton.linear import linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _case(num_rows, width=96, in_features=272, dtype=torch.bfloat16):
    """Random values on a GPU; where kernels are interpreted, whose sums are numpy's, such that all sums are exact."""
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(n, in_features, generator=generator) for n in (num_rows, 2 * width))
    if DEVICE == "cpu":
        x, weight = x.round(), weight.round()
    return x.to(DEVICE, dtype), (weight / 8).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 5, 17, 65])
def test_bits_are_those_of_two_kernels(num_rows, dtype):
    x, weight = _case(num_rows, dtype=dtype)
    assert torch.equal(linear_silu_mul(x, weight), silu_mul(linear(x, weight)))


def test_bits_of_a_row_do_not_depend_on_others():
    x, weight = _case(40)
    assert torch.equal(linear_silu_mul(x[7:8], weight), linear_silu_mul(x, weight)[7:8])


def test_what_the_kernel_does_not_take_is_computed_by_two():
    x, weight = _case(3, dtype=torch.float32)
    bias = torch.ones(len(weight), device=DEVICE)
    assert torch.equal(linear_silu_mul(x, weight), silu_mul(linear(x, weight)))
    assert torch.equal(linear_silu_mul(x, weight, bias), silu_mul(linear(x, weight, bias)))
    assert linear_silu_mul(x[:0], weight).shape == (0, len(weight) // 2)
