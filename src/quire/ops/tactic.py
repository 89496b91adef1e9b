"""`Tactic`: one implementation of an op for one kind of device, and the explicit table of them.

Besides running, a tactic may do work ahead: `pack` makes one object of constant arguments once when a plan is loaded,
`prepare` derives what depends only on a step's inputs once per step, shared by all nodes that read the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quire.ops import cpu
from quire.ops.registry import OPS


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


def _reference(op: str) -> Tactic:
    return Tactic(op, "reference", OPS[op].reference)


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
)  # fmt: skip

TACTICS = {"cpu": _CPU}
"""By kind of device, in order of preference: the first of an op that is valid is its default."""


def tactics_for(op: str, device: str) -> list[Tactic]:
    """Return the tactics of an op on a device kind, the default first; the reference is always last."""
    return [*(tactic for tactic in TACTICS.get(device, ()) if tactic.op == op), _reference(op)]
