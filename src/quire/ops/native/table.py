"""The compiled kernels as tactics, by op. Empty where this installation has none, or the processor is too old."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from quire.ops.native import attention, linear, rows, w8a8
from quire.ops.native.library import kernel_names
from quire.ops.op import Kernel, Tactic
from quire.ops.spec import TensorLike, TensorSpec, num_bytes


def _eps(eps: float, **rest: object) -> tuple[float, ...]:
    return (eps,)


def _nothing(**rest: object) -> tuple[float, ...]:
    return ()


def _of_rows(
    op: str,
    run: Callable[..., Any],
    operands: tuple[str, ...],
    numbers: Callable[..., tuple[float, ...]] = _nothing,
    *,
    kernel: str | None = None,
    is_valid: Callable[..., bool] = lambda **arguments: True,
) -> Tactic:
    """Return a kernel that works row by row as a tactic."""
    return Tactic(op, "native", run, is_valid=is_valid, kernel=Kernel(kernel or op, operands, numbers))


def _without_packed(num_packed: int) -> Callable[..., Any]:
    """Return `linear.run` for an op that has so many packed arguments, of which the first holds the rest."""

    def run(x: Tensor, weight: linear.PackedLinear, *others: Tensor | None) -> Tensor:
        return linear.run(x, weight, *others[num_packed - 1 :])

    return run


def _packed_bytes(weight: TensorLike, scales: TensorLike | None = None, zero_points: TensorLike | None = None) -> int:
    panels, steps = linear._num_panels_and_steps(TensorSpec(tuple(weight.shape), linear.held_dtype(weight.dtype)))
    return panels * steps * 2048 + sum(num_bytes(each) for each in (scales, zero_points) if each is not None)


def _linear(op: str, pack: Callable[..., Any], *packed: str) -> Tactic:
    """Return a product with a packed weight as a tactic."""
    operands = ("x", "weight.weight", "weight.scales", "weight.zero_points", "bias")
    return Tactic(
        op, "native", _without_packed(len(packed)), pack, packed, linear.is_valid, _packed_bytes,
        kernel=Kernel(linear.KERNEL, operands),
    )  # fmt: skip


_NORMED, _TURNED = ("x", "weight"), ("query", "key", "value", "positions", "table", "slot_mapping", "kv_scales")

_ALL = (
    _linear("linear", linear.pack, "weight"),
    _linear("linear_w8a16", linear.pack_8bit, "weight", "scales"),
    _linear("linear_w4a16", linear.pack_int4, "weight", "scales", "zero_points"),
    Tactic("linear_w8a8", "native", w8a8.run, w8a8.pack, ("weight", "scales"), w8a8.is_valid, w8a8.packed_bytes,
           kernel=Kernel("linear_w8a8", ("x", "x_scales", "weight.panels", "weight.scales", "weight.corrections",
                                         "bias"))),
    Tactic("attention", "native", attention.attention, is_valid=attention.is_valid,
           kernel=Kernel("attention", attention.OPERANDS[1:], attention.numbers)),
    _of_rows("append_kv", rows.append_kv, ("kv_cache", "key", "value", "slot_mapping", "kv_scales")),
    _of_rows("rope_append_kv", rows.rope_append_kv, ("kv_cache", *_TURNED)),
    _of_rows("rope", rows.rope, ("x", "positions", "table")),
    _of_rows("rms_norm", rows.rms_norm, _NORMED, _eps),
    _of_rows("layer_norm", rows.layer_norm, (*_NORMED, "bias"), _eps),
    _of_rows("add_rms_norm", rows.add_rms_norm, ("x", "residual", "weight"), _eps),
    _of_rows("rms_norm_quant", rows.rms_norm_quant, _NORMED, _eps),
    _of_rows("add_rms_norm_quant", rows.add_rms_norm_quant, ("x", "residual", "weight"), _eps),
    _of_rows("quantize_rows", rows.quantize_rows, ("x",)),
    _of_rows("silu_mul", rows.silu_mul, ("x",)),
    _of_rows("silu_mul_quant", rows.silu_mul_quant, ("x",)),
    _of_rows("silu", rows.silu, ("x",)),
    _of_rows("relu", rows.relu, ("x",)),
    _of_rows("gelu", rows.gelu, ("x",), rows.gelu_numbers),
    _of_rows("add", rows.add, ("x", "y"), is_valid=rows.is_of_rows),
    _of_rows("mul", rows.mul, ("x", "y"), is_valid=rows.is_of_rows),
    _of_rows("add", rows.add_number, ("x",), rows.number, kernel="add_number", is_valid=rows.is_with_number),
    _of_rows("mul", rows.mul_number, ("x",), rows.number, kernel="mul_number", is_valid=rows.is_with_number),
    _of_rows("embedding", rows.embedding, ("weight", "ids"), kernel="gather_rows"),
    _of_rows("index_select", rows.index_select, ("x", "index"), kernel="gather_rows", is_valid=rows.is_row_gather),
)  # fmt: skip

TACTICS: tuple[Tactic, ...] = tuple(
    tactic for tactic in _ALL if tactic.kernel is not None and tactic.kernel.name in kernel_names()
)
