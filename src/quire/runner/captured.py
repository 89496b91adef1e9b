"""`CapturedSteps`: CUDA graphs of steps with one token per row, at a few sizes, captured when a model is loaded.

Launching the kernels of a step one by one takes the host longer than a small step takes the GPU; a graph is one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from quire.ops.triton.step.sampling import Kinds, Sampled
from quire.runner.staging import StagedStep

GREEDY = Kinds(is_random=False, is_filtered=False)
FILTERED = Kinds()
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)

T = TypeVar("T")
Forward = Callable[[StagedStep], torch.Tensor]
Sample = Callable[[torch.Tensor, torch.Tensor, Kinds], Sampled]


def graph_sizes(most: int) -> list[int]:
    """Return the numbers of rows at which steps are captured, ascending; the last is `most`, or 512 if that is less.

    A padded row costs little: up to some hundred rows a step takes as long as reading the weights.
    """
    largest = min(most, _SIZES[-1])
    return [size for size in _SIZES if size < largest] + [largest]


class CapturedSteps:
    """Graphs by number of rows.

    Args:
        sizes: Numbers of rows, ascending; none captures nothing.
        logits: [max(sizes), vocab_size]: where all of them leave their logits; without columns if there are none.
        padding: Returns a step of so many rows of padding, in the memory that every step of this size is staged in.
        forward: Lays out a staged step and runs the network; returns its logits.
        sample: Samples from logits for slots; None without logits.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        logits: torch.Tensor,
        padding: Callable[[int], StagedStep],
        forward: Forward,
        sample: Sample | None,
    ) -> None:
        self._sizes = list(sizes)
        self._logits = logits
        self._steps: dict[int, torch.cuda.CUDAGraph] = {}
        self._samples: dict[tuple[int, Kinds], tuple[torch.cuda.CUDAGraph, Sampled]] = {}
        if sizes:
            self._pool = torch.cuda.graph_pool_handle()
            for size in reversed(self._sizes):  # the largest first: the smaller ones find its memory free
                self._capture(size, padding(size), forward, sample)

    def size_for(self, num_rows: int) -> int:
        """Return the least size of at least `num_rows`, 0 if there is none."""
        return next((size for size in self._sizes if size >= num_rows), 0)

    def run(self, size: int) -> torch.Tensor:
        """Run a staged step of a size; returns its logits [size, vocab_size], which the next step overwrites."""
        self._steps[size].replay()
        return self._logits[:size]

    def sample(self, size: int, kinds: Kinds) -> Sampled | None:
        """Sample from the logits of a step that was just run; None if there is no graph for such rows."""
        if kinds.is_edited or kinds.num_logprobs is not None:
            return None
        graph, sampled = self._samples[size, FILTERED if kinds.is_random else GREEDY]
        graph.replay()
        return sampled

    def _capture(self, size: int, staged: StagedStep, forward: Forward, sample: Sample | None) -> None:
        logits = self._logits[:size]
        self._steps[size], _ = self._graph(lambda: logits.copy_(forward(staged)))
        if sample is None:
            return
        for kinds in (GREEDY, FILTERED):
            self._samples[size, kinds] = self._graph(partial(sample, logits, staged.sampled_slots, kinds))

    def _graph(self, run: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """Run once, so that kernels are compiled and libraries awake, then capture.

        Other threads may use the device meanwhile: nccl has one that watches its collectives.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()
        return graph, result
