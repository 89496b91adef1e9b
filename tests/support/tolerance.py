"""One table: how far a tactic may be from its reference, relative to the largest magnitude."""

import torch

RELATIVE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Fail unless shapes and dtypes are equal and values agree within the table."""
    assert got.shape == expected.shape and got.dtype == expected.dtype, (got.shape, expected.shape, got.dtype)
    if got.numel():
        scale = expected.float().abs().max().clamp(min=1e-6)
        error = ((got.float() - expected.float()).abs().max() / scale).item()
        assert error <= RELATIVE[got.dtype], f"relative error {error:.2e} for {got.dtype}"
