"""Memory of GPUs in reach of each other, by the symmetric memory of torch.distributed."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed import _symmetric_memory as symmetric

from quire.core.log import get_logger
from quire.distributed.tensors.peers import BUFFER_BYTES, NUM_SLOTS, PeerMemory

_log = get_logger(__name__)


def open_peer_memory(group: dist.ProcessGroup) -> PeerMemory | None:
    """Return memory of a group's ranks in reach of each other; None, said in the log, where devices cannot do that.

    All ranks of the group call this at once, and all get it or none does.

    Args:
        group: Ranks with a GPU each, their current one.
    """
    device, memory = torch.device("cuda", torch.cuda.current_device()), None
    try:
        buffer = symmetric.empty(BUFFER_BYTES, dtype=torch.uint8, device=device)
        handle = symmetric.rendezvous(buffer, group)
        buffer.zero_()
        addresses = torch.tensor([int(address) for address in handle.buffer_ptrs], dtype=torch.int64, device=device)
        turns = torch.zeros(NUM_SLOTS, dtype=torch.int32, device=device)
        memory = PeerMemory(group.rank(), addresses, turns, (buffer, handle))
    except RuntimeError as error:
        _log.info("GPUs cannot reach each other's memory (%s): collectives take the library's way", error)
    is_able = torch.tensor([memory is not None], dtype=torch.int32, device=device)
    dist.all_reduce(is_able, dist.ReduceOp.MIN, group)  # also: everybody's zeros are written
    return memory if bool(is_able.item()) else None
