"""`Staging`: the integers of a step, from the host to the device in one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quire.runner.rows import IntArray


@dataclass(frozen=True, slots=True)
class StagedStep:
    """A step's integers on the device, int32; views of one buffer that every step overwrites.

    Attributes:
        num_tokens: Of all rows.
        rows: [num_rows, 3]: slot, tokens computed so far, place of the row's ids in `tokens` or -1.
        query_start_loc: [num_rows + 1].
        sampled_slots: [num_sampled]: slots of the rows that are sampled, -1 for padding.
        logits_indices: [num_logits]: tokens whose logits are wanted, those to sample from first.
        tokens: Ids that the device does not have, and whatever follows them in the buffer.
        updates: [num_updates, 2]: places in the block tables, and block ids.
    """

    num_tokens: int
    rows: torch.Tensor
    query_start_loc: torch.Tensor
    sampled_slots: torch.Tensor
    logits_indices: torch.Tensor
    tokens: torch.Tensor
    updates: torch.Tensor


class Staging:
    """One buffer on the device, and as many pinned ones on the host as steps may be in flight.

    The parts that a captured graph reads begin at fixed places.

    Args:
        max_num_seqs: Most rows in a step.
        max_num_logits: Most tokens whose logits are wanted.
        max_num_tokens: Most tokens in a step.
        max_num_updates: Most changes of block tables that travel with a step.
        num_buffers: Steps in flight, at most.
        device: Where it goes.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_num_logits: int,
        max_num_tokens: int,
        max_num_updates: int,
        num_buffers: int,
        device: torch.device,
    ) -> None:
        sizes = (3 * max_num_seqs, max_num_seqs + 1, max_num_seqs, max_num_logits)
        self._starts = [0, *np.cumsum(sizes).tolist()]
        capacity = self._starts[-1] + max_num_tokens + 2 * max_num_updates
        is_gpu = device.type == "cuda"
        self._hosts = [torch.zeros(capacity, dtype=torch.int32, pin_memory=is_gpu) for _ in range(num_buffers)]
        self._device = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._turn = 0

    def send(
        self,
        rows: IntArray,
        query_start_loc: IntArray,
        sampled_slots: Sequence[int],
        logits_indices: Sequence[int],
        tokens: IntArray,
        updates: IntArray,
    ) -> StagedStep:
        """Copy a step's integers to the device; the fields of `StagedStep`, on the host.

        The buffer that is written was last used `num_buffers` steps ago, whose result has been taken since.
        """
        parts = [rows.reshape(-1), query_start_loc, np.array(sampled_slots), np.array(logits_indices)]
        parts += [tokens, updates.reshape(-1)]
        begin = self._starts[-1] + len(tokens)
        starts, end = [*self._starts, begin], begin + updates.size
        host = self._hosts[self._turn]
        self._turn = (self._turn + 1) % len(self._hosts)
        array = host.numpy()
        for start, part in zip(starts, parts, strict=True):
            array[start : start + len(part)] = part
        self._device[:end].copy_(host[:end], non_blocking=True)
        on_device = [self._device[start : start + len(part)] for start, part in zip(starts, parts, strict=True)]
        return StagedStep(
            num_tokens=int(query_start_loc[-1]),
            rows=on_device[0].view(-1, 3),
            query_start_loc=on_device[1],
            sampled_slots=on_device[2],
            logits_indices=on_device[3],
            tokens=self._device[self._starts[-1] :],  # an empty view would have no address for a graph to keep
            updates=on_device[5].view(-1, 2),
        )

    def padding(self, size: int) -> StagedStep:
        """Return what a graph for `size` rows reads, filled with rows of padding."""
        empty = np.zeros(0, dtype=np.int32)
        rows = np.tile(np.array([-1, 0, -1], dtype=np.int32), (size, 1))
        starts = np.arange(size + 1, dtype=np.int32)
        return self.send(rows, starts, [-1] * size, range(size), empty, empty)
