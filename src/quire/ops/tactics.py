"""The explicit tables of tactics, one for each kind of device. A GPU's is read only where one is asked for."""

from __future__ import annotations

from quire.core.errors import TacticError
from quire.ops.cpu import table as cpu
from quire.ops.op import REFERENCE, Fusion, Tactic

DEVICE_KINDS = ("cpu", "cuda")


def table(device: str) -> tuple[Tactic, ...]:
    """Return the tactics of a device kind, by op in order of preference.

    Raises:
        TacticError: There is no such kind, or what its kernels are written in is not installed.
    """
    if device == "cpu":
        return cpu.TACTICS
    if device != "cuda":
        raise TacticError(f"device: expected one of {', '.join(DEVICE_KINDS)}, got {device!r}.")
    try:
        from quire.ops.cuda import table as cuda
    except ModuleNotFoundError as error:
        raise TacticError(f"device cuda: expected Triton, got none ({error}); install `quire[gpu]`.") from None
    return cuda.TACTICS


def tactics_for(op: str, device: str) -> list[Tactic]:
    """Return the tactics of an op on a device kind, the default first; the reference is always there.

    Raises:
        TacticError: There is no such kind of device.
    """
    listed = [tactic for tactic in table(device) if tactic.op == op]
    is_listed = any(tactic.name == REFERENCE for tactic in listed)
    return listed if is_listed else [*listed, cpu.reference(op, keeps_bits=not listed)]


def fusions_for(device: str) -> tuple[Fusion, ...]:
    """Return which calls can be one on a device kind; a CPU's compiled kernels are joined to programs instead."""
    if device != "cuda":
        return ()
    from quire.ops.cuda import table as cuda

    return cuda.FUSIONS
