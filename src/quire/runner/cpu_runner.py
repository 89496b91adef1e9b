"""`CPURunner`: executes one step of a Plan for a batch of rows, there and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from quire.core.errors import RequestError
from quire.core.log import get_logger
from quire.core.request import ModelOutput, RowOutput, ScheduledRow, SchedulerOutput
from quire.runner.inputs import StepInputs, build_inputs
from quire.runner.loaded import LoadedPlan
from quire.runner.outputs import Pooling, prompt_logprobs_of, row_output
from quire.runner.rows import Row, Rows
from quire.sampling.grammar.compiler import GrammarCompiler
from quire.sampling.row import SampledToken
from quire.sampling.sampler import sample

_log = get_logger(__name__)


class Done:
    """A step that is over.

    Args:
        output: What it produced.
    """

    __slots__ = ("_output",)

    def __init__(self, output: ModelOutput) -> None:
        self._output = output

    def is_ready(self) -> bool:
        """Return that it is over."""
        return True

    def result(self) -> ModelOutput:
        """Return what the step produced."""
        return self._output


class CPURunner:
    """A `ModelRunner` whose steps are done when `execute` returns.

    Args:
        loaded: Weights and KV cache.
        on_logits: Called with the logits [num_logits, vocab_size] of each step, before anything is sampled.
        grammars: Of the model's vocabulary, for rows with structured outputs.
    """

    max_ahead = 0

    def __init__(
        self,
        loaded: LoadedPlan,
        on_logits: Callable[[torch.Tensor], None] | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self._loaded = loaded
        self._on_logits = on_logits
        self._grammars = grammars
        self._rows = Rows(grammars)
        self.can_pool = "hidden_states" in loaded.plan.network.outputs

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> Done:
        """Run one step."""
        self._rows.apply(step)
        self._prepare_blocks(step)
        if not step.rows:
            return Done(ModelOutput())
        rows = [self._rows[s.row_id] for s in step.rows]
        inputs = build_inputs(step.rows, rows, self._loaded.block_size)
        outputs = self._loaded.executor.run({**inputs.tensors, **self._loaded.caches()})
        if "logits" not in outputs:  # a part of a network: others sample, and `learn` tells what
            return Done(ModelOutput())
        logits = outputs.pop("logits")  # nothing else holds on to them: where rows are chosen, the rest is free
        if "logits_indices" not in self._loaded.plan.network.inputs:  # the network computed those of all tokens
            logits = logits[inputs.tensors["logits_indices"]]
        if self._on_logits is not None:
            self._on_logits(logits)
        return Done(self._sample(step, rows, inputs, logits, outputs.get("hidden_states")))

    def learn(self, sampled: Sequence[tuple[int, int]]) -> None:
        """Take in tokens that others have sampled, of a network without logits."""
        for row_id, token_id in sampled:
            if row_id in self._rows:
                self._rows[row_id].append_token(token_id)

    def num_bytes(self) -> int:
        """Return the bytes of weights and KV cache that this runner holds."""
        return self._loaded.num_bytes()

    def check(self) -> None:
        """Do nothing: it needs no other process."""

    def metrics(self) -> dict[str, float]:
        """Return nothing: it counts nothing."""
        return {}

    def sleep(self, level: int) -> None:
        """Free the KV cache (level 1), at level 2 the weights as well; all rows are forgotten."""
        self._rows = Rows(self._grammars)
        self._loaded.sleep(level)

    def wake_up(self) -> None:
        """Take back what `sleep` freed."""
        self._loaded.wake_up()

    def close(self) -> None:
        """Return everything."""
        self.sleep(2)

    def _prepare_blocks(self, step: SchedulerOutput) -> None:
        """Copy shared blocks, then clear those that were somebody else's, so that nothing of theirs can leak."""
        kv_cache = self._loaded.kv_cache
        for source, destination in step.block_copies:  # first: a source may be fresh for somebody else in this step
            kv_cache[:, :, destination].copy_(kv_cache[:, :, source])
        if step.fresh_block_ids:
            plain = kv_cache.view(torch.int8) if kv_cache.dtype.itemsize == 1 else kv_cache  # no fill for float8
            plain.index_fill_(2, torch.tensor(step.fresh_block_ids), 0)

    def _sample(
        self,
        step: SchedulerOutput,
        rows: list[Row],
        inputs: StepInputs,
        logits: torch.Tensor,
        hidden_states: torch.Tensor | None,
    ) -> ModelOutput:
        sampled = [i for i, place in enumerate(inputs.sampled_logits) if place >= 0]
        places = [inputs.sampled_logits[i] for i in sampled]
        results = sample(_rows_of(logits, places), [rows[i].sampling for i in sampled]) if sampled else []
        by_row = dict(zip(sampled, results, strict=True))
        outputs = []
        for i, (scheduled, row) in enumerate(zip(step.rows, rows, strict=True)):
            wanted = _Places(inputs.prompt_logits[i], inputs.sampled_logits[i])
            outputs.append(_output(scheduled, row, wanted, logits, hidden_states, by_row.get(i)))
        return ModelOutput(tuple(outputs))


class _Places(NamedTuple):
    """Where a row's logits and hidden states are: of prompt positions, and of the last token, -1 if not wanted."""

    prompt: range
    sampled: int


def _output(
    scheduled: ScheduledRow,
    row: Row,
    places: _Places,
    logits: torch.Tensor,
    hidden_states: torch.Tensor | None,
    result: SampledToken | None,
) -> RowOutput:
    """Tell a row what it got, and return that; whatever goes wrong, the others know nothing of it."""
    try:
        prompt_logits = logits[places.prompt.start : places.prompt.stop]
        prompt = prompt_logprobs_of(scheduled, row.sampling, row.token_ids, prompt_logits)
        embedding = None if row.pooling is None else _pool(row.pooling, places, hidden_states)
        if result is not None and result.error is None:
            row.append_token(result.token_id)
        return row_output(row.row_id, result, prompt, embedding)
    except RequestError as error:
        return RowOutput(row.row_id, error=str(error))
    except Exception as error:
        _log.exception("row %d failed", row.row_id)
        return RowOutput(row.row_id, error=f"{type(error).__name__} while a token was taken in.")


def _pool(pooling: Pooling, places: _Places, hidden_states: torch.Tensor | None) -> tuple[float, ...] | None:
    """Take in a row's hidden states; return the vector if they are all there."""
    assert hidden_states is not None, "nobody may ask for what the plan does not give"
    pooling.add(hidden_states[places.prompt.start : places.prompt.stop])
    if places.sampled < 0:
        return None
    pooling.add(hidden_states[places.sampled : places.sampled + 1])
    return pooling.vector()


def _rows_of(logits: torch.Tensor, places: list[int]) -> torch.Tensor:
    """Return the rows of logits at `places`, without a copy if that is all of them."""
    return logits if len(places) == len(logits) else logits[torch.tensor(places, dtype=torch.int64)]
