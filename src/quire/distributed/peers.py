"""`PeerMemory`: memory of each rank that kernels of the others read and write, over NVLink or PCIe."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.core.log import get_logger

_log = get_logger(__name__)

NUM_SLOTS = 512
"""Programs of a kernel that may exchange something at once."""
SLOT_BYTES = 1 << 16
"""What each of them may write in one turn."""
FLAG_BYTES = 1 << 16
"""At the beginning of a buffer, for flags."""
_BUFFER_BYTES = FLAG_BYTES + 2 * NUM_SLOTS * SLOT_BYTES


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


def open_peer_memory(group: torch.distributed.ProcessGroup, device: torch.device) -> PeerMemory | None:
    """Return memory of a group's ranks in reach of each other; None, said in the log, where devices cannot do that.

    All ranks of the group call this at once, and all get it or none does.

    Args:
        group: Ranks on one host, a GPU each.
        device: This rank's.
    """
    from torch.distributed import _symmetric_memory as symmetric

    memory = None
    try:
        buffer = symmetric.empty(_BUFFER_BYTES, dtype=torch.uint8, device=device)
        handle = symmetric.rendezvous(buffer, group)
        buffer.zero_()
        addresses = torch.tensor([int(address) for address in handle.buffer_ptrs], dtype=torch.int64, device=device)
        turns = torch.zeros(NUM_SLOTS, dtype=torch.int32, device=device)
        memory = PeerMemory(group.rank(), addresses, turns, (buffer, handle))
    except RuntimeError as error:
        _log.info("GPUs cannot reach each other's memory (%s): collectives take the library's way", error)
    is_able = torch.tensor([memory is not None], dtype=torch.int32, device=device)
    torch.distributed.all_reduce(is_able, torch.distributed.ReduceOp.MIN, group)  # also: everybody's zeros are written
    return memory if bool(is_able.item()) else None
