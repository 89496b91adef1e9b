"""One rank of `test_peers.py`: `python -m tests.ops.triton.peer_rank RANK WORLD DIRECTORY`, interpreted.

Buffers are files that all ranks map. Results go to DIRECTORY/RANK.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import triton

from quire.distributed.tensors import peers as memory
from quire.ops.collective.exchange import piece_start
from quire.ops.triton import peers

SHAPES = [(1, 64), (3, 192), (1, 2500)]
DTYPES = [torch.float32, torch.bfloat16]


def part(rank: int, step: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Return what a rank has to add in a step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(shape, generator=generator).mul(10 ** (rank % 3)).to(dtype)


def whole(step: int, shape: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what all ranks have alike: residual and norm weight."""
    generator = torch.Generator().manual_seed(777 + step)
    return torch.randn(shape, generator=generator).to(dtype), torch.randn(shape[1], generator=generator).to(dtype)


def gathered(world: int, step: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Return what ranks have pieces of, of `shape` each; what two of them have is the same."""
    generator = torch.Generator().manual_seed(99 + step)
    return torch.randn(shape[0], world * shape[1] - 7, generator=generator).to(dtype)


class Peers:
    """A communicator of peer memory alone."""

    def __init__(self, rank: int, world: int, directory: Path) -> None:
        size = memory.FLAG_BYTES + 2 * memory.NUM_SLOTS * memory.SLOT_BYTES
        self.buffers = [
            torch.from_file(str(directory / f"buffer{peer}"), shared=True, size=size, dtype=torch.uint8)
            for peer in range(world)
        ]
        addresses = torch.tensor([buffer.data_ptr() for buffer in self.buffers], dtype=torch.int64)
        turns = torch.zeros(memory.NUM_SLOTS, dtype=torch.int32)
        self.peers = memory.PeerMemory(rank, addresses, turns, self.buffers)


def main(rank: int, world: int, directory: Path) -> None:
    """Run all steps, and save what they gave."""
    peers.current = lambda: communicator  # type: ignore[assignment, return-value]
    communicator = Peers(rank, world, directory)
    found = []
    for step, (shape, dtype) in enumerate((shape, dtype) for shape in SHAPES for dtype in DTYPES):
        x, (residual, weight) = part(rank, step, shape, dtype), whole(step, shape, dtype)
        joined = gathered(world, step, shape, dtype)
        start = piece_start(joined.shape[1], shape[1], rank)
        pieces = peers.all_gather(joined[:, start : start + shape[1]].contiguous(), joined.shape[1])
        found.append([peers.all_reduce(x), pieces, *peers.all_reduce_add_rms_norm(x, residual, weight, 1e-5)])
    torch.save([found, communicator.peers.turns], directory / f"{rank}.pt")


if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "1" and triton.knobs.runtime.interpret
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
