"""`PeerMemory`: memory of each rank that kernels of the others read and write, over NVLink or PCIe."""

from __future__ import annotations

from dataclasses import dataclass

import torch

NUM_SLOTS = 512
"""Programs of a kernel that may exchange something at once."""
SLOT_BYTES = 1 << 16
"""What each of them may write in one turn."""
FLAG_BYTES = 1 << 16
"""At the beginning of a buffer, for flags."""
BUFFER_BYTES = FLAG_BYTES + 2 * NUM_SLOTS * SLOT_BYTES
"""What each rank gives."""


@dataclass(frozen=True, slots=True)
class PeerMemory:
    """One buffer for each rank of a group, all of them in reach of this one. Zeros before anybody writes to it.

    Attributes:
        rank: Place of this rank in the group.
        addresses: [group size], int64: where each rank's buffer begins, as this rank sees it; on the device. It holds
            `FLAG_BYTES` for flags, then for even turns `NUM_SLOTS` times `SLOT_BYTES`, then the same for odd ones.
        turns: [NUM_SLOTS], int32, on the device, of this rank alone; zeros at first. Kernels count here, slot by slot,
            how often they have exchanged something.
        buffer: What keeps the memory alive.
    """

    rank: int
    addresses: torch.Tensor
    turns: torch.Tensor
    buffer: object
