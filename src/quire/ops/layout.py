"""Ops that move, choose or reinterpret elements without arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from quire.core.errors import ShapeError
from quire.ops.op import op
from quire.ops.spec import FLOATS, INTS, Dim, Shape, Shapes, TensorLike, TensorSpec, dtype_of, same_dtype, spec_of


def axis_of(x: TensorLike, dim: int) -> int:
    """Return a dimension counted from the front.

    Raises:
        ShapeError: There is no such dimension.
    """
    rank = len(x.shape)
    if not -rank <= dim < rank:
        raise ShapeError(f"Invalid dim: expected one in [{-rank}, {rank}), got {dim}.")
    return dim % rank


def _infer_view(x: TensorLike, shape: Sequence[int]) -> TensorSpec:
    given, wanted = tuple(x.shape), list(shape)
    symbols = [d for d in given if isinstance(d, str)]
    count = prod(d for d in given if isinstance(d, int))
    fixed = prod(d for d in wanted if d != -1)
    free = wanted.count(-1)
    error = ShapeError(f"Invalid shape: expected one with the elements of {list(given)}, got {wanted}.")
    if free > 1 or len(symbols) > 1 or any(d < -1 for d in wanted):
        raise error
    if symbols and (free != 1 or fixed != count):
        raise error
    if not symbols and (count % fixed if free and fixed else count != fixed):
        raise error
    filler: Dim = symbols[0] if symbols else (count // fixed if fixed else 0)
    return TensorSpec(tuple(filler if d == -1 else d for d in wanted), x.dtype)


@op(_infer_view)
def view(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the same elements, in order, in another shape.

    Args:
        x: Any shape and dtype, at most one symbolic size.
        shape: Sizes; one -1 stands for the symbolic (or the left over) size.
    """
    return x.reshape(tuple(shape))


def _infer_permute(x: TensorLike, dims: Sequence[int]) -> TensorSpec:
    if sorted(dims) != list(range(len(x.shape))):
        raise ShapeError(f"Invalid dims: expected a permutation of 0..{len(x.shape) - 1}, got {list(dims)}.")
    return TensorSpec(tuple(x.shape[d] for d in dims), x.dtype)


@op(_infer_permute)
def permute(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return `x` with its dimensions in the order `dims`, contiguous."""
    return x.permute(tuple(dims)).contiguous()


def _infer_transpose(x: TensorLike, dim0: int, dim1: int) -> TensorSpec:
    first, second, shape = axis_of(x, dim0), axis_of(x, dim1), list(x.shape)
    shape[first], shape[second] = shape[second], shape[first]
    return TensorSpec(tuple(shape), x.dtype)


@op(_infer_transpose)
def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Return `x` with two dimensions exchanged, contiguous."""
    return x.transpose(dim0, dim1).contiguous()


def _infer_slice(x: TensorLike, dim: int, start: int, stop: int) -> TensorSpec:
    axis = axis_of(x, dim)
    size = x.shape[axis]
    if not isinstance(size, int) or not 0 <= start <= stop <= size:
        raise ShapeError(f"Invalid range: expected 0 <= start <= stop <= {size}, got {start}, {stop}.")
    return TensorSpec(_resized(x, axis, stop - start), x.dtype)


@op(_infer_slice)
def slice(x: Tensor, dim: int, start: int, stop: int) -> Tensor:
    """Return elements `start` to `stop` (excluded) along a fixed-size dimension."""
    return x.narrow(dim, start, stop - start)


def _fixed(x: TensorLike, axis: int) -> int:
    size = x.shape[axis]
    if not isinstance(size, int):
        raise ShapeError(f"Invalid dim: expected one of a fixed size, got {axis} of {list(x.shape)}.")
    return size


def _resized(x: TensorLike, axis: int, *sizes: Dim) -> Shape:
    """Return the shape of `x` with other sizes in place of one."""
    shape = tuple(x.shape)
    return (*shape[:axis], *sizes, *shape[axis + 1 :])


def _infer_split(x: TensorLike, sizes: int | Sequence[int], dim: int) -> tuple[TensorSpec, ...]:
    axis = axis_of(x, dim)
    total = _fixed(x, axis)
    pieces = [sizes] * (total // sizes if sizes > 0 else 0) if isinstance(sizes, int) else list(sizes)
    if not pieces or sum(pieces) != total or min(pieces) < 0:
        raise ShapeError(f"Invalid sizes: expected some that sum to {total}, got {sizes}.")
    return tuple(TensorSpec(_resized(x, axis, size), x.dtype) for size in pieces)


@op(_infer_split)
def split(x: Tensor, sizes: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Cut a tensor along a fixed-size dimension; the number of results follows from `sizes`.

    Args:
        x: Any shape and dtype.
        sizes: Of each piece, or one size of all, which divides the dimension's.
        dim: Where to cut.

    Returns:
        The pieces in order, each with all other sizes of `x`.
    """
    return torch.split(x, sizes if isinstance(sizes, int) else list(sizes), dim)


def _infer_concat(tensors: Sequence[TensorLike], dim: int) -> TensorSpec:
    if not tensors:
        raise ShapeError("Invalid tensors: expected at least one, got none.")
    first, axis = tensors[0], axis_of(tensors[0], dim)
    total = 0
    for i, t in enumerate(tensors):
        others = [d for k, d in enumerate(t.shape) if k != axis]
        size = t.shape[axis] if len(t.shape) == len(first.shape) else None
        if not isinstance(size, int) or others != [d for k, d in enumerate(first.shape) if k != axis]:
            raise ShapeError(
                f"Invalid shape of tensors[{i}]: expected {list(first.shape)} but for dim {axis}, got {list(t.shape)}."
            )
        total += size
    return TensorSpec(_resized(first, axis, total), same_dtype(**{f"tensors[{i}]": t for i, t in enumerate(tensors)}))


@op(_infer_concat)
def concat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Return the tensors joined along a fixed-size dimension; all other sizes and the dtype are equal."""
    return torch.cat(list(tensors), dim)


def _infer_cast(x: TensorLike, dtype: str) -> TensorSpec:
    return TensorSpec(tuple(x.shape), dtype_of(dtype))


@op(_infer_cast)
def cast(x: Tensor, dtype: str) -> Tensor:
    """Return `x` rounded to the dtype named "float32", "bfloat16", ..."""
    return x.to(dtype_of(dtype))


def _infer_item(results: Sequence[TensorLike], index: int) -> TensorSpec:
    if not isinstance(results, (tuple, list)) or not 0 <= index < len(results):
        got = len(results) if isinstance(results, (tuple, list)) else "one result"
        raise ShapeError(f"Invalid index: expected one of several results, got index {index} of {got}.")
    return spec_of(results[index])


@op(_infer_item)
def item(results: Sequence[Tensor], index: int) -> Tensor:
    """Return one of the several results of an op."""
    return results[index]


def _infer_index_select(x: TensorLike, index: TensorLike, dim: int) -> TensorSpec:
    Shapes().check("index", index, "num_rows", INTS)
    if not x.shape:
        raise ShapeError("Invalid shape of x: expected at least one dimension, got [].")
    shape = list(x.shape)
    shape[axis_of(x, dim)] = index.shape[0]
    return TensorSpec(tuple(shape), x.dtype)


@op(_infer_index_select)
def index_select(x: Tensor, index: Tensor, dim: int = 0) -> Tensor:
    """Return the rows of `x`, or what lies along another dimension, named by `index`.

    Args:
        x: Any shape with at least one dimension, any dtype.
        index: [num_rows], int32 | int64.
        dim: The dimension to choose from.

    Returns:
        Shape of `x` with num_rows in the place of size `dim`.
    """
    return x.index_select(dim, index)


def _infer_argsort(keys: TensorLike) -> TensorSpec:
    Shapes().check("keys", keys, "num_keys", INTS)
    return TensorSpec(tuple(keys.shape), torch.int32)


@op(_infer_argsort)
def argsort(keys: Tensor) -> Tensor:
    """Return the positions that put `keys` in order, equal ones as they come; of a permutation that is its inverse.

    Args:
        keys: [num_keys], int32 | int64.

    Returns:
        [num_keys], int32.
    """
    return keys.argsort(stable=True).int()


def _infer_expand(x: TensorLike, shape: Sequence[int]) -> TensorSpec:
    given = tuple(x.shape)
    if len(given) != len(shape) or any(have not in (1, want) for have, want in zip(given, shape, strict=True)):
        raise ShapeError(f"Invalid shape: expected {list(given)} with other sizes than 1 kept, got {list(shape)}.")
    return TensorSpec(tuple(shape), x.dtype)


@op(_infer_expand)
def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return `x` repeated along its dimensions of size 1 up to `shape`, contiguous."""
    return x.expand(tuple(shape)).contiguous()


def _infer_full(shape: Sequence[int], value: float, dtype: str) -> TensorSpec:
    return TensorSpec(tuple(shape), dtype_of(dtype))


@op(_infer_full)
def full(shape: Sequence[int], value: float, dtype: str) -> Tensor:
    """Return a tensor that holds one number everywhere."""
    return torch.full(tuple(shape), value, dtype=dtype_of(dtype))


def _infer_gather(x: TensorLike, dim: int, index: TensorLike) -> TensorSpec:
    axis = axis_of(x, dim)
    Shapes().check("index", index, "*sizes", INTS)
    expected = _resized(x, axis, "any")
    if len(index.shape) != len(x.shape) or _resized(index, axis, "any") != expected:
        raise ShapeError(f"Invalid shape of index: expected {list(expected)}, got {list(index.shape)}.")
    return TensorSpec(tuple(index.shape), x.dtype)


@op(_infer_gather)
def gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return, for two dimensions and dim 1, `x[i, index[i, j]]` at `[i, j]`.

    Args:
        x: Any shape and dtype.
        dim: Where `index` chooses.
        index: Shape of `x` but for `dim`, int32 | int64, each in [0, size of `dim`).

    Returns:
        Shape of `index`, dtype of `x`.
    """
    return x.gather(dim, index.long())


def _infer_topk(x: TensorLike, k: int, dim: int) -> tuple[TensorSpec, TensorSpec]:
    Shapes().check("x", x, "*sizes", (*FLOATS, *INTS))
    axis = axis_of(x, dim)
    if not 1 <= k <= _fixed(x, axis):
        raise ShapeError(f"Invalid k: expected one in [1, {x.shape[axis]}], got {k}.")
    shape = _resized(x, axis, k)
    return TensorSpec(shape, x.dtype), TensorSpec(shape, torch.int64)


@op(_infer_topk)
def topk(x: Tensor, k: int, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Return the `k` largest elements along a fixed-size dimension and where they are, the largest first.

    Args:
        x: Any shape, floats or integers. Of equal elements the first comes first; NaN counts as the largest.
        k: How many.
        dim: Along which dimension.

    Returns:
        Values, dtype of `x`, and indices, int64: shape of `x` with `k` in place of the dimension's size.
    """
    values, indices = x.sort(dim=dim, descending=True, stable=True)
    return values.narrow(dim, 0, k).contiguous(), indices.narrow(dim, 0, k).contiguous()


def _infer_argmax(x: TensorLike, dim: int, keepdim: bool) -> TensorSpec:
    Shapes().check("x", x, "*sizes", (*FLOATS, *INTS))
    axis = axis_of(x, dim)
    if x.shape[axis] == 0:
        raise ShapeError(f"Invalid shape of x: expected at least one element along dim {axis}, got {list(x.shape)}.")
    return TensorSpec(_resized(x, axis, *([1] if keepdim else [])), torch.int64)


@op(_infer_argmax)
def argmax(x: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """Return where the largest element along a dimension is, the first of equal ones.

    Args:
        x: Any shape, floats or integers.
        dim: Along which dimension.
        keepdim: Keep it, with size 1.

    Returns:
        Shape of `x` without the dimension, int64.
    """
    return x.argmax(dim, keepdim)
