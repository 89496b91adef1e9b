"""What completions, chats and responses share: running prompts, merging their outputs, counting tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from quire.core.request import CompletionOutput, RequestMetrics, RequestOutput
from quire.core.sampling_params import RequestOutputKind, SamplingParams
from quire.server.errors import aborted, failed_row, invalid
from quire.server.protocol.common import (
    MAX_PROMPTS,
    PromptLogprob,
    PromptLogprobs,
    PromptTokensDetails,
    SamplingFields,
    Timing,
    Usage,
)
from quire.server.routes.endpoint import Call

# Prompts of one request that are in the engine at once, and outputs of them that may wait for a slow reader.
_MAX_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class PromptIds:
    """A prompt as the engine takes it.

    Attributes:
        token_ids: Ids.
        text: What they came from, if it was text.
    """

    token_ids: list[int]
    text: str | None = None


async def read_prompts(
    call: Call, given: str | list[str | int | list[int]], *, name: str = "prompt", n: int = 1, special: bool = True
) -> list[PromptIds]:
    """Return prompts as ids.

    Args:
        call: The request.
        given: Text, texts, ids, or lists of ids.
        name: The field that they came in.
        n: How many continuations of each are wanted.
        special: Add special tokens to texts.

    Raises:
        ApiError: The list is empty, mixed or too long.
        RequestError: A text holds what is no Unicode.
    """
    items: Sequence[str | int | list[int]] = [given] if isinstance(given, str) else given
    length = call.served.max_model_len
    if isinstance(items[0], int) and len(items) > length:
        raise invalid(f"{name}: expected at most {length} token ids, got {len(items)}.")
    if not isinstance(items[0], int) and len(items) * n > MAX_PROMPTS:
        raise invalid(f"{name}: expected prompts times n of at most {MAX_PROMPTS}, got {len(items)} times {n}.")
    kinds = {type(item) for item in items}
    if len(kinds) != 1:
        raise invalid(f"{name}: expected texts, token ids or lists of token ids, got several kinds in one list.")
    if kinds == {int}:
        return [PromptIds(list(items))]  # type: ignore[arg-type]
    if kinds == {list}:
        return [PromptIds(item) for item in items]  # type: ignore[arg-type]
    call.tokenizer()
    return [PromptIds(await call.context.engine.tokenize(text, add_special_tokens=special), text) for text in items]  # type: ignore[arg-type]


@dataclass(slots=True)
class Tally:
    """Tokens of a request so far.

    Attributes:
        keeps_generated: False if the one token that is generated is thrown away.
        prompt: Of all prompts.
        generated: Of all continuations.
        cached: Prompt tokens that came from the prefix cache.
    """

    keeps_generated: bool = True
    prompt: int = 0
    generated: int = 0
    cached: int = 0
    _seen: dict[int, int] = field(default_factory=dict)

    def add(self, index: int, output: RequestOutput, *, is_delta: bool) -> None:
        """Count an output of prompt `index`."""
        if index not in self._seen:
            self._seen[index] = 0
            self.prompt += len(output.prompt_token_ids)
        if output.num_cached_tokens > self._seen[index]:
            self.cached += output.num_cached_tokens - self._seen[index]
            self._seen[index] = output.num_cached_tokens
        if self.keeps_generated and (is_delta or output.finished):
            self.generated += sum(len(completion.token_ids) for completion in output.outputs)

    def usage(self) -> Usage:
        """Return it as clients read it."""
        return Usage(self.prompt, self.generated, self.prompt + self.generated, PromptTokensDetails(self.cached))

    def notes(self) -> dict[str, int]:
        """Return it for the log."""
        return {"prompt_tokens": self.prompt, "cached_tokens": self.cached, "completion_tokens": self.generated}


async def run(
    call: Call, body: SamplingFields, request_id: str, prompts: Sequence[PromptIds], params: SamplingParams
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Complete prompts; leaving the iterator ends all of them.

    Args:
        call: The request.
        body: Its priority and salt.
        request_id: From which the engine's ids are made.
        prompts: What to complete.
        params: How, for each.

    Yields:
        The index of a prompt, and an output of it.

    Raises:
        ApiError, QuireError: As the engine says; an output that ended with an error is one, too.
    """
    if len(prompts) == 1:
        async with aclosing(_run_one(call, body, request_id, prompts[0], params)) as outputs:
            async for output in outputs:
                yield 0, output
        return
    runs = [_run_one(call, body, f"{request_id}-{i}", prompt, params) for i, prompt in enumerate(prompts)]
    async with aclosing(_merge(runs)) as merged:
        async for item in merged:
            yield item


async def _run_one(
    call: Call, body: SamplingFields, request_id: str, prompt: PromptIds, params: SamplingParams
) -> AsyncGenerator[RequestOutput, None]:
    """Complete one prompt; never longer than the engine's own iterator lives."""
    outputs: AsyncIterator[RequestOutput] = call.context.engine.generate(
        request_id,
        prompt.token_ids,
        params,
        prompt=prompt.text,
        priority=body.priority or 0,
        cache_salt=call.salt(body.cache_salt),
    )
    traces, num_generated = call.context.traces, 0
    try:
        async for output in outputs:
            if traces is not None:
                so_far = num_generated if params.output_kind is RequestOutputKind.DELTA else 0
                num_generated = so_far + sum(len(completion.token_ids) for completion in output.outputs)
                if output.finished:
                    traces.note(call.served.name, call.exchange.trace_parent, output, num_generated)
            _check(output.outputs)
            yield output
    finally:
        if isinstance(outputs, AsyncGenerator):
            await outputs.aclose()


def _check(completions: Sequence[CompletionOutput]) -> None:
    """Raise if a continuation did not end well."""
    for completion in completions:
        if completion.finish_reason == "error":
            raise failed_row()
        if completion.finish_reason == "abort":
            raise aborted()


async def _merge(
    runs: Sequence[AsyncGenerator[RequestOutput, None]],
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Yield outputs of several prompts as they come; the first error ends all."""
    queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue(_MAX_AT_ONCE)

    seats = asyncio.Semaphore(_MAX_AT_ONCE)

    async def pump(index: int, outputs: AsyncGenerator[RequestOutput, None]) -> None:
        try:
            async with seats, aclosing(outputs):
                async for output in outputs:
                    await queue.put((index, output))
            await queue.put((index, None))
        except Exception as error:  # raised again where the outputs are read
            await queue.put((index, error))

    tasks = [asyncio.create_task(pump(index, outputs)) for index, outputs in enumerate(runs)]
    try:
        num_running = len(tasks)
        while num_running:
            index, output = await queue.get()
            if isinstance(output, Exception):
                raise output
            if output is None:
                num_running -= 1
            else:
                yield index, output
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def prompt_logprobs(output: RequestOutput) -> PromptLogprobs:
    """Return the logprobs of a prompt's positions, by token id."""
    return [
        None if entry is None else
        {str(token): PromptLogprob(value.logprob, value.rank, value.decoded_token) for token, value in entry.items()}
        for entry in output.prompt_logprobs or ()
    ]  # fmt: skip


def timing(metrics: RequestMetrics | None, cached_tokens: int) -> Timing:
    """Return where the time of a request went."""
    if metrics is None:
        return Timing(None, None, cached_tokens=cached_tokens)
    first, end = metrics.first_token_time_s, metrics.finished_time_s
    start = metrics.scheduled_time_s
    return Timing(
        total_s=_between(metrics.arrival_time_s, end),
        time_to_first_token_s=_between(metrics.arrival_time_s, first),
        queue_s=_between(metrics.arrival_time_s, start),
        prefill_s=_between(start, first),
        decode_s=_between(first, end),
        num_preemptions=metrics.num_preemptions,
        cached_tokens=cached_tokens,
    )


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 6)
