"""A conversation becomes a prompt: one renderer, the model's own template, never one from a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from quire.server.errors import ApiError, invalid
from quire.server.protocol.chat import Message, TextPart
from quire.server.protocol.decode import parse
from quire.server.routes.endpoint import Call
from quire.server.routes.generation import PromptIds

# Longer conversations are rendered beside the event loop: 64 KiB take about a millisecond.
_SHORT_CHARS = 1 << 16


async def read_conversation(
    call: Call,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
) -> PromptIds:
    """Return a conversation as the ids that the model was trained to read.

    Args:
        call: The request.
        messages: The conversation.
        add_generation_prompt: Open the assistant's turn; None: unless the last message is continued.
        continue_final_message: End inside the last message.
        tools: Functions for the template.
        variables: More variables for it.

    Raises:
        ApiError: A message is not valid.
        RequestError: The template refuses it, or there is none.
    """
    tokenizer = call.tokenizer()
    chat = [_plain(call, index, message) for index, message in enumerate(messages)]
    opens = not continue_final_message if add_generation_prompt is None else add_generation_prompt

    def render() -> str:
        return tokenizer.render_chat(
            chat,
            chat_template=call.served.chat_template,
            add_generation_prompt=opens,
            continue_final_message=continue_final_message,
            tools=tools,
            **_checked(variables),
        )

    is_short = sum(len(str(message.get("content"))) for message in chat) < _SHORT_CHARS
    text = render() if is_short else await asyncio.to_thread(render)
    return PromptIds(await call.context.engine.tokenize(text, add_special_tokens=False), text)


def _checked(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse variables that are arguments of the renderer."""
    for name in ("chat_template", "continue_final_message", "messages", "tools", "add_generation_prompt"):
        if name in variables:
            raise invalid(f"chat_template_kwargs: expected other names, got {name!r}.")
    return variables


def _plain(call: Call, index: int, message: Message) -> dict[str, Any]:
    """Return a message as templates read it: "developer" is "system", a call's arguments are an object."""
    made: dict[str, Any] = msgspec.to_builtins(message)
    if message.role == "developer":
        made["role"] = "system"
    if isinstance(message.content, list) and all(isinstance(part, TextPart) for part in message.content):
        made["content"] = [{"type": "text", "text": part.text} for part in message.content]
    for number, tool_call in enumerate(made.get("tool_calls") or ()):
        name = f"messages[{index}].tool_calls[{number}].function.arguments"
        tool_call["function"]["arguments"] = _arguments(call, name, tool_call["function"]["arguments"])
    made.pop("refusal", None)
    return made


def _arguments(call: Call, name: str, text: str) -> dict[str, Any]:
    """Return a call's arguments, which clients send as text, as the object that templates write out again."""
    try:
        value = parse(text.encode() or b"{}", call.context.limits)
    except ApiError:
        value = None
    if not isinstance(value, dict):
        raise invalid(f"{name}: expected a JSON object as text, got something else.", name)
    return value
