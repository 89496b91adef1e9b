"""`Tactic`: one implementation of an op for one kind of device, and the explicit table of them.

Besides running, a tactic may do work ahead: `pack` makes one object of constant arguments once when a plan is loaded,
`prepare` derives what depends only on a step's inputs once per step, shared by all nodes that read the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from quire.ops import cpu
from quire.ops.registry import OPS
from quire.ops.spec import dtype_name


@dataclass(frozen=True, slots=True)
class Tactic:
    """An implementation of an op.

    Attributes:
        op: Name of the op.
        name: Distinguishes the tactics of an op; "reference" is always there and always valid.
        run: Takes the op's arguments in order, packed ones packed, and `prepared` if there is a `prepare`.
        pack: Takes the arguments in `pack_args`, all constant, and returns what `run` gets in place of the first of
            them; in place of the others it gets None.
        pack_args: Names of those arguments; the first is a tensor.
        is_valid: Takes the op's arguments by name, tensors as `TensorSpec`s; whether `run` bears them.
        packed_bytes: Takes the arguments in `pack_args` by name, tensors as `TensorSpec`s; the bytes that the packed
            object holds. None: as many as the tensors themselves.
        workspace_bytes: Takes the op's arguments by name, tensors as `TensorSpec`s without symbolic sizes; the most
            bytes that `run` holds at once beside its arguments and results. None: none worth counting.
        prepare: Takes the op's arguments by name before the step's first use. It may read the values of the arguments
            in `prepare_reads`, and of all others only their shapes.
        prepare_reads: Names of those arguments; all of them inputs of the step or plain values.
        keeps_bits: Whether a row's bits do not depend on the rows beside it. Others are there for networks of any kind,
            and never chosen for their speed.
    """

    op: str
    name: str
    run: Callable[..., Any]
    pack: Callable[..., Any] | None = None
    pack_args: tuple[str, ...] = ()
    is_valid: Callable[..., bool] = field(default=lambda **arguments: True)
    packed_bytes: Callable[..., int] | None = None
    workspace_bytes: Callable[..., int] | None = None
    prepare: Callable[..., Any] | None = None
    prepare_reads: tuple[str, ...] = ()
    keeps_bits: bool = True


REFERENCE = "reference"
"""Name of the tactic that every op has."""


def _reference(op: str, *, keeps_bits: bool = True) -> Tactic:
    return Tactic(op, REFERENCE, OPS[op].reference, keeps_bits=keeps_bits)


def _expanded(dtype: torch.dtype) -> tuple[Tactic, ...]:
    """Return the tactics that expand weights of eight bits to a dtype when they are packed."""
    q, name, scaled = cpu.quantized_linear, f"expanded_{dtype_name(dtype)}", ("weight", "scales")
    pack, size, is_valid = q.expand_8bit(dtype), q.expanded_bytes(dtype), q.is_expanded_to(dtype)
    return (
        Tactic("linear_w8a16", name, q.linear_w8a16, pack, scaled, is_valid, packed_bytes=size),
        Tactic("linear_w8a8", name, q.linear_fp8, pack, scaled, is_valid, packed_bytes=size),
    )


_CPU = (
    Tactic("linear", "onednn_rows", cpu.linear.run, pack=cpu.linear.pack, pack_args=("weight",)),
    Tactic("moe", "onednn_rows", cpu.moe.run, pack=cpu.moe.pack, pack_args=("gate", "up", "down")),
    Tactic("silu", "exp", cpu.elementwise.silu),
    Tactic("gelu", "tanh_erf", cpu.elementwise.gelu),
    Tactic("rope", "shared_angles", cpu.rope.rope, prepare=cpu.rope.angles, prepare_reads=("positions", "table")),
    Tactic("append_kv", "indexed", cpu.attention.append_kv, prepare=cpu.attention.slots,
           prepare_reads=("slot_mapping",)),
    Tactic("attention", "tiled", cpu.attention.attention, prepare=cpu.attention.tiles,
           prepare_reads=("block_table", "seq_lens", "query_start_loc", "window")),
    Tactic("attention", "dense", cpu.dense_attention.attention, keeps_bits=False),
    Tactic("rms_norm", "in_place", cpu.fused.rms_norm),
    _reference("rms_norm"),
    Tactic("silu_mul", "in_place", cpu.fused.silu_mul),
    Tactic("add_rms_norm", "in_place", cpu.fused.add_rms_norm),
    _reference("add_rms_norm"),
    Tactic("rope_append_kv", "together", cpu.fused.rope_append_kv, prepare=cpu.fused.angles_and_slots,
           prepare_reads=("positions", "table", "slot_mapping")),
    Tactic("rope_append_kv", "apart", cpu.fused.rope_append_kv_apart, prepare=cpu.fused.angles_and_slots,
           prepare_reads=("positions", "table", "slot_mapping")),
    Tactic("quantize_rows", "in_place", cpu.quantize.quantize_rows),
    _reference("quantize_rows"),
    Tactic("rms_norm_quant", "in_place", cpu.fused.rms_norm_quant),
    _reference("rms_norm_quant"),
    Tactic("add_rms_norm_quant", "in_place", cpu.fused.add_rms_norm_quant),
    _reference("add_rms_norm_quant"),
    Tactic("silu_mul_quant", "in_place", cpu.fused.silu_mul_quant),
    Tactic("linear_w8a8", "onednn_int8", cpu.quantized_linear.linear_w8a8, pack=cpu.quantized_linear.pack_int8,
           pack_args=("weight", "scales"), is_valid=cpu.quantized_linear.is_int8),
    Tactic("linear_w8a8", "int_mm", OPS["linear_w8a8"].reference, is_valid=cpu.quantized_linear.is_int8),
    *_expanded(torch.bfloat16), *_expanded(torch.float32),
    Tactic("linear_w4a16", "expanded", cpu.quantized_linear.linear_w4a16, pack=cpu.quantized_linear.expand_int4,
           pack_args=("weight", "scales", "zero_points"), packed_bytes=cpu.quantized_linear.expanded_int4_bytes),
)  # fmt: skip

TACTICS = {"cpu": _CPU}
"""By kind of device, in order of preference: the first of an op that is valid is its default."""


def tactics_for(op: str, device: str) -> list[Tactic]:
    """Return the tactics of an op on a device kind, the default first; the reference is always there."""
    listed = [tactic for tactic in TACTICS.get(device, ()) if tactic.op == op]
    is_listed = any(tactic.name == REFERENCE for tactic in listed)
    return listed if is_listed else [*listed, _reference(op, keeps_bits=not listed)]
