"""`/v1/responses`: another shape around the same chats."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET

from quire.core.sampling_params import SamplingParams
from quire.server.errors import ApiError, invalid
from quire.server.http.answers import Answer, JsonAnswer, StreamAnswer
from quire.server.http.exchange import event
from quire.server.protocol import chat as chats
from quire.server.protocol.common import SamplingFields
from quire.server.protocol.responses import (
    FunctionTool,
    IncompleteDetails,
    InputItem,
    InputPart,
    InputTokensDetails,
    JsonSchemaTextFormat,
    OutputFunctionCall,
    OutputMessage,
    OutputText,
    Response,
    ResponsesRequest,
    ResponsesUsage,
    Status,
)
from quire.server.protocol.tools import FunctionCall, FunctionDefinition, NamedFunction, NamedTool, Tool, ToolCall
from quire.server.routes.chat import chat_params, chat_prompt, chat_tools
from quire.server.routes.endpoint import Call, Endpoint
from quire.server.routes.generation import PromptIds, run
from quire.server.routes.sampling import COMMON_IGNORED
from quire.server.routes.tools import Delta, GrowingAnswer
from quire.server.routes.writing import Envelope
from quire.server.tools.types import ContentDelta

Events = list[tuple[str, dict[str, Any]]]


async def respond(call: Call, body: ResponsesRequest) -> Answer:
    """Answer a conversation."""
    chat = _as_chat(body)
    may_call = chat_tools(call, chat)
    params = chat_params(call, chat, may_call)
    writer = _Writer(call, body, chat, params, GrowingAnswer(may_call.reader()))
    prompt = await chat_prompt(call, chat)
    if body.stream:
        return await StreamAnswer.begin(writer.frames(prompt), writer.error_frame)
    return JsonAnswer(await writer.whole(prompt))


def _as_chat(body: ResponsesRequest) -> chats.ChatRequest:
    """Return the chat that a request means."""
    shared = {name: getattr(body, name) for name in SamplingFields.__struct_fields__}
    choice = body.tool_choice
    return chats.ChatRequest(
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        tools=None if body.tools is None else [_tool(tool) for tool in body.tools],
        tool_choice=choice if choice is None or isinstance(choice, str) else
        NamedTool(type="function", function=NamedFunction(name=choice.name)),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_response_format(body),
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        **shared,
    )  # fmt: skip


def _tool(tool: FunctionTool) -> Tool:
    definition = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool(type="function", function=definition)


def _response_format(body: ResponsesRequest) -> chats.ResponseFormat | None:
    form = body.text.format if body.text else None
    if isinstance(form, JsonSchemaTextFormat):
        schema = chats.JsonSchemaFormat(name=form.name, schema=form.schema, strict=form.strict)
        return chats.JsonSchemaResponseFormat(json_schema=schema)
    return form


def _messages(body: ResponsesRequest) -> list[chats.Message]:
    """Return the conversation; calls that follow each other belong to one message."""
    messages = [] if body.instructions is None else [chats.Message(role="system", content=body.instructions)]
    if isinstance(body.input, str):
        return [*messages, chats.Message(role="user", content=body.input)]
    for index, item in enumerate(body.input):
        name = f"input[{index}]"
        if item.type == "message":
            messages.append(chats.Message(role=_need(item.role, f"{name}.role"), content=_text(item.content)))
        elif item.type == "function_call_output":
            call_id = _need(item.call_id, f"{name}.call_id")
            messages.append(chats.Message(role="tool", content=_text(item.output), tool_call_id=call_id))
        else:
            _add_call(messages, _call(item, name))
    return messages


def _add_call(messages: list[chats.Message], tool_call: ToolCall) -> None:
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant":
        last = chats.Message(role="assistant")
        messages.append(last)
    last.tool_calls = [*(last.tool_calls or ()), tool_call]


def _call(item: InputItem, name: str) -> ToolCall:
    function = FunctionCall(name=_need(item.name, f"{name}.name"), arguments=_need(item.arguments, f"{name}.arguments"))
    return ToolCall(function=function, id=_need(item.call_id, f"{name}.call_id"), type="function")


def _need(value: Any, name: str) -> Any:
    if value is None:
        raise invalid(f"{name}: expected a value, got none; this type of item has one.", name)
    return value


def _text(content: str | Sequence[InputPart] | None) -> str | list[chats.TextPart]:
    if content is None or isinstance(content, str):
        return content or ""
    return [chats.TextPart(type="text", text=part.text) for part in content]


@dataclass(slots=True)
class _Output:
    """The items of an answer as they grow, and the events that tell of it."""

    items: list[OutputMessage | OutputFunctionCall]
    is_open: bool = False

    def add(self, delta: Delta) -> Events:
        """Take a piece of the answer."""
        if isinstance(delta, ContentDelta):
            events = [] if self.is_open and isinstance(self.items[-1], OutputMessage) else self._open_message()
            return events + self._add_text(delta.text)
        events = [] if delta.id is None else self._open_call(delta.id, delta.name or "")
        call = self.items[-1]
        assert isinstance(call, OutputFunctionCall), "a piece of a call comes after its first one"
        if not delta.arguments:
            return events
        call.arguments += delta.arguments
        return [*events, ("response.function_call_arguments.delta", {**self._place(), "delta": delta.arguments})]

    def close(self, status: Status) -> Events:
        """End the last item; an answer without any is an empty message."""
        if not self.items:
            return [*self._open_message(), *self.close(status)]
        return self._close(status)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1].id, "output_index": len(self.items) - 1}

    def _open_message(self) -> Events:
        events = self._close("completed")
        message = OutputMessage(id=f"msg_{uuid.uuid4().hex}", content=[])
        self.items.append(message)
        self.is_open = True
        events.append(("response.output_item.added", self._item()))
        message.content.append(OutputText())
        part = {**self._place(), "content_index": 0, "part": msgspec.to_builtins(message.content[0])}
        return [*events, ("response.content_part.added", part)]

    def _add_text(self, text: str) -> Events:
        message = self.items[-1]
        assert isinstance(message, OutputMessage), "a message was opened"
        message.content[0].text += text
        return [("response.output_text.delta", {**self._place(), "content_index": 0, "delta": text, "logprobs": []})]

    def _open_call(self, call_id: str, name: str) -> Events:
        events = self._close("completed")
        self.items.append(OutputFunctionCall(id=f"fc_{uuid.uuid4().hex}", call_id=call_id, name=name))
        self.is_open = True
        return [*events, ("response.output_item.added", self._item())]

    def _close(self, status: Status) -> Events:
        if not self.is_open:
            return []
        self.is_open = False
        item, place = self.items[-1], self._place()
        item.status = status
        if isinstance(item, OutputFunctionCall):
            done: Events = [("response.function_call_arguments.done", {**place, "arguments": item.arguments,
                                                                       "name": item.name})]  # fmt: skip
        else:
            text, place = item.content[0].text, {**place, "content_index": 0}
            done = [
                ("response.output_text.done", {**place, "text": text, "logprobs": []}),
                ("response.content_part.done", {**place, "part": msgspec.to_builtins(item.content[0])}),
            ]
        return [*done, ("response.output_item.done", self._item())]

    def _item(self) -> dict[str, Any]:
        return {"output_index": len(self.items) - 1, "item": msgspec.to_builtins(self.items[-1])}


class _Writer:
    """Writes an answer, whole or as events with numbers.

    Args:
        call: The request.
        body: Its body.
        chat: The chat that it means.
        params: How it is sampled.
        answer: Reads it.
    """

    def __init__(
        self,
        call: Call,
        body: ResponsesRequest,
        chat: chats.ChatRequest,
        params: SamplingParams,
        answer: GrowingAnswer,
    ) -> None:
        self._call = call
        self._body = body
        self._chat = chat
        self._params = params
        self._envelope = Envelope(call, chat, "resp", Response)
        self._answer = answer
        self._output = _Output([])
        self._status: Status = "completed"
        self._num_events = 0

    async def whole(self, prompt: PromptIds) -> Response:
        """Return the answer."""
        async for _ in self._events(prompt):
            pass  # the events are for streams; the items they tell of are kept
        return self._response()

    async def frames(self, prompt: PromptIds) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream."""
        is_begun = False
        async with aclosing(self._events(prompt)) as pieces:
            async for events in pieces:
                if not is_begun:
                    is_begun = True
                    opening = self._opening()
                    yield self._frame("response.created", {"response": opening})
                    yield self._frame("response.in_progress", {"response": opening})
                for name, fields in events:
                    yield self._frame(name, fields)
        yield self._frame(f"response.{self._status}", {"response": self._response()})

    def error_frame(self, error: ApiError) -> bytes:
        """Return the event that ends a stream that failed."""
        told = msgspec.to_builtins(error.body)
        return self._frame("error", {**told, "error": told, "type": "error"})

    async def _events(self, prompt: PromptIds) -> AsyncGenerator[Events, None]:
        """Yield what is new."""
        async with aclosing(run(self._call, self._chat, self._envelope.id, [prompt], self._params)) as outputs:
            async for _, output in outputs:
                self._envelope.count(0, output)
                for completion in output.outputs:
                    news = [event for delta in self._answer.add(completion) for event in self._output.add(delta)]
                    if completion.finish_reason is not None:
                        self._status = "incomplete" if completion.finish_reason == "length" else "completed"
                        news += self._output.close(self._status)
                    yield news

    def _frame(self, name: str, fields: dict[str, Any]) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        return event(msgspec.json.encode({"type": name, "sequence_number": number, **fields}), name)

    def _opening(self) -> Response:
        """Return the answer as it is before its first item."""
        return msgspec.structs.replace(self._response(), output=[], status="in_progress", usage=None,
                                       incomplete_details=None, timing=UNSET)  # fmt: skip

    def _response(self) -> Response:
        body, fields = self._body, self._envelope.fields()
        return Response(
            id=fields["id"],
            created_at=fields["created"],
            model=fields["model"],
            output=list(self._output.items),
            status=self._status,
            usage=self._usage(),
            incomplete_details=IncompleteDetails() if self._status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=self._params.temperature,
            top_p=self._params.top_p,
            tool_choice=body.tool_choice or "auto",
            tools=body.tools or [],
            timing=fields["timing"],
            warnings=fields["warnings"],
        )

    def _usage(self) -> ResponsesUsage:
        tally = self._envelope.tally
        return ResponsesUsage(
            tally.prompt, tally.generated, tally.prompt + tally.generated, InputTokensDetails(tally.cached)
        )


ENDPOINT = Endpoint(
    "POST",
    "/v1/responses",
    respond,
    "Go on with conversations, in the shape of OpenAI's newer interface.",
    body=ResponsesRequest,
    answer=Response,
    chunk=Response,
    ignored={
        **COMMON_IGNORED,
        "n": (None, 1),
        "background": (None, False),
        "conversation": (None,),
        "context_management": (None, []),
        "include": (None, []),
        "max_tool_calls": (None,),
        "moderation": (None,),
        "previous_response_id": (None,),
        "prompt": (None,),
        "top_logprobs": (None, 0),
        "truncation": (None, "disabled"),
    },
    is_work=True,
)
