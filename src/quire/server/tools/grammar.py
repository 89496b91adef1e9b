"""The grammar of an answer that must be a tool call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quire.core.errors import RequestError
from quire.core.structured_outputs import StructuredOutputsParams
from quire.sampling.grammar.source import json_rule
from quire.server.tools.formats import ToolFormat, format_named
from quire.server.tools.types import ToolSpec

_MORE = "{0,15}"
"""Calls after the first: a weak model would not end of itself."""


def structured_outputs_for(
    tools: Sequence[ToolSpec],
    tool_choice: str | Mapping[str, Any] | None,
    format_name: str,
    *,
    parallel_tool_calls: bool = True,
) -> StructuredOutputsParams | None:
    """Return what makes an answer a call; None if the model may choose, which needs no grammar.

    Args:
        tools: Functions that may be called.
        tool_choice: "none", "auto", "required", or `{"type": "function", "function": {"name": ...}}`, also in the
            shape of `/v1/responses`, `{"type": "function", "name": ...}`.
        format_name: A name from `formats.FORMATS`.
        parallel_tool_calls: Whether there may be more than one call.

    Raises:
        ConfigError: There is no such format.
        RequestError: A choice is not of a known form, or names a function that is not among the tools.
    """
    form = format_named(format_name)
    if tool_choice in (None, "none", "auto"):
        return None
    chosen = _chosen(tools, tool_choice)
    return StructuredOutputsParams(grammar=_grammar(chosen, form, parallel_tool_calls and tool_choice == "required"))


def _chosen(tools: Sequence[ToolSpec], tool_choice: object) -> Sequence[ToolSpec]:
    if not tools:
        raise RequestError("tool_choice: expected tools beside it, got none.")
    if tool_choice == "required":
        return tools
    if not isinstance(tool_choice, Mapping):
        raise RequestError(f"tool_choice: expected none, auto, required or a function, got {str(tool_choice)[:80]!r}.")
    function = tool_choice.get("function", tool_choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    chosen = [tool for tool in tools if tool.name == name]
    if not chosen:
        raise RequestError(f"tool_choice: expected the name of one of the tools, got {str(name)[:80]!r}.")
    return chosen[:1]


def _grammar(tools: Sequence[ToolSpec], form: ToolFormat, is_parallel: bool) -> str:
    """Return one rule for each tool and one that joins calls.

    An opening is written only where it is text: those of the other formats are special tokens, which no text spells.
    """
    names = [f"call{number}" for number in range(len(tools))]
    rules = [f"call: {' | '.join(names)}"]
    for name, tool in zip(names, tools, strict=True):
        begin = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{form.arguments_key}": '
        rules += [f'{name}: {_literal(begin)} args_{name} "}}"', f"args_{name}: {json_rule(_parameters(tool))}"]
    if form.is_list:
        start = f'"[" call (", " call){_MORE} "]"' if is_parallel else '"[" call "]"'
    elif form.closing:
        call = f"{_literal(form.opening)} NL call NL {_literal(form.closing)}"
        start = f"{call} (NL {call}){_MORE}" if is_parallel else call
        rules.append(r'NL: "\n"')
    else:
        start = f"call ({_literal(form.separator + ' ')} call){_MORE}" if is_parallel else "call"
    return "\n".join([f"start: {start}", *rules])


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _parameters(tool: ToolSpec) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments: an object in any case."""
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    StructuredOutputsParams(json=tool.parameters)  # neither too large nor too deep
    return {"type": "object", **tool.parameters}
