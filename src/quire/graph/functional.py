"""The functional ops: the same names, arguments and docs as in `quire.ops`, on symbolic tensors.

Called inside `net_guard(network)`, each appends one node to the network and returns its symbolic result.

Example:
    >>> with net_guard(network):
    ...     x = Tensor("x", "float32", ("num_tokens", 64))
    ...     functional.silu(x).mark_output("y")
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from quire.core.errors import ShapeError
from quire.graph.network import Tensor, all_or_nothing, current_network
from quire.ops import attention as attention_ops
from quire.ops import elementwise, fused, layout, norm, quantize
from quire.ops import linear as linear_ops
from quire.ops import rope as r
from quire.ops.op import Op


def _recorded(op: Op[..., Any]) -> Callable[..., Tensor]:
    """Return a function that records a call of `op` in the current network."""

    @wraps(op.reference)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        return current_network().call(op, *args, **kwargs)  # type: ignore[return-value]

    return call


def _several(op: Op[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """Return the same for an op of several results."""
    return _recorded(op)  # type: ignore[return-value]


linear = _recorded(linear_ops.linear)
embedding = _recorded(linear_ops.embedding)
matmul = _recorded(linear_ops.matmul)
moe = _recorded(linear_ops.moe)
rms_norm = _recorded(norm.rms_norm)
layer_norm = _recorded(norm.layer_norm)
softmax = _recorded(norm.softmax)
silu = _recorded(elementwise.silu)
gelu = _recorded(elementwise.gelu)
relu = _recorded(elementwise.relu)
add = _recorded(elementwise.add)
sub = _recorded(elementwise.sub)
mul = _recorded(elementwise.mul)
div = _recorded(elementwise.div)
eq = _recorded(elementwise.eq)
ne = _recorded(elementwise.ne)
lt = _recorded(elementwise.lt)
gt = _recorded(elementwise.gt)
le = _recorded(elementwise.le)
ge = _recorded(elementwise.ge)
where = _recorded(elementwise.where)
rope_table = _recorded(r.rope_table)
rope = _recorded(r.rope)
append_kv = _recorded(attention_ops.append_kv)
attention = _recorded(attention_ops.attention)
view = _recorded(layout.view)
permute = _recorded(layout.permute)
transpose = _recorded(layout.transpose)
slice = _recorded(layout.slice)
split = _several(layout.split)
concat = _recorded(layout.concat)
cast = _recorded(layout.cast)
index_select = _recorded(layout.index_select)
argsort = _recorded(layout.argsort)
expand = _recorded(layout.expand)
full = _recorded(layout.full)
gather = _recorded(layout.gather)
topk = _several(layout.topk)
argmax = _recorded(layout.argmax)
silu_mul = _recorded(fused.silu_mul)
add_rms_norm = _several(fused.add_rms_norm)
rope_append_kv = _recorded(fused.rope_append_kv)
quantize_rows = _several(quantize.quantize_rows)
quantize_weight = _several(quantize.quantize_weight)
quantize_weight_int4 = _several(quantize.quantize_weight_int4)
pack_int4 = _recorded(quantize.pack_int4)
unpack_int32 = _recorded(quantize.unpack_int32)
dequantize_weight = _recorded(quantize.dequantize_weight)
linear_w8a16 = _recorded(linear_ops.linear_w8a16)
linear_w8a8 = _recorded(linear_ops.linear_w8a8)
linear_w4a16 = _recorded(linear_ops.linear_w4a16)


@all_or_nothing
def swiglu(x: Tensor) -> Tensor:
    """Return `up * silu(gate)` of `up` and `gate` side by side, in this order (`silu_mul` takes the gate first).

    Adds a split, a silu and a mul, so that it has all their tactics.

    Args:
        x: [*rows, 2 * width], float32 | bfloat16 | float16: up, then gate.

    Returns:
        [*rows, width], same dtype.

    Raises:
        ShapeError: The last size is odd or symbolic, or the dtype is another.
    """
    if not isinstance(x, Tensor):
        raise ShapeError(f"swiglu: Invalid x: expected a symbolic tensor, got {type(x).__name__}.")
    width = x.shape[-1] if x.shape else 0
    if not isinstance(width, int) or width < 2 or width % 2:
        raise ShapeError(f"swiglu: Invalid shape of x: expected an even last size, got {list(x.shape)}.")
    up, gate = split(x, width // 2, -1)
    return up * silu(gate)
