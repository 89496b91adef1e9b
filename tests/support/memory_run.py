"""Running a plan's worst steps for real, with all that they hold on record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest
import torch

from quire.core.config import SchedulerConfig
from quire.core.request import NewRow, ScheduledRow, SchedulerOutput
from quire.core.sampling_params import SamplingParams
from quire.graph.nodes import is_call, spec
from quire.ops.cpu import linear
from quire.ops.cpu.attention_bytes import worst_candidates
from quire.plan.plan import Plan
from quire.runner import cpu_runner
from quire.runner.execution import executor
from quire.runner.loaded import LoadedPlan
from quire.sampling import compiled
from tests.support.memory_trace import MemoryTrace, Span

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True)
class Measured:
    """Most bytes held: by weights, the KV cache, a step beside them; and the call in which that was."""

    weights: int
    kv: int
    step: int
    largest: str


def measure(plan: Plan, config: SchedulerConfig) -> Measured:
    """Load a plan and run the steps of which one is the worst.

    The proofs of row counts, which a process makes once, are forgotten before, and what they keep is overhead. Weights
    are read by this thread, the only one on record.
    """
    linear._PROOFS.clear()
    trace = MemoryTrace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "ReadAhead", lambda source, order, joined: nullcontext(source))
        trace.start()
        try:
            with trace.span("load"):
                loaded = LoadedPlan(plan, config.num_blocks, config.block_size, "cpu")
                runner = cpu_runner.CPURunner(loaded, with_seats(config))
            _record(runner, trace, patch)
            for step in worst_steps(plan, config):
                runner.execute(step)
        finally:
            trace.stop()
    load, *steps = trace.spans()
    most, largest = max(_beside(steps, load.left_tensors, _sampling_scratch(plan.spec.vocab_size)))
    probes = sum(proofs.probe.rows.nbytes for proofs in linear._PROOFS.values())
    kept = runner._loaded.executor.workspace_bytes()
    kv = runner._loaded.kv_cache.nbytes
    return Measured(load.left_tensors - probes - kv, kv, most + kept, largest)


def _record(runner: cpu_runner.CPURunner, trace: MemoryTrace, patch: pytest.MonkeyPatch) -> None:
    """Make a span of each call of the network and of sampling, and an empty one before the inputs of a step."""
    build, sample = cpu_runner.InputBuilder.build, runner._sample

    def build_inputs(*args):
        with trace.span("start"):
            pass
        return build(*args)

    def sampled(*args):
        with trace.span("choose"):  # the rows of logits have been chosen since the network's last call
            pass
        with trace.span("sample"):
            return sample(*args)

    def recorded(call):
        def run(*args, **kwargs):
            with trace.span(call.run.__qualname__):
                return call.run(*args, **kwargs)

        return replace(call, run=run)

    patch.setattr(cpu_runner.InputBuilder, "build", build_inputs)
    runner._sample = sampled
    executor_ = runner._loaded.executor
    executor_._calls = [recorded(call) for call in executor_._calls]


def _beside(spans: Sequence[Span], weights: int, scratch: int) -> Iterator[tuple[int, str]]:
    """Yield what each span of a step held beside weights, and what Python held before the step.

    Compiled kernels take `scratch` to sample, which is not on record.
    """
    python = 0
    for span in spans:
        if span.name == "start":
            python = span.most_python
        unrecorded = scratch if span.name == "sample" else 0
        yield span.most_tensors - weights + span.most_python - python + unrecorded, span.name


def with_seats(config: SchedulerConfig) -> SchedulerConfig:
    """Return a configuration with a slot for each row of the worst steps: one of them has a row too many."""
    return replace(config, max_num_seqs=config.max_num_seqs + 1)


def _sampling_scratch(vocab_size: int) -> int:
    if not compiled.is_compiled(torch.device("cpu")):
        return 0
    return compiled.scratch_bytes(vocab_size, torch.get_num_threads())


def group_of(plan: Plan) -> int:
    """Return how many query heads share a KV head."""
    attention = next(node for node in plan.network.calls() if is_call(node, "attention"))
    return spec(attention).shape[1] // plan.spec.num_kv_heads


def worst_steps(plan: Plan, config: SchedulerConfig) -> Iterator[SchedulerOutput]:
    """Yield the steps in which attention is worst, and one with as many logits as there may be."""
    tokens, seqs = config.max_num_batched_tokens, config.max_num_seqs
    for query_lens in worst_candidates(tokens, seqs, config.max_model_len, group_of(plan)):
        yield step_of(
            query_lens,
            config,
            [_sampling(i, plan.spec.vocab_size) for i in range(len(query_lens))],
            plan.spec.vocab_size,
        )
    for num_decodes in {0, min(seqs, tokens) - 2}:
        if num_decodes >= 0:
            yield _most_logits(config, num_decodes, plan.spec.vocab_size)


def _most_logits(config: SchedulerConfig, num_decodes: int, vocab_size: int) -> SchedulerOutput:
    """Return a step with as many logits as there may be: of decoding rows and a prompt's, none for another prompt."""
    longest = config.max_model_len - 1
    count = max(1, min(config.max_num_logits - num_decodes, config.max_num_batched_tokens - num_decodes - 1, longest))
    rest = max(1, min(config.max_num_batched_tokens - num_decodes - count, longest))
    params = [_sampling(i, vocab_size) for i in range(num_decodes + 1)]
    params[-1] = replace(params[-1], prompt_logprobs=0)
    step = step_of(np.array([1] * num_decodes + [count, rest]), config, [*params, GREEDY], vocab_size)
    *others, last = step.rows
    return msgspec.structs.replace(step, rows=(*others, msgspec.structs.replace(last, is_sampled=False)))


def _sampling(i: int, vocab_size: int) -> SamplingParams:
    """Return the parameters of a row: rows of each kind, most of them of the one that takes most."""
    greedy = GREEDY if i == 0 else SamplingParams(seed=i)
    return (
        greedy
        if i < 2
        else replace(greedy, top_k=vocab_size - 1, frequency_penalty=0.5, repetition_penalty=1.1, logprobs=2)
    )


def step_of(
    query_lens: np.ndarray, config: SchedulerConfig, params: Sequence[SamplingParams], vocab_size: int
) -> SchedulerOutput:
    """Return a step of sequences that are as long as they may be, less one; they share what blocks there are."""
    new, scheduled = [], []
    for i, (count, sampling) in enumerate(zip(query_lens.tolist(), params, strict=True)):
        length = max(count, config.max_model_len - 1)
        used = np.arange(-(-length // config.block_size))
        blocks = tuple((1 + (i + used) % (config.num_blocks - 1)).tolist())
        new.append(NewRow(i, tuple(k % vocab_size for k in range(length)), length, blocks, sampling))
        scheduled.append(ScheduledRow(i, length - count, count, (), True))
    return SchedulerOutput(tuple(scheduled), tuple(new), removed_row_ids=tuple(range(len(new))))
