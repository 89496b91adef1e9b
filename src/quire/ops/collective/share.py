"""What a rank does with its share of a table, or of what a sum is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.collective.exchange import all_reduce
from quire.ops.fused import add_rms_norm
from quire.ops.op import op
from quire.ops.spec import FLOATS, INTS, Shapes, TensorLike, TensorSpec


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
    rows = torch.nn.functional.embedding(torch.where(is_here, local, 0), weight)
    return torch.where(is_here.unsqueeze(-1), rows, 0)


@op(add_rms_norm.infer)
def all_reduce_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return `add_rms_norm` of what the ranks of a stage have in sum.

    Args:
        x: [*rows, hidden_size], float32 | bfloat16 | float16: this rank's term.
        residual: Same shape and dtype, the same on all ranks.
        weight: [hidden_size], same dtype.
        eps: Added to the mean square.

    Returns:
        The norm and the sum, each [*rows, hidden_size], same dtype, the same bits on all ranks.
    """
    return add_rms_norm.reference(all_reduce.reference(x), residual, weight, eps)
