"""`CPURunner`: executes one step of a Plan for a batch of rows, there and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from quire.core.config import SchedulerConfig
from quire.core.errors import RequestError
from quire.core.log import get_logger
from quire.core.request import ModelOutput, RowOutput, ScheduledRow, SchedulerOutput
from quire.runner.inputs import InputBuilder, StepInputs
from quire.runner.loaded import LoadedPlan
from quire.runner.outputs import FailedStep, failed_row, row_output
from quire.runner.rows import PromptNews, Row, Rows
from quire.sampling.grammar.compiler import GrammarCompiler
from quire.sampling.row import SampledToken
from quire.sampling.sampler import Sampler

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
        config: Sizes; how rows are scheduled does not matter here.
        on_logits: Called with the logits [num_logits, vocab_size] of each step, before anything is sampled.
        grammars: Of the model's vocabulary, for rows with structured outputs.
    """

    max_ahead = 0

    def __init__(
        self,
        loaded: LoadedPlan,
        config: SchedulerConfig,
        on_logits: Callable[[torch.Tensor], None] | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self._loaded = loaded
        self._config = config
        self._on_logits = on_logits
        self._grammars = grammars
        self._is_gathered = "logits_indices" in loaded.plan.network.inputs
        self._forget_rows()
        self.can_pool = "hidden_states" in loaded.plan.network.outputs

    def execute(self, step: SchedulerOutput) -> Done | FailedStep:
        """Run one step.

        Raises:
            CapacityError: The model sleeps.
        """
        self._loaded.check_awake()
        with torch.inference_mode():  # as a decorator it takes twice as long
            try:
                if step.removed_row_ids:
                    self._forget_last_step()
                self._rows.apply(step)
                self._prepare_blocks(step)
                return Done(ModelOutput(tuple(self._outputs(step.rows))))
            except Exception as error:
                _log.exception("a step of %d rows failed", len(step.rows))
                return FailedStep(step, error)

    def _outputs(self, shares: Sequence[ScheduledRow]) -> list[RowOutput]:
        """Compute the rows that can be, and return the outputs of all in order."""
        rows = self._rows.of(shares)
        errors = [row.error for row in rows]
        if not any(errors):
            return self._compute(shares, rows)
        usable = [place for place, error in enumerate(errors) if error is None]
        computed = iter(self._compute([shares[place] for place in usable], [rows[place] for place in usable]))
        return [next(computed) if row.error is None else RowOutput(row.row_id, error=row.error) for row in rows]

    def _compute(self, shares: Sequence[ScheduledRow], rows: list[Row]) -> list[RowOutput]:
        """Compute rows together; if that fails one by one, for a row gets the same alone: all but the one at fault.

        What several ranks compute together is not tried again: the others would not.

        Raises:
            Exception: Every single one failed.
        """
        try:
            return self._forward(shares, rows) if rows else []
        except Exception:
            if len(rows) == 1 or self._loaded.is_shared:
                raise
            _log.exception("a step of %d rows failed; each is computed alone", len(rows))
        outputs, problems = [], []
        for share, row in zip(shares, rows, strict=True):
            try:
                outputs += self._forward([share], [row])
            except Exception as error:
                problems.append(error)
                outputs.append(failed_row(row.row_id, error))
        if len(problems) == len(rows):
            raise problems[-1]
        return outputs

    def _forward(self, shares: Sequence[ScheduledRow], rows: list[Row]) -> list[RowOutput]:
        """Run the network and choose tokens; rows are told when nothing can fail any more, so it can be done again."""
        inputs = self._inputs.build(shares, rows, self._rows.tables)
        outputs = self._loaded.executor.run(inputs.tensors | self._loaded.caches)
        if "logits" not in outputs:  # a part of a network: others sample, and `learn` tells what
            return [RowOutput(row.row_id) for row in rows]
        logits = outputs.pop("logits")  # nothing else holds on to them: where rows are chosen, the rest is free
        if not self._is_gathered:  # the network computed those of all tokens
            logits = logits[inputs.tensors["logits_indices"]]
        if self._on_logits is not None:
            self._on_logits(logits)
        return self._sample(shares, rows, inputs, logits, outputs.get("hidden_states"))

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
        self._forget_rows()
        self._loaded.sleep(level)

    def wake_up(self) -> None:
        """Take back what `sleep` freed."""
        self._loaded.wake_up()

    def close(self) -> None:
        """Return everything."""
        self.sleep(2)

    def _forget_rows(self) -> None:
        max_blocks = -(-self._config.max_model_len // self._config.block_size)
        self._rows = Rows(self._config.max_num_seqs, max_blocks, self._grammars)
        self._forget_last_step()

    def _forget_last_step(self) -> None:
        """Let go of what was found out about its rows, and so of those that are no more."""
        self._inputs, self._sampler = InputBuilder(self._config.block_size), Sampler()

    def _prepare_blocks(self, step: SchedulerOutput) -> None:
        """Copy shared blocks, then clear those that were somebody else's if a call reads what no token has written."""
        kv_cache = self._loaded.kv_cache
        for source, destination in step.block_copies:  # first: a source may be fresh for somebody else in this step
            kv_cache[:, :, destination].copy_(kv_cache[:, :, source])
        if step.fresh_block_ids and self._loaded.executor.reads_unwritten:
            plain = kv_cache.view(torch.int8) if kv_cache.dtype.itemsize == 1 else kv_cache  # no fill for float8
            for first, last in _runs(step.fresh_block_ids):  # a third of the time that an index takes
                plain[:, :, first:last].zero_()

    def _sample(
        self,
        shares: Sequence[ScheduledRow],
        rows: list[Row],
        inputs: StepInputs,
        logits: torch.Tensor,
        hidden_states: torch.Tensor | None,
    ) -> list[RowOutput]:
        sampled = inputs.sampled
        wanted = logits[: len(sampled)] if len(sampled) < len(logits) else logits
        tokens = self._sampler.sample(wanted, [rows[place].sampling for place in sampled])
        if len(sampled) == len(rows) and not inputs.prompt_logits:
            return list(map(_output, rows, tokens))
        token_of = dict(zip(sampled, tokens, strict=True))
        news = {
            place: partial(
                rows[place].prompt_news, shares[place], positions, sampled.index(place) if place in token_of else -1,
                logits, hidden_states,
            )
            for place, positions in inputs.prompt_logits.items()
        }  # fmt: skip
        return [_output(row, token_of.get(place), news.get(place)) for place, row in enumerate(rows)]


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and one past the last of ids that follow one another."""
    first = last = ids[0]
    for block_id in ids:
        if block_id != last:
            yield first, last
            first = block_id
        last = block_id + 1
    yield first, last


def _output(row: Row, token: SampledToken | None, prompt_news: Callable[[], PromptNews] | None = None) -> RowOutput:
    """Tell a row what it got, and return that; whatever goes wrong, the others know nothing of it."""
    try:
        prompt, embedding = (None, None) if prompt_news is None else prompt_news()
        if token is not None and token.error is None:
            row.append_token(token.token_id)
        return row_output(row.row_id, token, prompt, embedding)
    except RequestError as error:
        return RowOutput(row.row_id, error=str(error))
    except Exception as error:
        _log.exception("row %d failed", row.row_id)
        return RowOutput(row.row_id, error=f"{type(error).__name__} while a token was taken in.")
