"""Running a decoder network step by step over a paged cache whose blocks are handed out in a shuffled order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from quire.core.model_spec import ModelSpec
from quire.graph.network import Network
from quire.ops.spec import dtype_of


class PagedRun:
    """Sequences that grow together, run by the reference interpreter.

    Caches start as NaN, so that reading a slot that was not written shows in the logits.
    """

    def __init__(
        self,
        network: Network,
        spec: ModelSpec,
        weights: Mapping[str, torch.Tensor],
        num_seqs: int,
        max_len: int,
        block_size: int = 4,
    ) -> None:
        self._network, self._weights, self._block_size = network, weights, block_size
        max_blocks = -(-max_len // block_size)
        order = torch.randperm(num_seqs * max_blocks, generator=torch.Generator().manual_seed(7)) + 1
        self._block_table = order.reshape(num_seqs, max_blocks).int()
        shape = (2, num_seqs * max_blocks + 1, spec.num_kv_heads, block_size, spec.head_dim)
        self._caches = {
            f"kv_cache.{layer}": torch.full(shape, float("nan"), dtype=dtype_of(spec.dtype))
            for layer in range(spec.num_layers)
        }
        self._lens = [0] * num_seqs

    def step(self, new_ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Run new tokens of every sequence; returns [new tokens, vocab_size] per sequence."""
        counts = [len(ids) for ids in new_ids]
        positions = [torch.arange(have, have + n) for have, n in zip(self._lens, counts, strict=True)]
        self._lens = [have + n for have, n in zip(self._lens, counts, strict=True)]
        slots = [
            self._block_table[i][at // self._block_size] * self._block_size + at % self._block_size
            for i, at in enumerate(positions)
        ]
        inputs = {
            "input_ids": torch.tensor([token for ids in new_ids for token in ids], dtype=torch.int32),
            "positions": torch.cat(positions).int(),
            "slot_mapping": torch.cat(slots).int(),
            "block_table": self._block_table,
            "seq_lens": torch.tensor(self._lens, dtype=torch.int32),
            "query_start_loc": torch.tensor([0, *counts], dtype=torch.int32).cumsum(0).int(),
            **self._caches,
        }
        logits = self._network.run(inputs, self._weights)["logits"]
        return list(logits.split(counts))

    def greedy(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> tuple[list[list[int]], list[torch.Tensor]]:
        """Prefill the prompts at once, then decode greedily.

        Returns:
            Per sequence all ids, the prompt's and the `num_tokens` new ones, and the logits of every position but the
            last id's.
        """
        ids = [list(prompt) for prompt in prompts]
        logits: list[list[torch.Tensor]] = [[] for _ in prompts]
        new: list[list[int]] = [list(prompt) for prompt in prompts]
        for _ in range(num_tokens):
            rows = self.step(new)
            new = [[int(row[-1].argmax())] for row in rows]
            for i, row in enumerate(rows):
                logits[i].append(row)
                ids[i] += new[i]
        return ids, [torch.cat(parts) for parts in logits]
