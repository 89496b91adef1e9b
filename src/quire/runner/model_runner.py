"""`ModelRunner`: executes one step of a Plan for a batch of rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from quire.core.errors import CapacityError, RequestError
from quire.core.log import get_logger
from quire.core.request import ModelOutput, RowOutput, ScheduledRow, SchedulerOutput, TokenLogprobs
from quire.plan.device import this_device
from quire.plan.plan import Plan
from quire.plan.tactics import choices, unusable
from quire.runner.executor import Executor
from quire.runner.inputs import StepInputs, build_inputs
from quire.runner.rows import Row, Rows
from quire.sampling.logprobs import prompt_logprobs
from quire.sampling.row import SampledToken
from quire.sampling.sampler import sample

_log = get_logger(__name__)

DEVICE = "cpu"
"""Kind of device that the runner computes on."""


class ModelRunner:
    """Owns packed weights, KV cache and rows; turns a `SchedulerOutput` into a `ModelOutput`.

    Args:
        plan: What to execute.
        num_blocks: KV cache blocks, the null block 0 included.
        block_size: Tokens in a block.
        on_progress: Called with the number of weights loaded so far.
        on_logits: Called with the logits [num_logits, vocab_size] of each step, before anything is sampled.

    Raises:
        PlanError: A weight is missing or damaged.
        CapacityError: The KV cache cannot be allocated.
    """

    def __init__(
        self,
        plan: Plan,
        num_blocks: int,
        block_size: int,
        on_progress: Callable[[int], None] | None = None,
        on_logits: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        self._on_logits = on_logits
        self._plan = plan
        self._block_size = block_size
        self._num_blocks = num_blocks
        device = this_device(DEVICE)
        self._chosen = choices(plan.tactics, device, plan.network)
        for said in unusable(plan.tactics, device, plan.network):
            _log.info("tactics: %s", said)
        self._executor: Executor | None = self._load(on_progress)
        self._kv_cache: torch.Tensor | None = _allocate_kv_cache(plan, num_blocks, block_size)
        self._rows = Rows()

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> ModelOutput:
        """Run one step.

        Args:
            step: Rows to compute and what changed since the last step.

        Returns:
            One `RowOutput` per row of `step`, in order. A row that fails has its `error` set; the others are as if it
            had not been there.
        """
        self._rows.apply(step)
        self._prepare_blocks(step)
        if not step.rows:
            return ModelOutput()
        rows = [self._rows[s.row_id] for s in step.rows]
        inputs = build_inputs(step.rows, rows, self._block_size)
        executor, kv_cache = self._awake()
        caches = {f"kv_cache.{layer}": kv_cache[layer] for layer in range(len(kv_cache))}
        logits = executor.run({**inputs.tensors, **caches})["logits"]
        if "logits_indices" not in self._plan.network.inputs:  # the network computed those of all tokens
            logits = logits[inputs.tensors["logits_indices"]]
        if self._on_logits is not None:
            self._on_logits(logits)
        return self._sample(step, rows, inputs, logits)

    def num_bytes(self) -> int:
        """Return the bytes of weights and KV cache that this runner holds."""
        weights = self._executor.num_bytes() if self._executor is not None else 0
        return weights + (self._kv_cache.nbytes if self._kv_cache is not None else 0)

    def sleep(self, level: int) -> None:
        """Free the KV cache (level 1), at level 2 the weights as well; all rows are forgotten."""
        self._rows = Rows()
        self._kv_cache = None
        if level > 1:
            self._executor = None

    def wake_up(self) -> None:
        """Take back what `sleep` freed."""
        if self._executor is None:
            self._executor = self._load()
        if self._kv_cache is None:
            self._kv_cache = _allocate_kv_cache(self._plan, self._num_blocks, self._block_size)

    def _load(self, on_progress: Callable[[int], None] | None = None) -> Executor:
        return Executor(self._plan.network, self._plan.weights, DEVICE, on_progress, self._chosen)

    def _awake(self) -> tuple[Executor, torch.Tensor]:
        """Return executor and KV cache.

        Raises:
            CapacityError: They have been freed.
        """
        if self._executor is None or self._kv_cache is None:
            raise CapacityError("the model sleeps or is closed: expected weights and KV cache, got none; call wake_up.")
        return self._executor, self._kv_cache

    def _prepare_blocks(self, step: SchedulerOutput) -> None:
        """Copy shared blocks, then clear those that were somebody else's, so that nothing of theirs can leak."""
        _, kv_cache = self._awake()
        for source, destination in step.block_copies:  # first: a source may be fresh for somebody else in this step
            kv_cache[:, :, destination].copy_(kv_cache[:, :, source])
        if step.fresh_block_ids:
            plain = kv_cache.view(torch.int8) if kv_cache.dtype.itemsize == 1 else kv_cache  # no fill for float8
            plain.index_fill_(2, torch.tensor(step.fresh_block_ids), 0)

    def _sample(self, step: SchedulerOutput, rows: list[Row], inputs: StepInputs, logits: torch.Tensor) -> ModelOutput:
        sampled = [i for i, place in enumerate(inputs.sampled_logits) if place >= 0]
        places = [inputs.sampled_logits[i] for i in sampled]
        results = sample(_rows_of(logits, places), [rows[i].sampling for i in sampled]) if sampled else []
        by_row = dict(zip(sampled, results, strict=True))
        outputs = []
        for i, (scheduled, row) in enumerate(zip(step.rows, rows, strict=True)):
            try:
                prompt = _prompt_logprobs(scheduled, row, inputs.prompt_logits[i], logits)
            except RequestError as error:  # this row's logits are not finite; the others know nothing of it
                outputs.append(RowOutput(scheduled.row_id, error=str(error)))
                continue
            outputs.append(_row_output(row, by_row.get(i), prompt))
        return ModelOutput(tuple(outputs))


def _rows_of(logits: torch.Tensor, places: list[int]) -> torch.Tensor:
    """Return the rows of logits at `places`, without a copy if that is all of them."""
    return logits if len(places) == len(logits) else logits[torch.tensor(places, dtype=torch.int64)]


def _row_output(row: Row, result: SampledToken | None, prompt: tuple[TokenLogprobs, ...] | None) -> RowOutput:
    """Return what a step produced for one row, and tell the row of its new token."""
    if result is None:
        return RowOutput(row.row_id, prompt_logprobs=prompt)
    if result.error is not None:
        return RowOutput(row.row_id, error=result.error)
    row.append_token(result.token_id)
    logprobs = None if result.logprobs is None else (result.logprobs,)
    return RowOutput(row.row_id, (result.token_id,), logprobs, prompt)


def _prompt_logprobs(
    scheduled: ScheduledRow, row: Row, places: range, logits: torch.Tensor
) -> tuple[TokenLogprobs, ...] | None:
    """Return the logprobs of the prompt tokens that follow this step's prompt positions, None if nobody asked."""
    count = row.sampling.params.prompt_logprobs
    if count is None:
        return None
    first = scheduled.num_computed_tokens + 1
    following = row.token_ids[first : first + len(places)]
    return tuple(prompt_logprobs(logits[places.start : places.stop], following, count)) if places else ()


def _allocate_kv_cache(plan: Plan, num_blocks: int, block_size: int) -> torch.Tensor:
    """Return [num_layers, 2, num_blocks, num_kv_heads, block_size, head_dim] zeros, 64-byte aligned.

    numpy takes zeroed pages from the system, which costs nothing before they are written; `torch.zeros` writes them.
    """
    spec = plan.spec
    shape = (spec.num_layers, 2, num_blocks, spec.num_kv_heads, block_size, spec.head_dim)
    num_bytes = plan.kv_bytes_per_token * block_size * num_blocks
    try:
        memory = torch.from_numpy(np.zeros(num_bytes + 64, dtype=np.uint8))
        return memory[-memory.data_ptr() % 64 :][:num_bytes].view(plan.kv_cache.dtype).view(shape)
    except MemoryError:
        raise CapacityError(
            f"KV cache: expected {num_bytes / 2**20:,.0f} MiB in one piece, got a refusal from the system. "
            "Lower kv_cache_memory_bytes or gpu_memory_utilization."
        ) from None
