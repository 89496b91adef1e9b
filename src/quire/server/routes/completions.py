"""`/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import UNSET

from quire.core.request import CompletionOutput, RequestOutput
from quire.core.sampling_params import SamplingParams
from quire.server.http.answers import Answer, JsonAnswer, StreamAnswer
from quire.server.protocol.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from quire.server.routes.endpoint import Call, Endpoint
from quire.server.routes.generation import PromptIds, prompt_logprobs, read_prompts, run
from quire.server.routes.logprobs import CompletionWriter, joined, prompt_entries
from quire.server.routes.sampling import COMMON_IGNORED, sampling_params
from quire.server.routes.structured import structured_outputs
from quire.server.routes.writing import DONE, Envelope


async def complete(call: Call, body: CompletionRequest) -> Answer:
    """Answer a completion request."""
    envelope = Envelope(call, body, "cmpl", Completion)
    params = _params(call, body)
    prompts = await read_prompts(call, body.prompt, n=params.n, special=body.add_special_tokens)
    if body.stream:
        return await StreamAnswer.begin(_frames(call, body, envelope, prompts, params))
    choices = [_Choice(call, body, prompts, params, index) for index in range(len(prompts) * params.n)]
    written: dict[int, CompletionChoice] = {}
    async with aclosing(run(call, body, envelope.id, prompts, params)) as outputs:
        async for index, output in outputs:
            envelope.count(index, output)
            for completion in output.outputs:
                choice = choices[index * params.n + completion.index]
                written[choice.index] = choice.write(output, completion)
    return JsonAnswer(Completion(choices=[written[index] for index in sorted(written)], **envelope.fields()))


def _params(call: Call, body: CompletionRequest) -> SamplingParams:
    """Return the parameters. With `max_tokens` 0 one token is computed, and thrown away."""
    wanted = [k for k in (body.prompt_logprobs, body.logprobs if body.echo else None) if k is not None]
    return sampling_params(
        call,
        body,
        logprobs=body.logprobs,
        prompt_logprobs=max(wanted, default=None),
        max_tokens=None if body.max_tokens is None else max(body.max_tokens, 1),
        structured_outputs=structured_outputs(body.structured_outputs),
    )


async def _frames(
    call: Call, body: CompletionRequest, envelope: Envelope, prompts: list[PromptIds], params: SamplingParams
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream."""
    choices = [_Choice(call, body, prompts, params, index) for index in range(len(prompts) * params.n)]
    async with aclosing(run(call, body, envelope.id, prompts, params)) as outputs:
        async for index, output in outputs:
            envelope.count(index, output)
            for completion in output.outputs:
                choice = choices[index * params.n + completion.index]
                if choice.has_news(completion):
                    yield envelope.chunk([choice.write(output, completion)])
    if (last := envelope.last_chunk()) is not None:
        yield last
    yield DONE


class _Choice:
    """One continuation as it is written: whole, or piece by piece.

    Args:
        call: The request.
        body: Its body.
        prompts: All prompts.
        params: Of each.
        index: Which choice: `n` for each prompt, in order.
    """

    def __init__(
        self, call: Call, body: CompletionRequest, prompts: list[PromptIds], params: SamplingParams, index: int
    ) -> None:
        self.index = index
        self._body = body
        self._prompt = prompts[index // params.n]
        self._params = params
        self._tokenizer = call.served.tokenizer
        self._is_begun = False
        self._logprobs: CompletionWriter | None = None

    def has_news(self, completion: CompletionOutput) -> bool:
        """Return whether an output is worth a chunk."""
        is_new = bool(completion.text or completion.finish_reason or (self._body.echo and not self._is_begun))
        return is_new or bool(completion.token_ids and (self._body.logprobs is not None or self._body.return_token_ids))

    def write(self, output: RequestOutput, completion: CompletionOutput) -> CompletionChoice:
        """Return the next piece; it starts with the prompt if that is to be echoed."""
        is_first, self._is_begun = not self._is_begun, True
        keeps = self._body.max_tokens != 0
        text, token_ids = (completion.text, list(completion.token_ids)) if keeps else ("", [])
        is_echo = bool(self._body.echo and is_first)
        prompt = self._prompt_text() if is_echo else ""
        return CompletionChoice(
            self.index,
            prompt + text,
            self._write_logprobs(output, completion if keeps else None, is_echo, len(prompt)),
            completion.finish_reason if keeps or completion.finish_reason is None else "length",  # type: ignore[arg-type]
            completion.stop_reason if keeps else None,
            prompt_logprobs(output) if self._body.prompt_logprobs is not None and is_first else UNSET,
            token_ids if self._body.return_token_ids else UNSET,
            self._prompt.token_ids if self._body.return_token_ids and is_first else UNSET,
        )

    def _prompt_text(self) -> str:
        """Return the prompt as it was given, or as its ids read."""
        if self._prompt.text is not None:
            return self._prompt.text
        return "" if self._tokenizer is None else self._tokenizer.decode(self._prompt.token_ids)

    def _write_logprobs(
        self, output: RequestOutput, completion: CompletionOutput | None, is_echo: bool, num_chars: int
    ) -> CompletionLogprobs | None:
        """Return the logprobs of a piece, those of an echoed prompt first."""
        if self._body.logprobs is None:
            return None
        as_ids, ids = bool(self._body.return_tokens_as_token_ids), self._prompt.token_ids
        written = CompletionLogprobs([], [], [], [])
        if is_echo:
            whole = CompletionWriter(self._tokenizer, (), self._params, as_ids=as_ids)
            written = whole.write(ids, prompt_entries(output))
        if self._logprobs is None:
            self._logprobs = CompletionWriter(self._tokenizer, ids, self._params, num_chars, as_ids=as_ids)
        if completion is None:
            return written
        return joined(written, self._logprobs.write(completion.token_ids, completion.logprobs or ()))


ENDPOINT = Endpoint(
    "POST",
    "/v1/completions",
    complete,
    "Continue prompts.",
    body=CompletionRequest,
    answer=Completion,
    chunk=Completion,
    ignored={**COMMON_IGNORED, "suffix": (None,)},
    is_work=True,
)
