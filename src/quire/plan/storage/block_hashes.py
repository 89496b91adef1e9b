"""Hashes of blocks of a matrix's rows and of its columns: whoever reads a part of it checks what it reads, and no more.

A matrix has sixteen blocks of rows, and sixteen of columns, as equal as may be. So the share of one of 2, 4, 8 or 16
ranks is made of whole blocks wherever the dimension is divisible by 16, whichever way a layer is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from blake3 import blake3

NUM_BLOCKS = 16
BLOCK_HASH_LENGTH = 32
"""Of one hash, in hex digits."""

# Smaller tensors are read whole in less time than it takes to find their parts: 1 MiB in 0.3 ms.
_LEAST_BYTES = 1 << 20
Range = tuple[int, int]


def has_blocks(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is worth hashes of its blocks."""
    return tensor.dim() == 2 and tensor.nbytes >= _LEAST_BYTES and min(tensor.shape) >= NUM_BLOCKS


def block_hash(tensor: torch.Tensor) -> str:
    """Return the first 128 bits of the BLAKE3 of a tensor's bytes, in hex."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return blake3(flat.numpy().data).hexdigest(length=BLOCK_HASH_LENGTH // 2)


def block_hashes(tensor: torch.Tensor, dim: int) -> str:
    """Return the hashes of all blocks along a dimension, one behind the other."""
    return "".join(block_hash(tensor.narrow(dim, a, b - a)) for a, b in _blocks(tensor.shape[dim]))


def _blocks(size: int) -> list[Range]:
    return [(i * size // NUM_BLOCKS, (i + 1) * size // NUM_BLOCKS) for i in range(NUM_BLOCKS)]


def covering_blocks(size: int, ranges: Sequence[Range]) -> dict[int, Range]:
    """Return the blocks of a dimension that ranges have a part in, by number, each with its own range."""
    return {
        i: (a, b) for i, (a, b) in enumerate(_blocks(size)) if any(start < b and a < stop for start, stop in ranges)
    }


def merged(blocks: Iterable[Range]) -> tuple[Range, ...]:
    """Return ranges in order, with those that touch as one."""
    found: list[Range] = []
    for start, stop in blocks:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return tuple(found)


def within(covered: Sequence[Range], wanted: Sequence[Range]) -> tuple[Range, ...]:
    """Return where ranges are in what is left of a dimension when only some that cover them are."""
    found, before = [], 0
    for start, stop in covered:
        inside = ((max(a, start), min(b, stop)) for a, b in wanted if a < stop and start < b)
        found += [(a - start + before, b - start + before) for a, b in inside]
        before += stop - start
    return tuple(found)
