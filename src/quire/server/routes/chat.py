"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import msgspec
from msgspec import UNSET, UnsetType

from quire.core.request import CompletionOutput
from quire.core.sampling_params import SamplingParams
from quire.server.errors import invalid
from quire.server.http.answers import Answer, JsonAnswer, StreamAnswer
from quire.server.protocol.chat import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
)
from quire.server.protocol.common import FinishReason
from quire.server.protocol.tools import FunctionCall, ToolCall
from quire.server.routes.conversation import read_conversation
from quire.server.routes.endpoint import Call, Endpoint
from quire.server.routes.generation import PromptIds, prompt_logprobs, run
from quire.server.routes.logprobs import chat_logprobs
from quire.server.routes.sampling import COMMON_IGNORED, default_max_tokens, sampling_params
from quire.server.routes.structured import structured_outputs
from quire.server.routes.tools import Delta, GrowingAnswer, Tools
from quire.server.routes.writing import DONE, Envelope
from quire.server.tools.types import ContentDelta


async def chat(call: Call, body: ChatRequest) -> Answer:
    """Answer a conversation."""
    envelope = Envelope(call, body, "chatcmpl", ChatChunk)
    may_call = chat_tools(call, body)
    params = chat_params(call, body, may_call)
    choices = [_Choice(call, body, may_call, index) for index in range(params.n)]
    prompt = await chat_prompt(call, body)
    if body.stream:
        return await StreamAnswer.begin(_frames(call, body, envelope, choices, prompt, params))
    async with aclosing(run(call, body, envelope.id, [prompt], params)) as outputs:
        async for _, output in outputs:
            envelope.count(0, output)
            written = [choices[completion.index].whole(completion) for completion in output.outputs]
    return JsonAnswer(
        ChatCompletion(
            choices=written,
            prompt_logprobs=UNSET if body.prompt_logprobs is None else prompt_logprobs(output),
            prompt_token_ids=output.prompt_token_ids if body.return_token_ids else UNSET,
            **envelope.fields(),
        )
    )


def chat_tools(call: Call, body: ChatRequest) -> Tools:
    """Return the tools of a chat.

    Raises:
        ApiError: 400.
        RequestError: Likewise.
    """
    return Tools(call, body.tools, body.tool_choice, parallel=body.parallel_tool_calls is not False)


def chat_params(call: Call, body: ChatRequest, may_call: Tools) -> SamplingParams:
    """Return how an answer is sampled.

    Raises:
        ApiError: 400.
        RequestError: Likewise.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs: expected logprobs=true beside it, got none.")
    most = call.context.config.max_logprobs
    if (body.top_logprobs or 0) > most:
        raise invalid(f"top_logprobs: expected at most {most} (--max-logprobs), got {body.top_logprobs}.")
    form = structured_outputs(body.structured_outputs, body.response_format)
    if form is not None and may_call.grammar is not None:
        raise invalid("tool_choice: expected none or auto beside a form of the answer, got one that forces a call.")
    asked = body.max_completion_tokens or body.max_tokens
    params = sampling_params(
        call,
        body,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        structured_outputs=form or may_call.grammar,
    )
    return replace(params, max_tokens=asked or default_max_tokens(call))


async def chat_prompt(call: Call, body: ChatRequest) -> PromptIds:
    """Return the conversation as the model reads it.

    Raises:
        ApiError: 400.
        RequestError: Likewise.
    """
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    shown = None if not body.tools or body.tool_choice == "none" else body.tools
    return await read_conversation(
        call,
        body.messages,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        tools=None if shown is None else [msgspec.to_builtins(tool) for tool in shown],
        variables=variables,
    )


async def _frames(
    call: Call,
    body: ChatRequest,
    envelope: Envelope,
    choices: list[_Choice],
    prompt: PromptIds,
    params: SamplingParams,
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream."""
    is_begun = False
    async with aclosing(run(call, body, envelope.id, [prompt], params)) as outputs:
        async for _, output in outputs:
            envelope.count(0, output)
            if not is_begun:
                is_begun = True
                for choice in choices:
                    yield envelope.chunk([choice.opening()])
            for completion in output.outputs:
                for piece in choices[completion.index].pieces(completion):
                    yield envelope.chunk([piece])
    if (last := envelope.last_chunk()) is not None:
        yield last
    yield DONE


class _Choice:
    """One answer as it is written: whole, or piece by piece.

    Args:
        call: The request.
        body: Its body.
        may_call: Its tools.
        index: Which answer.
    """

    def __init__(self, call: Call, body: ChatRequest, may_call: Tools, index: int) -> None:
        self._call = call
        self._body = body
        self._index = index
        self._answer = GrowingAnswer(may_call.reader())

    def whole(self, completion: CompletionOutput) -> ChatChoice:
        """Return the answer from its one, final output."""
        self._answer.add(completion)
        calls = self._answer.calls
        return ChatChoice(
            self._index,
            ChatMessage(self._answer.text or (None if calls else ""), calls or UNSET),
            self._finish_reason(completion),
            self._logprobs(completion),
            completion.stop_reason,
            completion.token_ids if self._body.return_token_ids else UNSET,
        )

    def opening(self) -> ChatChunkChoice:
        """Return the first piece: the role."""
        return ChatChunkChoice(self._index, ChatDelta(role="assistant", content=""))

    def pieces(self, completion: CompletionOutput) -> list[ChatChunkChoice]:
        """Return the pieces that an output is worth; the last of all has an empty delta and the finish reason."""
        deltas = [_delta(delta) for delta in self._answer.add(completion)]
        logprobs = self._logprobs(completion)
        token_ids: list[int] | UnsetType = completion.token_ids if self._body.return_token_ids else UNSET
        if not deltas and completion.token_ids and (logprobs is not None or token_ids is not UNSET):
            deltas = [ChatDelta(content="")]
        pieces = [ChatChunkChoice(self._index, delta) for delta in deltas]
        if pieces:
            pieces[0] = ChatChunkChoice(self._index, deltas[0], logprobs, token_ids=token_ids)
        if completion.finish_reason is not None:
            reason, stop = self._finish_reason(completion), completion.stop_reason
            pieces.append(ChatChunkChoice(self._index, ChatDelta(), None, reason, stop))
        return pieces

    def _finish_reason(self, completion: CompletionOutput) -> FinishReason:
        if completion.finish_reason == "stop" and self._answer.calls:
            return "tool_calls"
        return "stop" if completion.finish_reason == "stop" else "length"

    def _logprobs(self, completion: CompletionOutput) -> ChatLogprobs | None:
        if not self._body.logprobs or not completion.token_ids:
            return None
        return chat_logprobs(self._call.tokenizer(), completion, self._body.top_logprobs or 0)


def _delta(delta: Delta) -> ChatDelta:
    if isinstance(delta, ContentDelta):
        return ChatDelta(content=delta.text)
    function = FunctionCall(name=UNSET if delta.name is None else delta.name, arguments=delta.arguments)
    if delta.id is None:
        return ChatDelta(tool_calls=[ToolCall(function=function, index=delta.index)])
    return ChatDelta(tool_calls=[ToolCall(function=function, index=delta.index, id=delta.id, type="function")])


ENDPOINT = Endpoint(
    "POST",
    "/v1/chat/completions",
    chat,
    "Answer conversations.",
    body=ChatRequest,
    answer=ChatCompletion,
    chunk=ChatChunk,
    ignored={
        **COMMON_IGNORED,
        "audio": (None,),
        "functions": (None, []),
        "function_call": (None, "none"),
        "modalities": (None, ["text"]),
        "moderation": (None,),
        "prediction": (None,),
        "web_search_options": (None,),
        "verbosity": (None, "medium"),
        "chat_template": (None,),
        "echo": (None, False),
        "documents": (None, []),
        "mm_processor_kwargs": (None,),
    },
    is_work=True,
)
