"""Ops whose kernels work row by row: norms, activations, arithmetic, rope, KV cache writes, gathers.

Each takes the arguments of the op of its name and returns its result; what a kernel rounds, and where, is as in the
reference. Kernels want the last dimension contiguous, and copy nothing: a tensor that is not is copied here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.elementwise import broadcast
from quire.ops.native.library import call
from quire.ops.spec import FLOATS, INTS, TensorLike, dtype_of

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _quantized(shape: torch.Size, dtype: str) -> Pair:
    """Return rows to fill in, and their scales."""
    return torch.empty(shape, dtype=dtype_of(dtype)), torch.empty((*shape[:-1], 1), dtype=torch.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the norm; see `ops.norm.rms_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype)
    call("rms_norm", [out, _contiguous_rows(x), weight.contiguous()], [eps])
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return the norm; see `ops.norm.layer_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype)
    added = None if bias is None else bias.contiguous()
    call("layer_norm", [out, _contiguous_rows(x), weight.contiguous(), added], [eps])
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Pair:
    """Return the norm of the sum, and the sum; see `ops.fused.add_rms_norm`."""
    out, total = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
    call("add_rms_norm", [out, total, *map(_contiguous_rows, (x, residual)), weight.contiguous()], [eps])
    return out, total


def rms_norm_quant(x: Tensor, weight: Tensor, eps: float, dtype: str = "int8") -> Pair:
    """Return rows and scales; see `ops.fused.rms_norm_quant`."""
    rows, scales = _quantized(x.shape, dtype)
    call("rms_norm_quant", [rows, scales, _contiguous_rows(x), weight.contiguous()], [eps])
    return rows, scales


def add_rms_norm_quant(x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: str = "int8") -> Triple:
    """Return rows, scales and the sum; see `ops.fused.add_rms_norm_quant`."""
    rows, scales = _quantized(x.shape, dtype)
    total = torch.empty(x.shape, dtype=x.dtype)
    inputs = *map(_contiguous_rows, (x, residual)), weight.contiguous()
    call("add_rms_norm_quant", [rows, scales, total, *inputs], [eps])
    return rows, scales, total


def quantize_rows(x: Tensor, dtype: str = "int8") -> Pair:
    """Return rows and scales; see `ops.quantize.quantize_rows`."""
    rows, scales = _quantized(x.shape, dtype)
    call("quantize_rows", [rows, scales, _contiguous_rows(x)])
    return rows, scales


def silu_mul(x: Tensor) -> Tensor:
    """Return `silu(gate) * up`; see `ops.fused.silu_mul`."""
    out = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype)
    call("silu_mul", [out, _contiguous_rows(x)])
    return out


def silu_mul_quant(x: Tensor, dtype: str = "int8") -> Pair:
    """Return rows and scales; see `ops.fused.silu_mul_quant`."""
    rows, scales = _quantized(torch.Size((*x.shape[:-1], x.shape[-1] // 2)), dtype)
    call("silu_mul_quant", [rows, scales, _contiguous_rows(x)])
    return rows, scales


def silu(x: Tensor) -> Tensor:
    """Return `x * sigmoid(x)`; see `ops.elementwise.silu`."""
    return _map("silu", x, [])


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return `x * Phi(x)`; see `ops.elementwise.gelu`."""
    return _map("gelu", x, [float(approximate == "tanh")])


def relu(x: Tensor) -> Tensor:
    """Return `max(x, 0)`; see `ops.elementwise.relu`."""
    return _map("relu", x, [])


def _map(kernel: str, x: Tensor, numbers: list[float]) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    call(kernel, [out, _contiguous_rows(x)], numbers)
    return out


def is_of_rows(x: TensorLike | float, y: TensorLike | float) -> bool:
    """Return whether `add` and `mul` here take these: two tensors with the same last size that broadcast."""
    tensors = [each for each in (x, y) if not isinstance(each, (int, float))]
    known = all(each.dtype in (*FLOATS, *INTS) and len(each.shape) for each in tensors)
    return known and len(tensors) == 2 and tensors[0].shape[-1] == tensors[1].shape[-1]


def is_with_number(x: TensorLike | float, y: TensorLike | float) -> bool:
    """Return whether `add_number` and `mul_number` take these: a tensor, and after it a number."""
    return not isinstance(x, (int, float)) and isinstance(y, (int, float)) and x.dtype in (*FLOATS, *INTS)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return `x + y`; see `ops.elementwise.add`."""
    return _combine("add", x, y)


def mul(x: Tensor, y: Tensor) -> Tensor:
    """Return `x * y`; see `ops.elementwise.mul`."""
    return _combine("mul", x, y)


def _combine(kernel: str, x: Tensor, y: Tensor) -> Tensor:
    shape = broadcast(tuple(x.shape), tuple(y.shape))
    out = torch.empty([int(size) for size in shape], dtype=x.dtype)
    call(kernel, [out, _contiguous_rows(x), _contiguous_rows(y)])
    return out


def add_number(x: Tensor, y: float) -> Tensor:
    """Return `x + y`; see `ops.elementwise.add`."""
    return _map("add_number", x, [y])


def mul_number(x: Tensor, y: float) -> Tensor:
    """Return `x * y`; see `ops.elementwise.mul`."""
    return _map("mul_number", x, [y])


def rope(x: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """Rotate each head's pairs; see `ops.rope.rope`."""
    out = torch.empty(x.shape, dtype=x.dtype)
    call("rope", [out, _contiguous_rows(x), positions, table.contiguous()])
    return out


def append_kv(
    key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_scales: Tensor | None = None
) -> None:
    """Write keys and values into their slots; see `ops.attention.append_kv`."""
    call("append_kv", [kv_cache, _contiguous_rows(key), _contiguous_rows(value), slot_mapping, kv_scales])


def rope_append_kv(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    table: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys, and write keys and values; see `ops.fused.rope_append_kv`."""
    out = torch.empty(query.shape, dtype=query.dtype)
    heads = map(_contiguous_rows, (query, key, value))
    call("rope_append_kv", [out, kv_cache, *heads, positions, table.contiguous(), slot_mapping, kv_scales])
    return out


def is_row_embedding(ids: TensorLike, weight: TensorLike) -> bool:
    """Return whether the kernel takes these as they are: ids in a row."""
    return len(ids.shape) == 1


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Return the rows of `weight` named by `ids`, which the caller has checked; see `ops.linear.embedding`."""
    out = torch.empty((*ids.shape, weight.shape[1]), dtype=weight.dtype)
    call("gather_rows", [out.view(-1, weight.shape[1]), _contiguous_rows(weight), ids.reshape(-1)])
    return out


def is_row_gather(x: TensorLike, index: TensorLike, dim: int = 0) -> bool:
    """Return whether `index_select` here takes these."""
    return dim == 0 and len(x.shape) > 0


def index_select(x: Tensor, index: Tensor, dim: int = 0) -> Tensor:
    """Return the rows of `x` named by `index`, which the caller has checked; see `ops.layout.index_select`."""
    rows = x if x[:1].is_contiguous() else x.contiguous()
    out = torch.empty((*index.shape, *x.shape[1:]), dtype=x.dtype)
    call("gather_rows", [out, rows, index])
    return out


def gelu_numbers(x: TensorLike, approximate: str = "none") -> tuple[float, ...]:
    """Return the kernel's number of `gelu`."""
    return (float(approximate == "tanh"),)


def number(x: TensorLike, y: float) -> tuple[float, ...]:
    """Return the kernel's number of `add_number` and `mul_number`."""
    return (y,)
