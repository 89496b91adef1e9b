"""`GPURunner`: starts the steps of a Plan on a GPU, and waits for none of them before its result is taken.

What a row is stays on the device: its block table, its sampling parameters, its newest token. A step brings a few
integers per row; kernels make the batch of them. A step of one token per row replays a graph captured at load, padded
to the next size that there is; any other launches its kernels one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quire.core.config import SchedulerConfig
from quire.core.errors import RequestError
from quire.core.log import get_logger
from quire.core.request import ModelOutput, RowOutput, ScheduledRow, SchedulerOutput
from quire.graph.nodes import spec
from quire.ops.triton.step.batch import keep_tokens, lay_out, update_tables
from quire.ops.triton.step.sampling import Edits, Kinds, Sampled
from quire.plan.device import torch_device
from quire.runner.captured import CapturedSteps, graph_sizes
from quire.runner.loaded import LoadedPlan
from quire.runner.outputs import FailedStep, failed_row, row_output
from quire.runner.rows import Row, Slots
from quire.runner.staging import StagedStep, Staging
from quire.sampling.device import SamplingState, kinds_of, tokens_of
from quire.sampling.grammar.compiler import GrammarCompiler
from quire.sampling.grammar.masks import masks_of
from quire.sampling.row import SampledToken, SamplingRow

_log = get_logger(__name__)
_MAX_UPDATES = 1 << 14
_NO_IDS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class _Share:
    """A row's part of a step.

    Attributes:
        scheduled: As it was asked for.
        row: Whose.
        place: Where its sampled token is among those of the step, -1 if none.
        prompt_logits: Where logits and hidden states of its prompt positions are, if anybody asked.
        output_index: Which of its generated tokens is sampled.
    """

    scheduled: ScheduledRow
    row: Row
    place: int
    prompt_logits: range
    output_index: int


class GPURunner:
    """A `ModelRunner` that is one step ahead of its results.

    Args:
        loaded: Weights and KV cache.
        config: Sizes; how rows are scheduled does not matter here.
        enforce_eager: Capture nothing.
        on_logits: Called with the logits [num_logits, vocab_size] of each step, before anything is sampled.
        grammars: Of the model's vocabulary, for rows with structured outputs.
    """

    max_ahead = 1

    def __init__(
        self,
        loaded: LoadedPlan,
        config: SchedulerConfig,
        enforce_eager: bool = False,
        on_logits: Callable[[torch.Tensor], None] | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self._loaded = loaded
        self._grammars = grammars
        self._config = config
        self._on_logits = on_logits
        self._device = torch_device(loaded.device)
        self._is_gathered = "logits_indices" in loaded.plan.network.inputs
        self._is_sampling = "logits" in loaded.plan.network.outputs  # or a part of a network, and others sample
        self.can_pool = "hidden_states" in loaded.plan.network.outputs
        self._enforce_eager = enforce_eager or self._device.type != "cuda"
        self._start()

    def _start(self) -> None:
        """Make everything that lives between steps."""
        config, loaded = self._config, self._loaded
        max_blocks = -(-config.max_model_len // config.block_size)
        self._slots = Slots(config.max_num_seqs, max_blocks, self._grammars)
        num_logits = max(config.max_num_logits, config.max_num_seqs)
        tokens, rows = config.max_num_batched_tokens, config.max_num_seqs
        self._staging = Staging(rows, num_logits, tokens, _MAX_UPDATES, self.max_ahead + 1, self._device)
        self._tables = self._zeros(rows, max_blocks)
        self._last_tokens = self._zeros(rows)
        self._inputs = {
            "input_ids": self._zeros(tokens),
            "positions": self._zeros(tokens),
            "slot_mapping": self._zeros(tokens),
            "seq_lens": self._zeros(rows),
            "block_table": self._zeros(rows, max_blocks),
        }
        self._sampling = SamplingState(rows, loaded.plan.spec.vocab_size, self._device)
        self._captured = self._capture([] if self._enforce_eager else graph_sizes(min(rows, tokens)))

    @torch.inference_mode()
    def _capture(self, sizes: list[int]) -> CapturedSteps:
        kept = self._no_logits(max(sizes, default=0))
        if self._is_sampling:
            logits = spec(self._loaded.plan.network.outputs["logits"])
            kept = kept.new_empty(len(kept), self._loaded.plan.spec.vocab_size, dtype=logits.dtype)
        sample = self._sample if self._is_sampling else None
        return CapturedSteps(sizes, kept, self._staging.padding, lambda staged: self._forward(staged)[0], sample)

    def _no_logits(self, num_rows: int) -> torch.Tensor:
        return torch.empty(num_rows, 0, device=self._device)

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> PendingStep | FailedStep:
        """Start one step. A device that has failed fails again when it is waited for.

        Raises:
            CapacityError: The model sleeps.
        """
        self._loaded.check_awake()
        try:
            return self._start_step(step)
        except Exception as error:
            _log.exception("a step of %d rows failed", len(step.rows))
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            return FailedStep(step, error)

    def _start_step(self, step: SchedulerOutput) -> PendingStep:
        updates = self._slots.apply(step)
        for new in step.new_rows:
            self._introduce(self._slots[new.row_id])
        self._copy_blocks(step.block_copies)
        shares = self._shares(step)
        size = self._captured.size_for(len(shares)) if _is_decode(shares) else 0
        staged = self._stage(shares, updates, size)
        update_tables(staged.updates, self._tables)
        logits, hidden_states = (self._captured.run(size), None) if size else self._forward(staged)
        if not self._is_sampling:
            return PendingStep((), None, None)
        if self._on_logits is not None:
            self._on_logits(logits)
        rows = [share.row for share in shares if share.place >= 0]
        sampled = self._sample_rows(logits, staged, rows, size) if rows else None
        for row in rows:
            row.sampling.output_token_ids.append(-1)  # its id comes with the result
        has_prompt_logits = any(share.prompt_logits and share.row.pooling is None for share in shares)
        is_pooled = any(share.row.pooling is not None for share in shares)
        return PendingStep(shares, sampled, logits if has_prompt_logits else None, hidden_states if is_pooled else None)

    def _introduce(self, row: Row) -> None:
        """Tell the sampler of a row; a row that it cannot serve fails alone."""
        try:
            self._sampling.set_row(row.slot, row.sampling)
        except RequestError as error:
            row.error = str(error)
        except Exception as error:
            _log.exception("row %d failed", row.row_id)
            row.error = f"{type(error).__name__} while its parameters were taken in."

    def _sample_rows(self, logits: torch.Tensor, staged: StagedStep, rows: Sequence[Row], size: int) -> Sampled:
        """Sample a step's rows; what those want that cannot be served is not looked at."""
        served = {index: row.sampling for index, row in enumerate(rows) if row.error is None}
        kinds = kinds_of(served.values())
        self._sampling.flush()
        sampled = self._captured.sample(size, kinds) if size else None
        if sampled is None:
            edits = None
            if kinds.is_edited:
                self._send_masks(rows, served)
                edits = self._sampling.edits_of(served)
            sampled = self._sample(logits[: len(staged.sampled_slots)], staged.sampled_slots, kinds, edits)
        return sampled

    def _send_masks(self, rows: Sequence[Row], served: Mapping[int, SamplingRow]) -> None:
        """Send what grammars allow; a row whose grammar fails does so alone. The device runs the network meanwhile."""
        masks, problems = masks_of(served)
        for index, problem in problems.items():
            rows[index].error = problem  # what is sampled for it is not looked at
        if masks:
            self._sampling.set_masks({rows[i].slot: rows[i].sampling for i in masks}, list(masks.values()))

    def _sample(self, logits: torch.Tensor, slots: torch.Tensor, kinds: Kinds, edits: Edits | None = None) -> Sampled:
        sampled = self._sampling.sample(logits, slots, kinds, edits)
        keep_tokens(sampled.token_ids, slots, self._last_tokens)
        return sampled

    def learn(self, sampled: Sequence[tuple[int, int]]) -> None:
        """Take in tokens that others have sampled, of a network without logits."""
        for row_id, token_id in sampled:
            if row_id in self._slots:
                self._slots[row_id].token_ids.append(token_id)

    def num_bytes(self) -> int:
        """Return the bytes of weights and KV cache that this runner holds."""
        return self._loaded.num_bytes()

    def check(self) -> None:
        """Do nothing: it needs no other process."""

    def metrics(self) -> dict[str, float]:
        """Return nothing: it counts nothing."""
        return {}

    def sleep(self, level: int) -> None:
        """Free the KV cache (level 1), at level 2 the weights as well; all rows are forgotten.

        Graphs hold the addresses of what is freed, so they go, too.
        """
        self._captured = self._capture([])
        self._slots = Slots(self._config.max_num_seqs, self._tables.shape[1], self._grammars)
        self._loaded.sleep(level)

    def wake_up(self) -> None:
        """Take back what `sleep` freed."""
        self._loaded.wake_up()
        self._start()

    def close(self) -> None:
        """Return everything."""
        self.sleep(2)

    def _zeros(self, *sizes: int) -> torch.Tensor:
        return torch.zeros(sizes, dtype=torch.int32, device=self._device)

    def _copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy shared blocks that somebody is about to write to, in all layers.

        Fresh blocks are not cleared: no kernel reads a position that its row has not written.
        """
        if copies:
            sources, destinations = self._upload(np.array(copies, dtype=np.int64)).unbind(1)
            cache = self._loaded.kv_cache
            plain = cache.view(torch.int8) if cache.dtype.itemsize == 1 else cache  # no copies by index for float8
            plain.index_copy_(2, destinations, plain.index_select(2, sources))

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor

    def _shares(self, step: SchedulerOutput) -> list[_Share]:
        """Return the rows of a step; logits to sample from come first, then those of prompt positions."""
        num_logits = sum(scheduled.is_sampled for scheduled in step.rows)
        shares, num_sampled = [], 0
        for scheduled in step.rows:
            row, wanted = self._slots[scheduled.row_id], 0
            if row.sampling.params.prompt_logprobs is not None:
                until = min(scheduled.num_computed_tokens + scheduled.num_scheduled_tokens, row.num_prompt_tokens - 1)
                wanted = max(0, until - scheduled.num_computed_tokens)
            place = num_sampled if scheduled.is_sampled else -1
            prompt_logits = range(num_logits, num_logits + wanted)
            shares.append(_Share(scheduled, row, place, prompt_logits, len(row.sampling.output_token_ids)))
            num_sampled += scheduled.is_sampled
            num_logits += wanted
        return shares

    def _stage(self, shares: Sequence[_Share], updates: np.ndarray, size: int) -> StagedStep:
        """Send a step's integers, padded to `size` rows if it is not 0."""
        num_padding = max(0, size - len(shares))
        counts = [share.scheduled.num_scheduled_tokens for share in shares]
        starts = np.zeros(len(shares) + num_padding + 1, dtype=np.int32)
        np.cumsum(counts + [1] * num_padding, out=starts[1:])
        rows, tokens, num_tokens = [], [_NO_IDS], 0
        for share in shares:
            begin = share.scheduled.num_computed_tokens
            ids = share.row.token_ids[begin : begin + share.scheduled.num_scheduled_tokens]
            rows.append((share.row.slot, begin, num_tokens if ids else -1))
            if ids:
                tokens.append(np.array(ids, dtype=np.int32))
                num_tokens += len(ids)
        rows += [(-1, 0, -1)] * num_padding
        slots = [share.row.slot if share.row.error is None else -1 for share in shares if share.place >= 0]
        slots += [-1] * num_padding
        indices = [int(end) - 1 for end, share in zip(starts[1:], shares, strict=False) if share.place >= 0]
        indices += range(len(shares), len(shares) + num_padding)
        for start, share in zip(starts, shares, strict=False):
            indices += range(int(start), int(start) + len(share.prompt_logits))
        if len(updates) > _MAX_UPDATES:
            update_tables(self._upload(updates), self._tables)
            updates = updates[:0]
        return self._staging.send(
            np.array(rows, dtype=np.int32), starts, slots, indices, np.concatenate(tokens), updates
        )

    def _forward(self, staged: StagedStep) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Lay out a step and run the network.

        Returns:
            Logits [num_logits, vocab_size], or without columns; hidden states [num_logits, hidden_size], if there are.
        """
        num_rows = len(staged.rows)
        lay_out(
            staged.rows,
            staged.query_start_loc,
            staged.tokens,
            self._last_tokens,
            self._tables,
            self._inputs,
            self._config.block_size,
        )
        inputs = {name: tensor[: staged.num_tokens] for name, tensor in self._inputs.items()}
        inputs["seq_lens"] = self._inputs["seq_lens"][:num_rows]
        inputs["block_table"] = self._inputs["block_table"][:num_rows]
        inputs |= {"query_start_loc": staged.query_start_loc, "logits_indices": staged.logits_indices}
        outputs = self._loaded.executor.run({**inputs, **self._loaded.caches})
        if not self._is_sampling:
            return self._no_logits(len(staged.logits_indices)), None
        logits = outputs["logits"]
        return logits if self._is_gathered else logits[staged.logits_indices], outputs.get("hidden_states")


def _is_decode(shares: Sequence[_Share]) -> bool:
    """Return whether every row computes one token, and is sampled; and nobody wants more, which graphs do not keep."""
    return all(s.scheduled.num_scheduled_tokens == 1 and s.place >= 0 and s.row.pooling is None for s in shares)


class PendingStep:
    """A step that a GPU works on.

    Args:
        shares: Its rows.
        sampled: Their tokens, on the device; None if none were sampled.
        logits: If logprobs of prompt positions are wanted.
        hidden_states: Those of the same tokens, if a row pools its own.
    """

    def __init__(
        self,
        shares: Sequence[_Share],
        sampled: Sampled | None,
        logits: torch.Tensor | None,
        hidden_states: torch.Tensor | None = None,
    ) -> None:
        self._shares = shares
        num_sampled = sum(share.place >= 0 for share in shares)
        self._sampled = None if sampled is None else _on_host(sampled, num_sampled)
        self._logits, self._hidden_states = logits, hidden_states
        self._is_done: torch.cuda.Event | None = None
        if torch.cuda.is_available():
            self._is_done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._is_done.record()

    def is_ready(self) -> bool:
        """Return whether the GPU is done with it."""
        return self._is_done is None or bool(self._is_done.query())  # type: ignore[no-untyped-call]

    def result(self) -> ModelOutput:
        """Wait for the step, and return what it produced."""
        if self._is_done is not None:
            self._is_done.synchronize()
        rows = [share.row.sampling for share in self._shares if share.place >= 0]
        tokens = tokens_of(self._sampled, rows) if self._sampled is not None else []
        return ModelOutput(tuple(self._output(share, tokens) for share in self._shares))

    def _output(self, share: _Share, tokens: Sequence[SampledToken]) -> RowOutput:
        row = share.row
        if row.error is not None:
            return RowOutput(row.row_id, error=row.error)
        token = tokens[share.place] if share.place >= 0 else None
        if token is not None and token.error is None:
            row.sampling.output_token_ids[share.output_index] = token.token_id
        try:
            news = row.prompt_news(share.scheduled, share.prompt_logits, share.place, self._logits, self._hidden_states)
            return row_output(row.row_id, token, *news)
        except RequestError as error:  # this row's logits are not finite; the others know nothing of it
            return RowOutput(row.row_id, error=str(error))
        except Exception as error:
            _log.exception("row %d failed", row.row_id)
            return failed_row(row.row_id, error)


def _on_host(sampled: Sampled, num_rows: int) -> Sampled:
    """Return tensors of the host for all but the padding; they are filled when the device gets there."""

    def copy(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None or not tensor.is_cuda:
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    reported = (sampled.logprobs, sampled.logprob_ids, sampled.ranks)
    outcomes = copy(sampled.outcomes)
    assert outcomes is not None
    return Sampled(outcomes[:, :num_rows], *(copy(None if each is None else each[:num_rows]) for each in reported))
