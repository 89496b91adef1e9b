"""Ops that exchange tensors between the ranks that share a network; `distributed.communicator.current` does the work.

A sharded network holds them like any other op, so that it can be printed, planned and run as one; whoever runs it says
first which rank it is for (`distributed.communicator.use`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.distributed.communicator import current
from quire.ops.op import op
from quire.ops.spec import FLOATS, INTS, Shapes, TensorLike, TensorSpec, dtype_of, spec_of


def _infer_all_reduce(x: TensorLike) -> TensorSpec:
    Shapes().check("x", x, "*rows width", FLOATS)
    return spec_of(x)


@op(_infer_all_reduce)
def all_reduce(x: Tensor) -> Tensor:
    """Return the sum of what the ranks of a stage have, added in the order of ranks in float32 and rounded once.

    Args:
        x: [*rows, width], float32 | bfloat16 | float16, of one shape on all ranks.

    Returns:
        Same shape and dtype, and the same bits on all ranks, whatever the number of rows.
    """
    return current().all_reduce(x)


def _infer_all_gather(x: TensorLike, width: int) -> TensorSpec:
    shapes = Shapes()
    shapes.check("x", x, "*rows width_of_rank")
    own = shapes.size("width_of_rank")
    if not own <= width:
        raise ShapeError(f"Invalid width: expected at least the {own} channels of this rank, got {width}.")
    return TensorSpec((*tuple(x.shape)[:-1], width), x.dtype)


def piece_start(width: int, size: int, rank: int) -> int:
    """Return where a rank's piece of a dimension begins, if all have `size` of it.

    Where they are more than `width` together, the last ones move back: what overlaps is then held twice, and pieces
    need no padding.
    """
    return min(rank * size, width - size)


@op(_infer_all_gather)
def all_gather(x: Tensor, width: int) -> Tensor:
    """Return the pieces of all ranks of a stage beside each other, each at its `piece_start`.

    Args:
        x: [*rows, n], any dtype, of one shape on all ranks; what two of them hold is equal.
        width: Of the result; at most n times as many as there are ranks.

    Returns:
        [*rows, width], same dtype, contiguous.
    """
    size = x.shape[-1]
    gathered = current().all_gather(x)
    num_ranks = gathered.shape[-1] // size
    if num_ranks * size == width:
        return gathered
    out = gathered.new_empty((*x.shape[:-1], width))
    for rank in range(num_ranks):
        out.narrow(-1, piece_start(width, size, rank), size).copy_(gathered.narrow(-1, rank * size, size))
    return out


def _infer_sharded_embedding(ids: TensorLike, weight: TensorLike, start: int, skip: int) -> TensorSpec:
    Shapes().check("ids", ids, "*rows", INTS)
    shapes = Shapes()
    shapes.check("weight", weight, "rows_of_rank hidden_size", FLOATS)
    if not (start >= 0 and 0 <= skip <= shapes.size("rows_of_rank")):
        raise ShapeError(f"Invalid start, skip: expected rows of the table, got {start}, {skip}.")
    return TensorSpec((*tuple(ids.shape), weight.shape[1]), weight.dtype)


@op(_infer_sharded_embedding)
def sharded_embedding(ids: Tensor, weight: Tensor, start: int, skip: int = 0) -> Tensor:
    """Return the rows of a table named by `ids`, as far as this rank has them: the sum over ranks is `embedding`.

    Args:
        ids: [*rows], int32 | int64.
        weight: [n, hidden_size], float32 | bfloat16 | float16: rows `start` to `start + n` of the table.
        start: Of this rank's rows.
        skip: How many of them the rank before has, too, and answers for.

    Returns:
        [*rows, hidden_size], dtype of `weight`; zeros where another rank has the row.
    """
    local = ids - start
    is_here = (local >= skip) & (local < weight.shape[0])
    rows = torch.nn.functional.embedding(torch.where(is_here, local, skip), weight)
    return torch.where(is_here.unsqueeze(-1), rows, 0)


def _infer_send(x: TensorLike, rank: int) -> None:
    Shapes().check("x", x, "*rows width")


@op(_infer_send)
def send(x: Tensor, rank: int) -> None:
    """Send a tensor to a rank of another stage, which calls `recv`.

    Args:
        x: [*rows, width], any dtype.
        rank: The receiver, out of all ranks.
    """
    current().send(x.contiguous(), rank)


def _infer_recv(like: TensorLike, width: int, dtype: str, rank: int) -> TensorSpec:
    Shapes().check("like", like, "*rows")
    if width < 1 or rank < 0:
        raise ShapeError(f"Invalid width, rank: expected a width of at least 1 and a rank, got {width}, {rank}.")
    return TensorSpec((*tuple(like.shape), width), dtype_of(dtype))


@op(_infer_recv)
def recv(like: Tensor, width: int, dtype: str, rank: int) -> Tensor:
    """Return the tensor that a rank of another stage sends.

    Args:
        like: [*rows], any dtype: as many rows as the tensor has, on the device where it is wanted.
        width: Of a row.
        dtype: Of the tensor.
        rank: The sender, out of all ranks.

    Returns:
        [*rows, width], `dtype`.
    """
    return current().recv((*like.shape, width), dtype_of(dtype), rank, like.device)
