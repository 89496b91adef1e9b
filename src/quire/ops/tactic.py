"""`Tactic`: one implementation of an op for one kind of device, and the explicit table of them.

Besides running, a tactic may do work ahead: `pack` makes one object of constant arguments once when a plan is loaded,
`prepare` derives what depends only on a step's inputs once per step, shared by all nodes that read the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from quire.ops.cpu import (
    attention,
    attention_bytes,
    dense_attention,
    elementwise,
    fused,
    linear,
    moe,
    quantize,
    references,
    rope,
)
from quire.ops.cpu import quantized_linear as quantized
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
            object holds. None, or a result of None: it keeps the tensors themselves.
        workspace_bytes: Takes the op's arguments by name, tensors as `TensorSpec`s without symbolic sizes; the most
            bytes that `run` holds at once beside its arguments: its results, and what it needs on the way. For a step's
            attention these are the arguments of the largest step, and the worst of all steps up to it is meant. None:
            the results alone.
        result_bytes: Takes the same; the bytes that the results keep when they are parts of something larger. None: as
            many as their shapes say.
        prepared_bytes: Takes the same; the bytes of what `prepare` returns, and the most that it holds at once.
        library_bytes: Takes the same; what a library keeps for the call in bytes, and before that a key that calls have
            in common which share it.
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
    packed_bytes: Callable[..., int | None] | None = None
    workspace_bytes: Callable[..., int] | None = None
    result_bytes: Callable[..., int] | None = None
    prepared_bytes: Callable[..., tuple[int, int]] | None = None
    library_bytes: Callable[..., tuple[object, int]] | None = None
    prepare: Callable[..., Any] | None = None
    prepare_reads: tuple[str, ...] = ()
    keeps_bits: bool = True


REFERENCE = "reference"
"""Name of the tactic that every op has."""


def _reference(op: str, *, keeps_bits: bool = True) -> Tactic:
    return Tactic(op, REFERENCE, OPS[op].reference, keeps_bits=keeps_bits, workspace_bytes=references.BYTES.get(op))


def _expanded(dtype: torch.dtype) -> tuple[Tactic, ...]:
    """Return the tactics that expand weights of eight bits to a dtype when they are packed."""
    name, scaled = f"expanded_{dtype_name(dtype)}", ("weight", "scales")
    pack, is_valid = quantized.expand_8bit(dtype), quantized.is_expanded_to(dtype)
    packed, held = quantized.expanded_bytes(dtype), quantized.w8a16_bytes(dtype)
    results, kernels = quantized.w8a16_result_bytes(dtype), quantized.expanded_kernels_bytes(dtype)
    return (
        Tactic("linear_w8a16", name, quantized.linear_w8a16, pack, scaled, is_valid, packed, held, results,
               library_bytes=kernels),
        Tactic("linear_w8a8", name, quantized.linear_fp8, pack, scaled, is_valid, packed, held, results,
               library_bytes=kernels),
    )  # fmt: skip


_ROTATES = ("positions", "table", "slot_mapping")
_ATTENDS = ("block_table", "seq_lens", "query_start_loc", "window")

_CPU = (
    Tactic("linear", "onednn_rows", linear.run, pack=linear.pack, pack_args=("weight",),
           packed_bytes=linear.packed_bytes, workspace_bytes=linear.linear_bytes, result_bytes=linear.result_bytes,
           library_bytes=linear.kernels_bytes),
    Tactic("moe", "onednn_rows", moe.run, pack=moe.pack, pack_args=("gate", "up", "down"),
           packed_bytes=moe.packed_bytes, workspace_bytes=moe.moe_bytes),
    Tactic("silu", "exp", elementwise.silu, workspace_bytes=elementwise.silu_bytes),
    Tactic("gelu", "tanh_erf", elementwise.gelu, workspace_bytes=elementwise.gelu_bytes),
    Tactic("rope", "shared_angles", rope.rope, workspace_bytes=rope.rope_bytes,
           prepare=rope.angles, prepare_reads=("positions", "table"), prepared_bytes=rope.angles_bytes),
    Tactic("append_kv", "indexed", attention.append_kv, workspace_bytes=attention.append_kv_bytes,
           prepare=attention.slots, prepare_reads=("slot_mapping",), prepared_bytes=attention.slots_bytes),
    Tactic("attention", "tiled", attention.attention, workspace_bytes=attention_bytes.attention_bytes,
           prepare=attention.tiles, prepare_reads=_ATTENDS, prepared_bytes=attention_bytes.tiles_bytes),
    Tactic("attention", "dense", dense_attention.attention, keeps_bits=False),
    Tactic("rms_norm", "in_place", fused.rms_norm, workspace_bytes=fused.rms_norm_bytes),
    _reference("rms_norm"),
    Tactic("silu_mul", "in_place", fused.silu_mul, workspace_bytes=fused.silu_mul_bytes),
    Tactic("add_rms_norm", "in_place", fused.add_rms_norm, workspace_bytes=fused.add_rms_norm_bytes),
    _reference("add_rms_norm"),
    Tactic("rope_append_kv", "together", fused.rope_append_kv, workspace_bytes=fused.together_bytes,
           result_bytes=fused.together_result_bytes, prepare=fused.angles_and_slots, prepare_reads=_ROTATES,
           prepared_bytes=fused.angles_and_slots_bytes),
    Tactic("rope_append_kv", "apart", fused.rope_append_kv_apart, workspace_bytes=fused.apart_bytes,
           prepare=fused.angles_and_slots, prepare_reads=_ROTATES, prepared_bytes=fused.angles_and_slots_bytes),
    Tactic("quantize_rows", "in_place", quantize.quantize_rows, workspace_bytes=quantize.quantize_rows_bytes),
    _reference("quantize_rows"),
    Tactic("rms_norm_quant", "in_place", fused.rms_norm_quant, workspace_bytes=fused.rms_norm_quant_bytes),
    _reference("rms_norm_quant"),
    Tactic("add_rms_norm_quant", "in_place", fused.add_rms_norm_quant, workspace_bytes=fused.add_rms_norm_quant_bytes),
    _reference("add_rms_norm_quant"),
    Tactic("silu_mul_quant", "in_place", fused.silu_mul_quant, workspace_bytes=fused.silu_mul_quant_bytes),
    Tactic("linear_w8a8", "onednn_int8", quantized.linear_w8a8, quantized.pack_int8, ("weight", "scales"),
           quantized.is_int8, quantized.int8_bytes, quantized.w8a8_bytes, quantized.w8a8_result_bytes,
           library_bytes=quantized.int8_kernels_bytes),
    Tactic("linear_w8a8", "int_mm", OPS["linear_w8a8"].reference, is_valid=quantized.is_int8,
           workspace_bytes=quantized.int_mm_bytes),
    *_expanded(torch.bfloat16), *_expanded(torch.float32),
    Tactic("linear_w4a16", "expanded", quantized.linear_w4a16, quantized.expand_int4,
           ("weight", "scales", "zero_points"), packed_bytes=quantized.expanded_int4_bytes,
           workspace_bytes=quantized.w4a16_bytes, result_bytes=quantized.w4a16_result_bytes,
           library_bytes=quantized.w4a16_kernels_bytes),
)  # fmt: skip

TACTICS = {"cpu": _CPU}
"""By kind of device, in order of preference: the first of an op that is valid is its default."""


def tactics_for(op: str, device: str) -> list[Tactic]:
    """Return the tactics of an op on a device kind, the default first; the reference is always there."""
    listed = [tactic for tactic in TACTICS.get(device, ()) if tactic.op == op]
    is_listed = any(tactic.name == REFERENCE for tactic in listed)
    return listed if is_listed else [*listed, _reference(op, keeps_bits=not listed)]
