"""Linear layers by the libraries of a GPU's vendor, for many rows: few wait for the weight, whoever computes them.

A row's bits depend on how many rows there are: cuBLAS chooses its algorithm by them (H100, bfloat16: 1 to 200 rows
against the same rows of more). So these serve where nobody asked for equal bits.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from quire.ops.spec import TensorLike, dtype_of, sizes_of
from quire.ops.triton import linear as triton_linear
from quire.ops.triton.quantized_linear import linear_w8a8
from quire.ops.triton.tiles import FEW_ROWS

_LEAST_ROWS = 32  # `torch._int_mm` refuses 16 and fewer


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`, of more than a few rows by cuBLAS; see `ops.linear.linear`.

    H100: 5 to 17 percent faster at 128 and 256 rows, as fast at 2,048 and more.
    """
    if prod(x.shape[:-1]) <= FEW_ROWS:
        return triton_linear.linear(x, weight, bias)
    return torch.nn.functional.linear(x, weight, bias)


def is_float8(
    x: TensorLike, weight: TensorLike, bias: TensorLike | None = None, dtype: str = "bfloat16", **others: object
) -> bool:
    """Return whether `torch._scaled_mm` takes a layer row by row: float8 on Ada or later, sizes in sixteens."""
    is_able = not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 9)
    is_whole = all(size % 16 == 0 for size in sizes_of(weight))
    return is_able and is_whole and x.dtype == torch.float8_e4m3fn and dtype == "bfloat16"


def scaled_mm(
    x: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, dtype: str = "bfloat16"
) -> Tensor:
    """Return the product of rows and weight in float8, of more than a few by cuBLAS; see `ops.linear.linear_w8a8`.

    H100: up to 16 percent faster at 256 rows and more of wide layers, slower in some others.
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if len(rows) <= FEW_ROWS:
        return linear_w8a8(x, x_scales, weight, scales, bias, dtype)
    out = torch._scaled_mm(
        rows, weight.t(), x_scales.reshape(-1, 1).contiguous(), scales.view(1, -1), bias,
        out_dtype=dtype_of(dtype), use_fast_accum=True,
    )  # fmt: skip
    return out.view(*x.shape[:-1], weight.shape[0])


def is_int8(x: TensorLike, weight: TensorLike, **others: object) -> bool:
    """Return whether `torch._int_mm` takes a layer: int8, sizes in eights."""
    return x.dtype == torch.int8 and all(size % 8 == 0 for size in sizes_of(weight))


def int_mm(
    x: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, dtype: str = "bfloat16"
) -> Tensor:
    """Return the product of rows and weight in int8; see `ops.linear.linear_w8a8`."""
    rows = x.reshape(-1, x.shape[-1])
    missing = max(_LEAST_ROWS - len(rows), 0)
    padded = torch.nn.functional.pad(rows, (0, 0, 0, missing)).contiguous()
    out = torch._int_mm(padded, weight.t())[: len(rows)].float()
    out.mul_(scales).mul_(x_scales.reshape(-1, 1))
    if bias is not None:
        out.add_(bias)
    return out.to(dtype_of(dtype)).view(*x.shape[:-1], weight.shape[0])


def int_mm_bytes(x: TensorLike, weight: TensorLike, **others: object) -> int:
    """Return the most bytes that `int_mm` holds: rows padded or copied, and their product in int32 and float32."""
    out_features, in_features = sizes_of(weight)
    num_rows = prod(sizes_of(x)[:-1])
    padded = max(num_rows, _LEAST_ROWS)
    return padded * in_features + 4 * out_features * (padded + num_rows)
