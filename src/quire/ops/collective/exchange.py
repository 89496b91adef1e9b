"""Ops that move tensors between the ranks of a network, or sum them up."""

from __future__ import annotations

from torch import Tensor

from quire.core.errors import ShapeError
from quire.distributed.tensors.communicator import current
from quire.ops.op import op
from quire.ops.spec import FLOATS, Shapes, TensorLike, TensorSpec, dtype_of, spec_of

EXCHANGES = ("all_reduce", "all_reduce_add_rms_norm", "all_gather", "send", "recv")
"""Ops that wait for other ranks."""


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
