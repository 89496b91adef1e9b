"""Every kernel compiles for Hopper and Ampere, keeps to its registers, and uses the tensor cores it is made for."""

import pytest

from tests.ops.triton.compiling import compile_all
from tests.ops.triton.kernels import COMPILATIONS as PRODUCTS
from tests.ops.triton.row_kernels import ROW_COMPILATIONS

COMPILATIONS = (*PRODUCTS, *ROW_COMPILATIONS)
SHARED_BYTES = {90: 227 << 10, 80: 163 << 10}


@pytest.fixture(scope="module")
def compiled():
    return compile_all(COMPILATIONS)


@pytest.mark.parametrize(
    "place, capability",
    [(i, capability) for i, each in enumerate(COMPILATIONS) for capability in each.capabilities],
    ids=lambda value: str(COMPILATIONS[value]) if value < len(COMPILATIONS) else f"sm_{value}",
)
def test_kernel(compiled, place, capability):
    made = compiled[place, capability]
    most = COMPILATIONS[place].most_spilled.get(capability, 0)
    assert made.spilled_bytes <= most, f"{made.registers} registers, and {made.spilled_bytes} bytes beside them"
    assert made.shared_bytes <= SHARED_BYTES[capability]
    assert not made.is_racing, "an operand in registers is overwritten while wgmma reads it"
    assert made.has_wgmma == (COMPILATIONS[place].wants_wgmma and capability == 90)
    # Only float8 on chips without it is multiplied as something wider, and by one kernel.
    assert made.is_in_order or "*u8:16" in COMPILATIONS[place].signature.values()
