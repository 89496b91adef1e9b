"""Chat templates: messages to the text that the model was trained to read, as Hugging Face renders them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from quire.core.errors import RequestError
from quire.tokenizer.settings import DEFAULT_TEMPLATE
from quire.tokenizer.template_limits import (
    MAX_CHARS,
    MAX_SECONDS,
    Budget,
    LimitedEnvironment,
    LimitError,
    compile_limited,
    render_within,
)

MAX_TEMPLATE_CHARS = 1 << 20
_MAX_DEPTH = 64
_MAX_KNOWN = 32
_TOOL_TEMPLATE = "tool_use"
_RESERVED = ("messages", "tools", "add_generation_prompt")
_REASONING = ("reasoning_content", "thinking", "reasoning")
# Marks the end of a message to continue. Its trailing space shows whether the template trims messages.
_MARK = "\ue0f1continue here\ue0f1"
_PROBE = "quire probe"

Message = dict[str, Any]


class ChatRenderer:
    """The chat templates of one checkpoint.

    Args:
        templates: Jinja sources by name.
        special_tokens: Special tokens by name, visible to templates (`bos_token`, ...).
        max_chars: Most characters of a rendered chat.
        max_seconds: Most wall-clock time of one rendering.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        max_chars: int = MAX_CHARS,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        self._templates = dict(templates)
        self._special_tokens = dict(special_tokens)
        self._max_chars = max_chars
        self._max_seconds = max_seconds
        self._reads_parts: dict[str, bool] = {}

    @property
    def has_template(self) -> bool:
        """Whether there is any template."""
        return bool(self._templates)

    @property
    def default_template(self) -> str | None:
        """Jinja source of the main template, None if there is none."""
        return self._templates.get(DEFAULT_TEMPLATE)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        """Render a chat; `Tokenizer.render_chat` describes the arguments.

        Raises:
            RequestError: There is no template, the messages do not fit it, or it exceeds its limits.
        """
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message: expected add_generation_prompt=False beside it, got True. A message is "
                "either continued or followed by a new one; pass only one of the two."
            )
        clash = sorted(set(variables) & set(_RESERVED))
        if clash:
            raise RequestError(f"chat_template_kwargs: expected other names than {', '.join(_RESERVED)}, got {clash}.")
        source = self._source(chat_template, has_tools=tools is not None)
        chat = self._prepare(source, messages)
        values = _plain("chat_template_kwargs", variables)
        values["tools"] = None if tools is None else [_object("tools", tool) for tool in _list("tools", tools)]
        if not continue_final_message:
            return self._run(source, chat, add_generation_prompt=add_generation_prompt, **values)
        text = _mark_end(chat)
        return _cut_at_mark(self._run(source, chat, add_generation_prompt=False, **values), text)

    def _source(self, chat_template: str | None, *, has_tools: bool) -> str:
        """Choose the template: by name, as given, or the checkpoint's."""
        if chat_template is not None:
            if chat_template not in self._templates and "{" not in chat_template:
                names = ", ".join(sorted(self._templates)) or "none"
                raise RequestError(
                    f"chat_template: expected Jinja or one of this model's names ({names}), got neither."
                )
            return self._templates.get(chat_template, chat_template)
        if has_tools and _TOOL_TEMPLATE in self._templates:
            return self._templates[_TOOL_TEMPLATE]
        if DEFAULT_TEMPLATE in self._templates:
            return self._templates[DEFAULT_TEMPLATE]
        if self._templates:
            raise RequestError(
                f"chat_template: expected one of {', '.join(sorted(self._templates))}, since this model has several "
                "templates and no default, got none. Name one."
            )
        raise RequestError(
            "chat: expected a model with a chat template, got one without. Pass chat_template, or use a completion "
            "with a prompt that you write yourself."
        )

    def _prepare(self, source: str, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
        """Return checked copies of the messages, in the form that the template reads."""
        chat = [_message(index, message) for index, message in enumerate(_list("messages", messages))]
        if not chat:
            raise RequestError("messages: expected at least one message, got none.")
        if any(isinstance(message.get("content"), list) for message in chat) and not self._can_read_parts(source):
            for message in chat:
                if isinstance(message.get("content"), list):
                    message["content"] = "\n".join(part["text"] for part in message["content"])
        return chat

    def _can_read_parts(self, source: str) -> bool:
        """Find out by trying: a list of one part must show its text, just as the plain text does if that shows."""
        if source not in self._reads_parts:
            plain = self._probe(source, _PROBE)
            parts = self._probe(source, [{"type": "text", "text": _PROBE}])
            if len(self._reads_parts) >= _MAX_KNOWN:  # Only callers with ever new templates get here.
                self._reads_parts.clear()
            self._reads_parts[source] = _PROBE in parts and (parts == plain or _PROBE not in plain)
        return self._reads_parts[source]

    def _probe(self, source: str, content: object) -> str:
        try:
            return self._run(source, [{"role": "user", "content": content}], add_generation_prompt=False, tools=None)
        except RequestError:
            return ""

    def _run(self, source: str, chat: list[Message], **values: Any) -> str:
        """Render, turning every failure of the template into a RequestError of our own words."""
        template = _compiled(source)
        variables = {"documents": None, **self._special_tokens, **values, "messages": chat}
        try:
            budget = Budget(self._max_chars, self._max_seconds)
            return render_within(budget, lambda: template.generate(**variables))
        except LimitError as error:
            raise RequestError(
                f"chat template: expected {error.message}. Shorten the chat or fix the template."
            ) from error
        except _Refusal as error:
            raise RequestError(f"chat template: the model's template refuses this chat: {error.message}") from error
        except Exception as error:  # A template can fail in any way that Python can; the chat alone fails with it.
            raise RequestError(
                f"chat template: expected a template that fits these messages, got a failure of kind "
                f"{type(error).__name__}{_line(error)}. Check the roles and fields of the messages."
            ) from error


class _Refusal(TemplateError):
    """`raise_exception(...)` was called by a template."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; for inference its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """A namespace that prints as a word: nested ones would otherwise print without bound."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Dict:
    """`dict` without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message)[:500])


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as it is; Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=1)
def _environment() -> LimitedEnvironment:
    environment = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.add_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    environment.globals["dict"] = _Dict()
    return environment


@lru_cache(maxsize=_MAX_KNOWN)
def _compiled(source: str) -> Any:
    """Compile a template.

    Raises:
        RequestError: It is too long or not valid.
    """
    if len(source) > MAX_TEMPLATE_CHARS:
        raise RequestError(f"chat template: expected at most {MAX_TEMPLATE_CHARS} characters, got {len(source)}.")
    try:
        return compile_limited(_environment(), source)
    except TemplateSyntaxError as error:
        raise RequestError(
            f"chat template: expected valid Jinja, got a syntax error on line {error.lineno}."
        ) from error
    except (TemplateError, SyntaxError, RecursionError, MemoryError) as error:
        raise RequestError(
            f"chat template: expected valid Jinja, got a failure of kind {type(error).__name__}."
        ) from error


def _line(error: BaseException) -> str:
    """Return " on line N" for the template line where an error was raised."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<chat template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" on line {line}"


def _list(name: str, value: object) -> Sequence[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise RequestError(f"{name}: expected a list, got {type(value).__name__}.")
    return value


def _object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{name}: expected JSON objects, got {type(value).__name__}.")
    copied: dict[str, Any] = _plain(name, value)
    return copied


def _plain(name: str, value: object, depth: int = 0) -> Any:
    """Copy JSON-like data, so that a template never sees an object with methods of its own."""
    if depth > _MAX_DEPTH:
        raise RequestError(f"{name}: expected data nested at most {_MAX_DEPTH} deep, got more.")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {_key(name, key): _plain(name, item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, item, depth + 1) for item in value]
    raise RequestError(f"{name}: expected JSON values, got {type(value).__name__}.")


def _key(name: str, key: object) -> str:
    if type(key) is not str:
        raise RequestError(f"{name}: expected text as keys, got {type(key).__name__}.")
    return key


def _message(index: int, value: object) -> Message:
    """Return a checked copy of a message without its null fields, its reasoning under the names templates use."""
    name = f"messages[{index}]"
    message = {key: item for key, item in _object(name, value).items() if item is not None}
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{name}: expected a role, got {message.get('role')!r}.")
    content = message.get("content", "")
    if not isinstance(content, (str, list)):
        raise RequestError(f"{name}.content: expected text or a list of parts, got {type(content).__name__}.")
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(f'{name}.content: expected parts {{"type": "text", "text": ...}}, got another part.')
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _mark_end(chat: list[Message]) -> str:
    """Put the mark after the last message's text, and return that text."""
    last = chat[-1]
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _MARK + " "
        return content
    if content:
        part = content[-1]
        text: str = part["text"]
        part["text"] = text + _MARK + " "
        return text
    raise RequestError("continue_final_message: expected text in the last message, got none.")


def _cut_at_mark(rendered: str, text: str) -> str:
    """Return what was rendered before the mark; where the template trims messages, without trailing whitespace."""
    position = rendered.rfind(_MARK)
    if position < 0 or text.strip() not in rendered:
        raise RequestError(
            "continue_final_message: expected a template that shows the last message unchanged, got one that drops or "
            "edits it. Leave continue_final_message out for this model."
        )
    before = rendered[:position]
    return before if rendered[position + len(_MARK) :].startswith(" ") else before.rstrip()
