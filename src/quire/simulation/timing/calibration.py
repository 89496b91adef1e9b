"""`Calibration`: how far a device is from its roofline, fitted to steps that were timed on it, as a small JSON file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from quire.plan.device import Device
from quire.plan.storage.hashed_file import read_hashed, write_hashed

FORMAT = 1


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured, and the factors that explain it.

    Attributes:
        device: Where.
        model: Which plan, as a person called it. The factors hold for it; for others of its kind they are a guess.
        read_bytes_per_s: The roof: reading memory.
        flops: The roof: a product of square matrices, operations per second.
        rows: Numbers of rows with a factor of their own, ascending.
        factors: For each of them, the seconds of a call by its roofline's.
        decode_factor: The same for attention of rows with one token.
        prefill_factor: The same for attention of all others.
        step_s: Seconds of the host for a step.
        row_s: Seconds of the host for each row.
        request_s: Seconds of the host for each new one, its request's admission included.
        num_steps: Steps that were timed.
        error: Mean of the relative error over those steps.
    """

    device: Device
    model: str
    read_bytes_per_s: float
    flops: float
    rows: tuple[int, ...]
    factors: tuple[float, ...]
    decode_factor: float
    prefill_factor: float
    step_s: float
    row_s: float
    request_s: float
    num_steps: int
    error: float


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a file."""
    write_hashed(path, calibration, FORMAT)


def read_calibration(path: Path) -> Calibration:
    """Read a file.

    Raises:
        PlanError: It is missing, damaged, or of another format version.
    """
    hint = "Measure again with `quire simulate MODEL --measure FILE`."
    return read_hashed(path, Calibration, FORMAT, "a calibration of `quire simulate`", hint)
