"""What the references hold on a CPU, of ops whose reference may be the fastest tactic; of all others, their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from quire.ops.spec import TensorLike, dtype_of, num_bytes


def _rms_norm(x: TensorLike, weight: TensorLike, eps: float) -> int:
    """Squares or quotients in float32; then quotients and the result; if `x` is not float32, its copy beside them."""
    wide = num_bytes(x, torch.float32)
    return 2 * wide if x.dtype == torch.float32 else 2 * wide + num_bytes(x)


def _add_rms_norm(x: TensorLike, residual: TensorLike, weight: TensorLike, eps: float) -> int:
    return num_bytes(x) + _rms_norm(x, weight, eps)


def _quantize_rows(x: TensorLike, dtype: str = "int8") -> int:
    """Quotients in float32, rounded ones, and the rows; if `x` is not float32, its copy beside them."""
    wide = num_bytes(x, torch.float32)
    return (2 if x.dtype == torch.float32 else 3) * wide + num_bytes(x, dtype_of(dtype))


def _rms_norm_quant(x: TensorLike, weight: TensorLike, eps: float, dtype: str = "int8") -> int:
    return max(_rms_norm(x, weight, eps), num_bytes(x) + _quantize_rows(x, dtype))


def _add_rms_norm_quant(
    x: TensorLike, residual: TensorLike, weight: TensorLike, eps: float, dtype: str = "int8"
) -> int:
    return num_bytes(x) + _rms_norm_quant(x, weight, eps, dtype)


def _softmax(x: TensorLike, dim: int = -1) -> int:
    """Probabilities in float32; if `x` is not, its copy before them, and the result after them."""
    wide = num_bytes(x, torch.float32)
    return wide if x.dtype == torch.float32 else 2 * wide


def _topk(x: TensorLike, k: int, dim: int = -1) -> int:
    """All values and indices in order; torch sorts into copies of both."""
    return 2 * (num_bytes(x) + num_bytes(x, torch.int64))


def _all_reduce(x: TensorLike) -> int:
    """What comes in, what goes out again, and in float32 the piece of it that is summed here."""
    return 3 * max(num_bytes(x), num_bytes(x, torch.float32) // 2)


def _all_reduce_add_rms_norm(x: TensorLike, residual: TensorLike, weight: TensorLike, eps: float) -> int:
    """The sum over ranks while it is made, or beside what is made of it."""
    return max(_all_reduce(x), num_bytes(x) + _add_rms_norm(x, residual, weight, eps))


def _all_gather(x: TensorLike, width: int) -> int:
    """What comes in, rank by rank, and the result."""
    return 2 * (num_bytes(x) // max(int(x.shape[-1]), 1) * width)


def _sharded_embedding(ids: TensorLike, weight: TensorLike, start: int, skip: int = 0) -> int:
    """Which rows are here, those rows, and the result."""
    rows = num_bytes(ids) // ids.dtype.itemsize
    return 2 * num_bytes(ids) + rows + 2 * rows * int(weight.shape[1]) * weight.dtype.itemsize


BYTES: Mapping[str, Callable[..., int]] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "quantize_rows": _quantize_rows,
    "rms_norm_quant": _rms_norm_quant,
    "add_rms_norm_quant": _add_rms_norm_quant,
    "softmax": _softmax,
    "topk": _topk,
    "all_reduce": _all_reduce,
    "all_reduce_add_rms_norm": _all_reduce_add_rms_norm,
    "all_gather": _all_gather,
    "sharded_embedding": _sharded_embedding,
}
"""Most bytes that a reference holds at once, by op; each takes the op's arguments by name, tensors as `TensorSpec`s."""
