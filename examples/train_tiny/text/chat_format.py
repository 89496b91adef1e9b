"""The chat format of quire-tiny: special tokens, the Jinja template of the tokenizer, and its twin in Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

BOS = "<|bos|>"
EOS = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = [BOS, EOS, IM_START, IM_END, PAD]

CHAT_TEMPLATE = """{{- bos_token -}}
{%- if tools -%}
  {{- '<|im_start|>system\\n' -}}
  {%- if messages and messages[0]['role'] == 'system' -%}{{- messages[0]['content'] + '\\n\\n' -}}{%- endif -%}
  {{- 'Tools:' -}}
  {%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
  {{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if not (tools and loop.first and message['role'] == 'system') -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] -%}{{- message['content'] -}}{%- endif -%}
    {%- if message['tool_calls'] -%}
      {%- for call in message['tool_calls'] -%}
        {%- set function = call['function'] if call['function'] else call -%}
        {%- if not loop.first or message['content'] -%}{{- '\\n' -}}{%- endif -%}
        {{- '<tool_call>\\n{"name": "' + function['name'] + '", "arguments": ' -}}
        {%- if function['arguments'] is string -%}{{- function['arguments'] -}}
        {%- else -%}{{- function['arguments'] | tojson -}}{%- endif -%}
        {{- '}\\n</tool_call>' -}}
      {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

Message = Mapping[str, Any]


def _render_call(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    arguments = function["arguments"]
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {written}}}\n</tool_call>'


def render_chat(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), add_generation_prompt: bool = False
) -> str:
    """The text of a conversation, equal to what `CHAT_TEMPLATE` renders, with `BOS` once in front.

    Args:
        messages: Each with `role`, `content` and, for an assistant, perhaps `tool_calls`.
        tools: JSON schemas of functions, written into the system message.
        add_generation_prompt: End with the start of an assistant's turn.

    Example:
        >>> render_chat([{"role": "user", "content": "Hi"}])
        '<|bos|><|im_start|>user\\nHi<|im_end|>\\n'
    """
    turns = list(messages)
    parts = [BOS]
    if tools:
        system = f"{turns.pop(0)['content']}\n\n" if turns and turns[0]["role"] == "system" else ""
        listed = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        parts.append(f"{IM_START}system\n{system}Tools:{listed}{IM_END}\n")
    for message in turns:
        pieces = [message["content"]] if message.get("content") else []
        pieces.extend(_render_call(call) for call in message.get("tool_calls") or ())
        parts.append(f"{IM_START}{message['role']}\n{chr(10).join(pieces)}{IM_END}\n")
    if add_generation_prompt:
        parts.append(f"{IM_START}assistant\n")
    return "".join(parts)
