"""The process group of all ranks: where they find each other, how they join and leave."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from quire.distributed.tensors.torch_group import BACKENDS


class MeetingPoint:
    """A store in this process, through which the ranks learn of each other's addresses. Gone with this object.

    Args:
        host: Address to listen on, one that all ranks can reach.

    Attributes:
        address: "host:port".
    """

    def __init__(self, host: str) -> None:
        sock = socket.create_server((host, 0))
        port = sock.getsockname()[1]
        self.address = f"{host}:{port}"
        self._store = TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=sock.detach())


@contextmanager
def joined(address: str, rank: int, world_size: int, device: torch.device) -> Iterator[None]:
    """Be a member of the group of all ranks inside the block; returns once all are.

    Args:
        address: Of their `MeetingPoint`.
        rank: Of this process.
        world_size: Ranks in all.
        device: Where its tensors lie.
    """
    host, _, port = address.rpartition(":")
    store = TCPStore(host, int(port), is_master=False)
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        BACKENDS[device.type], store=store, rank=rank, world_size=world_size, device_id=device if on_gpu else None
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
