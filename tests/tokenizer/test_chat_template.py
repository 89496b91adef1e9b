"""Chats against Hugging Face, for templates in the styles that checkpoints ship; and templates that misbehave."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from quire.core.errors import RequestError
from quire.tokenizer import Tokenizer
from quire.tokenizer.chat_template import ChatRenderer
from tests.tokenizer.small_tokenizers import write_json

CHATML = """\
{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message['content'] }}{% endgeneration %}
    {%- else %}
        {{- message['content'] }}
    {%- endif %}
    {{- '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

HEADERS = """\
{%- if today is undefined %}{% set today = strftime_now("%Y-%m-%d") %}{% endif %}
{%- set rules = messages[0].content|trim if messages[0].role == 'system' else 'none' %}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{{- bos_token ~ "<|begin|>system<|end|>\\n\\nDate " ~ today ~ "\\nRules: " ~ rules }}
{%- if tools is not none %}
    {%- for tool in tools %}{{ "\\n" + tool|tojson(indent=4) }}{% endfor %}
{%- endif %}
{%- for turn in turns %}
    {%- if turn.tool_calls is defined %}
        {%- if turn.tool_calls|length > 1 %}{{ raise_exception("one tool call at a time") }}{% endif %}
        {%- with call = turn.tool_calls|first %}
            {{- call.function.name ~ call.function.arguments|tojson ~ eos_token }}
        {%- endwith %}
    {%- elif turn.role in ["tool", "ipython"] %}
        {{- '<|begin|>ipython<|end|>\\n\\n' ~ (turn.content if turn.content is string else turn.content|tojson) }}
    {%- else %}
        {{- '<|begin|>' ~ turn['role'] ~ '<|end|>\\n\\n' ~ turn['content']|trim ~ '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|begin|>assistant<|end|>\\n\\n' }}{% endif %}
"""

INST = """\
{%- set state = namespace(turn='user', rules='') %}
{%- for m in messages if m.role == 'system' %}{% set state.rules = m.content ~ '\\n\\n' %}{% endfor %}
{%- set rest = messages | rejectattr('role', 'equalto', 'system') | list %}
{%- set asked = rest | selectattr('role', 'equalto', 'user') | list | last %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message.role in ('user', 'assistant') and message.content is defined %}
        {%- if message.role != state.turn %}{{ raise_exception('expected the ' ~ state.turn) }}{% endif %}
        {%- set state.turn = 'assistant' if state.turn == 'user' else 'user' %}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and message == asked %}
            {{- '[TOOLS]' }}
            {%- for tool in tools | map(attribute='function') %}
                {%- for key, value in tool | dictsort if key != 'return' %}
                    {{- key ~ '=' ~ (value if value is string else value | tojson) ~ (';' if loop.last else ',') }}
                {%- endfor %}
            {%- endfor %}
            {{- '[/TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (state.rules if loop.last else '') + message.content + ' [/INST]' }}
    {%- elif message.tool_calls is defined %}
        {{- '[CALLS] ' ~ message.tool_calls | map(attribute='function') | list | tojson ~ eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[RESULT] ' ~ message.content|string ~ '[/RESULT]' }}
    {%- else %}
        {{- ' ' ~ message.content.strip() ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""

QWEN = """\
{%- macro text(content) %}
    {%- if content is string %}{{ content }}{% endif %}
    {%- for part in content if content is not string and 'text' in part %}{{ part.text }}{% endfor %}
{%- endmacro %}
{%- set rules = text(messages[0].content) if messages[0].role == 'system' else 'You are a default.' %}
{{- '<|im_start|>system\\n' + rules }}
{%- if tools %}
    {{- '\\n\\n# Functions' }}
    {%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- set seen = namespace(user=0) %}
{%- for message in messages | reverse %}
    {%- if message.role == 'user' %}
        {%- set seen.user = loop.revindex0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{% continue %}{% endif %}
    {%- if message.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<result>\\n' ~ text(message.content) ~ '\\n</result>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- set parts = text(message.content or '').split('</think>') %}
    {%- set thought = message.reasoning_content or (parts[0].replace('<think>', '') if parts|length > 1 else '') %}
    {%- if thought and loop.index0 > seen.user %}{{ '<think>' + thought.strip('\\n') + '</think>' }}{% endif %}
    {{- parts[-1].lstrip('\\n') }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<call>' ~ call.function.name ~ ' ' }}
        {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
        {{- '</call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}
{%- endif %}
"""

TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "inst": INST, "qwen": QWEN}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Tells the weather in <a> "place" é',
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    },
    {"type": "function", "function": {"name": "time", "description": "now", "parameters": {"type": "object"}}},
]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich"}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "hello"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "  hi <b>&</b> 你好 🙂 "}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb ", "tool_calls": None},
        {"role": "user", "content": "c"},
    ],
    "last": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " The answer is "}],
    "thought": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "because"}],
    "tools": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "22.5", "tool_call_id": "c1", "name": "weather"},
        {"role": "tool", "content": '{"a": 1}', "tool_call_id": "c2"},
    ],
    "broken": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
}


@pytest.fixture(scope="module")
def pair(json_dir: Path) -> tuple[Tokenizer, Any]:
    from transformers import PreTrainedTokenizerFast

    return Tokenizer.from_directory(json_dir), PreTrainedTokenizerFast.from_pretrained(json_dir)


def either(call: Any, errors: tuple[type[Exception], ...]) -> Any:
    try:
        return call()
    except errors:
        return "refused"


@pytest.mark.parametrize(
    "options", [{}, {"add_generation_prompt": False}, {"enable_thinking": False}, {"tools": TOOLS}]
)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("style", TEMPLATES)
def test_chats_equal_hugging_face(style: str, chat: str, options: dict[str, Any], pair: tuple[Tokenizer, Any]) -> None:
    from jinja2 import TemplateError

    ours, theirs = pair
    options = {"add_generation_prompt": True, "chat_template": TEMPLATES[style], **options}
    failures = (TemplateError, TypeError)
    text = either(lambda: theirs.apply_chat_template(CHATS[chat], tokenize=False, **options), failures)
    assert either(lambda: ours.render_chat(CHATS[chat], **options), (RequestError,)) == text
    if text != "refused":
        ids = theirs.apply_chat_template(CHATS[chat], return_dict=False, **options)
        assert ours.apply_chat_template(CHATS[chat], **options) == ids
    # Otherwise both sides could agree by refusing everything.
    assert text != "refused" or chat in ("tools", "broken")


@pytest.mark.parametrize("chat", ["one", "last", "thought"])
@pytest.mark.parametrize("style", TEMPLATES)
def test_continued_messages_equal_hugging_face(style: str, chat: str, pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    options = {"add_generation_prompt": False, "continue_final_message": True, "chat_template": TEMPLATES[style]}
    text = ours.render_chat(CHATS[chat], **options)
    assert text == theirs.apply_chat_template(CHATS[chat], tokenize=False, **options)
    assert text.rstrip().endswith(CHATS[chat][-1]["content"].strip())


def test_text_parts_go_as_they_are_or_joined(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    reads = theirs.apply_chat_template(parts, chat_template=QWEN, tokenize=False)
    assert ours.render_chat(parts, chat_template=QWEN, add_generation_prompt=False) == reads
    assert "onetwo" in reads
    assert "one\ntwo" in ours.render_chat(parts, chat_template=CHATML)
    assert parts[0]["content"][0] == {"type": "text", "text": "one"}
    continued = {"chat_template": QWEN, "continue_final_message": True, "add_generation_prompt": False}
    assert ours.render_chat(parts, **continued).endswith("onetwo")
    only_parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}"
    assert ours.render_chat(parts, chat_template=only_parts) == "one;two;"


def test_templates_are_found_where_checkpoints_put_them(json_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(json_dir, tmp_path, dirs_exist_ok=True)
    chat = [{"role": "user", "content": "x"}]
    config = json.loads((json_dir / "tokenizer_config.json").read_text())
    assert not Tokenizer.from_directory(tmp_path).has_chat_template
    with pytest.raises(RequestError, match="with a chat template, got one without"):
        Tokenizer.from_directory(tmp_path).render_chat(chat)

    write_json(tmp_path / "tokenizer_config.json", config | {"chat_template": "text {{ bos_token }}{{ eos_token }}"})
    assert Tokenizer.from_directory(tmp_path).render_chat(chat) == "text <|begin|><|end|>"

    named = [{"name": "default", "template": "main"}, {"name": "tool_use", "template": "{{ tools|length }} tools"}]
    write_json(tmp_path / "tokenizer_config.json", config | {"chat_template": named})
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.has_chat_template
    assert tokenizer.render_chat(chat) == "main"
    assert tokenizer.render_chat(chat, tools=TOOLS) == tokenizer.render_chat(
        chat, tools=TOOLS, chat_template="tool_use"
    )
    assert tokenizer.render_chat(chat, tools=TOOLS) == "2 tools"
    with pytest.raises(RequestError, match="default, tool_use"):
        tokenizer.render_chat(chat, chat_template="tool_user")
    write_json(tmp_path / "tokenizer_config.json", config | {"chat_template": [{"name": "rag", "template": "x"}]})
    with pytest.raises(RequestError, match="expected one of rag"):
        Tokenizer.from_directory(tmp_path).render_chat(chat)

    (tmp_path / "chat_template.jinja").write_text("from file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag file")
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.render_chat(chat) == "from file"
    assert tokenizer.render_chat(chat, chat_template="rag") == "rag file"


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ([], {}, "at least one message"),
        ("hello", {}, "messages: expected a list"),
        ([5], {}, "JSON objects"),
        ([{"content": "x"}], {}, "expected a role"),
        ([{"role": "user", "content": 5}], {}, "text or a list of parts"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "got another part"),
        ([{"role": "user", "content": "x", "extra": object()}], {}, "JSON values, got object"),
        ([{"role": "user", 5: "x"}], {}, "text as keys"),
        ([{"role": "user", "content": "x"}], {"tools": [print]}, "tools: expected JSON objects"),
        ([{"role": "user", "content": "x"}], {"messages_": 1, "continue_final_message": True}, "only one of the two"),
        ([{"role": "user"}], {"continue_final_message": True, "add_generation_prompt": False}, "text in the last"),
        ([{"role": "user", "content": "x"}], {"chat_template": "{% if %}"}, "syntax error on line 1"),
        ([{"role": "user", "content": "x"}], {"chat_template": "{{" + "(" * 9999}, "valid Jinja"),
        ([{"role": "user", "content": "x"}], {"chat_template": "{#" + "x" * (1 << 20)}, "at most 1048576 characters"),
        ([{"role": "user", "content": "x"}], {"chat_template": "\n\n{{ 1 / 0 }}"}, "ZeroDivisionError on line 3"),
        ([{"role": "user", "content": "x"}], {"chat_template": "{{ messages[9].x }}"}, "UndefinedError on line 1"),
        ([{"role": "user", "content": "x"}], {"chat_template": "{{ raise_exception('no: é') }}"}, "this chat: no: é"),
        ([{"role": "user", "content": "x"}], {"chat_template": "{% include 'x' %}"}, "a failure of kind"),
        ([{"role": "user", "content": "x\ud800"}], {"chat_template": CHATML}, "lone surrogate"),
    ],
)
def test_bad_chats_are_request_errors(
    messages: Any, options: dict[str, Any], words: str, pair: tuple[Tokenizer, Any]
) -> None:
    with pytest.raises(RequestError, match=r"expected|refuses") as caught:
        pair[0].apply_chat_template(messages, **{"chat_template": CHATML, **options})
    assert words in str(caught.value)


def test_a_template_that_drops_the_last_message_cannot_continue_it(pair: tuple[Tokenizer, Any]) -> None:
    chat = [{"role": "user", "content": "hello"}]
    for template in ("{{ bos_token }}", "{{ messages[0].content | upper }}"):
        with pytest.raises(RequestError, match="drops or edits it"):
            pair[0].render_chat(chat, chat_template=template, continue_final_message=True, add_generation_prompt=False)


def render(source: str, *, max_chars: int = 100_000, max_seconds: float = 0.2) -> str:
    renderer = ChatRenderer({"default": source}, {}, max_chars=max_chars, max_seconds=max_seconds)
    return renderer.render(
        [{"role": "user", "content": "hi"}],
        chat_template=None,
        add_generation_prompt=True,
        continue_final_message=False,
        tools=None,
        variables={},
    )


GROW = "{% set n = namespace(v=['x']) %}{% for i in range(80) %}{% set n.v = GROWTH %}{% endfor %}{{ n.v|tojson }}"
ENDLESS = "{% for a in l %}{% for b in l %}{% for c in l %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% set l = range(99999)|list %}" + ENDLESS,
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for i in range(99999999) %}x{% endfor %}",
        "{% for i in range(99999) %}xxxxxxxxxx{% endfor %}",
        "{% set s %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}{{ s|length }}",
        "{% set s = 'x' * 99999 %}{% set t %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endset %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 10 ** 9 * 'x' }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x'|center(10 ** 9) }}",
        "{{ 'x'.ljust(10 ** 9) }}",
        "{{ 'x'.encode() * 10 ** 9 }}",
        "{{ (1).to_bytes(10 ** 9, 'big') }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10 ** 9) }}",
        "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
        "{{ ('x' * 99999)|replace('x', 'y' * 99999) }}",
        "{{ ('x' * 99999).join(range(99999)|map('string')|list) }}",
        "{{ range(99999)|join('x' * 99999) }}",
        "{{ [1, 2]|tojson(indent=10 ** 9) }}",
        GROW.replace("GROWTH", "n.v + n.v"),
        GROW.replace("GROWTH", "n.v ~ n.v"),
        GROW.replace("GROWTH", "[n.v, n.v]"),
        GROW.replace("GROWTH", "(n.v, n.v)"),
        GROW.replace("GROWTH", "{'a': n.v, 'b': n.v}"),
        GROW.replace("GROWTH", "dict(a=n.v, b=n.v)"),
        GROW.replace("GROWTH", "[n.v]|map('list')|list * 2"),
    ],
)
def test_templates_cannot_run_or_grow_without_bound(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(RequestError, match="chat template: expected"):
        render(source)
    assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    "source",
    [
        "{% set s %}{% for i in range(99) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
        "{% set s %}{% for i in range(99) %}{{ 'x' * 9999 }}{% endfor %}{% endset %}",
        "{% macro m() %}"
        + "x" * 9999
        + "{% endmacro %}{% set s %}{% for i in range(99) %}{{ m() }}{% endfor %}{% endset %}",
    ],
)
def test_text_inside_blocks_counts_although_it_is_never_shown(source: str) -> None:
    with pytest.raises(RequestError, match="characters written"):
        render(source, max_seconds=5)
    assert render(source, max_seconds=5, max_chars=1_000_000) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ dict.mro() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ lipsum(n=100) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(source: str) -> None:
    # Jinja refuses, or gives an undefined value, which prints as nothing.
    assert either(lambda: render(source), (RequestError,)) in ("refused", "")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for x in [1, 2] %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}", "1/2,2/2"),
        ("{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}", "x1"),
        ("{% for x in nothing %}x{% else %}none{% endfor %}", "none"),
        ("{% for x in [1, 2, 3, 4] if x % 2 == 0 %}{{ x }}{% endfor %}", "24"),
        ("{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "123"),
        ("{% for x in range(9) %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "02345678"),
        ("{% for x in range(9) %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "01"),
        ("{% set a, b = 1, 2 %}{{ (a, b) }}{{ [a, b][1] }}", "(1, 2)2"),
        ("{{ '%s-%02d **x**' % ('a', 7) }}{{ '{}: {:>3}'.format('b', 20240101) }}", "a-07 **x**b: 20240101"),
        ("{{ '12345678'|int(7654321) }}{{ 'x'|default(99999999) }}", "12345678x"),
        ("{{ dict.fromkeys(['a', 'b'], 1)|list }}{{ dict(a=1).a }}", "['a', 'b']1"),
        ("{% set n = namespace(a=1) %}{{ n }}{{ n.a }}", "<namespace>1"),
        ("{{ {'é': '<'}|tojson }}", '{"é": "<"}'),
        ("{{ {'b': 1, 'a': 2}|tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{% set v = 1 %}{% generation %}{% set v = 2 %}{{ v }}{% endgeneration %}{{ v }}", "21"),
        ("{{ ', '.join(messages|map(attribute='role')) }}{{ 'abc'|join('-') }}", "usera-b-c"),
        ("{{ messages|map(attribute='content')|join(', ')|upper|replace('HI', 'ho') }}", "ho"),
        ("{{ documents is none }}{{ tools is none }}{{ bos_token is defined }}", "TrueTrueFalse"),
    ],
)  # fmt: skip
def test_ordinary_jinja_works_within_the_limits(source: str, expected: str) -> None:
    assert render(source, max_seconds=5) == expected
