"""What becomes of bodies, keys, errors and the documentation: without a server."""

import re
from dataclasses import fields

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.core.errors import CapacityError, ConfigError, PlanError, RequestError
from quire.core.server_config import ServerConfig
from quire.server import errors
from quire.server.app import all_endpoints
from quire.server.engine_client import EngineDeadError, OverloadedError
from quire.server.errors import ApiError, from_exception
from quire.server.http.auth import Keys, cache_salt, check_address, read_keys
from quire.server.http.limits import Limits
from quire.server.openapi import document
from quire.server.protocol.chat import ChatRequest
from quire.server.protocol.completions import CompletionRequest
from quire.server.protocol.decode import decode
from quire.server.routes.docs import page
from tests.support.server_process import ROOT

LIMITS = Limits()


def refused(body: bytes, kind: type = CompletionRequest) -> errors.ErrorBody:
    with pytest.raises(ApiError) as caught:
        decode(body, kind, {"suffix": (None,)}, LIMITS)
    assert caught.value.status == 400
    return caught.value.body


@pytest.mark.parametrize(
    "body, param, words",
    [
        (b'{"prompt": "a", "n": 129}', "n", "expected a number <= 128"),
        (b'{"prompt": 5}', "prompt", "expected text or a list, got an integer"),
        (b"{}", "prompt", "it is required"),
        (b'{"prompt": "a", "stream_options": {"include_usage": 1}}', "stream_options.include_usage", "true or false"),
        (b'{"prompt": "a", "suffix": "b"}', "suffix", "does not honour"),
        (b'{"prompt": "a", "stop_token_ids": [1, -1]}', "stop_token_ids[1]", "expected a number >= 0"),
        (b'{"prompt": ', "body", "expected JSON"),
    ],
)
def test_refusals_name_the_field_in_our_words(body, param, words):
    told = refused(body)
    assert told.param == param and words in told.message and "`" not in told.message


def test_what_is_not_known_is_told():
    message, form = {"role": "user", "content": "a", "mood": 1}, {"type": "text", "x": 1}
    body = msgspec.json.encode({"messages": [message], "response_format": form, "y": 1})
    _, warnings = decode(body, ChatRequest, {}, LIMITS)
    assert warnings == [
        "y: unknown field, ignored.",
        "messages[0].mood: unknown field, ignored.",
        "response_format.x: unknown field, ignored.",
    ]
    many = msgspec.json.encode({"prompt": "a", **{f"x{i}": i for i in range(50)}})
    assert decode(many, CompletionRequest, {}, LIMITS)[1][-1] == "30 more unknown fields, ignored."


def test_a_field_that_is_not_honoured_may_say_what_is_done_anyway():
    request, warnings = decode(b'{"prompt": "a", "suffix": null}', CompletionRequest, {"suffix": (None,)}, LIMITS)
    assert request.prompt == "a" and not warnings


def test_depth_and_brackets_are_counted():
    deepest = b'{"prompt": "a", "x": ' + b"[" * 63 + b"]" * 63 + b"}"
    assert decode(deepest, CompletionRequest, {}, LIMITS)[1] == ["x: unknown field, ignored."]
    assert "nested" in refused(deepest.replace(b"[]", b"[[]]")).message
    assert "brackets" in refused(b'{"prompt": "' + b"[" * 70_000 + b'"}').message


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data):
    for kind in (CompletionRequest, ChatRequest):
        try:
            decode(data, kind, {}, LIMITS)
        except ApiError as error:
            msgspec.json.decode(error.encoded())


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_FLAT = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
_JSON = st.recursive(_FLAT, lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner), max_leaves=10)


@given(st.sampled_from(sorted(ChatRequest.__struct_fields__)), _JSON)
def test_any_value_of_any_field_is_refused_or_read(name, value):
    body = {"messages": [{"role": "user", "content": "a"}], name: value}
    try:
        decode(msgspec.json.encode(body), ChatRequest, {}, LIMITS)
    except ApiError as error:
        assert error.status == 400 and error.body.param


@pytest.mark.parametrize(
    "error, status, is_again",
    [
        (RequestError("n: expected 1, got 2."), 400, False),
        (CapacityError("prompt: too long."), 400, False),
        (OverloadedError("The engine is busy.", 3.2), 429, True),
        (EngineDeadError("The engine process ended."), 503, True),
        (PlanError("a secret path"), 500, False),
        (KeyError("a secret"), 500, False),
    ],
)
def test_errors_have_a_status_and_no_secrets(error, status, is_again):
    told = from_exception(error)
    headers = dict(told.headers())
    assert told.status == status and (headers[b"x-should-retry"] == b"true") == is_again
    assert (b"retry-after" in headers) == is_again and "secret" not in told.body.message
    if isinstance(error, OverloadedError):
        assert headers[b"retry-after"] == b"4"


def test_messages_are_bounded_and_can_always_be_encoded():
    told = from_exception(RequestError("prompt: got " + "\ud800" * 5000))
    assert len(told.body.message) <= 1000 and b"prompt" in told.encoded()


def test_keys():
    keys = Keys(["one", "two"])
    identities = {keys.identify(f"Bearer {key}".encode()) for key in ("one", "two")}
    assert len(identities) == 2 and None not in identities
    assert keys.identify(b"bearer one") in identities
    for wrong in (None, b"", b"Bearer", b"Bearer ", b"Bearer three", b"one", b"Bearer one two", b"Bearer \xff"):
        assert keys.identify(wrong) is None
    shared = Keys(["one", "two"], share_prefix_cache=True)
    assert shared.identify(b"Bearer one") == shared.identify(b"Bearer two") == b""
    assert Keys([]).is_open and Keys([]).identify(None) == b""


def test_salts_depend_on_key_and_wish():
    one, two = (Keys(["one", "two"]).identify(f"Bearer {key}".encode()) for key in ("one", "two"))
    salts = [cache_salt(key, wish) for key in (one, two, b"") for wish in (None, "a", "b")]
    assert len(set(salts)) == len(salts) and cache_salt(b"", None) == ""
    assert all("one" not in salt for salt in salts)


def test_keys_of_a_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("first\n\n second \n")
    assert read_keys(ServerConfig(api_key="zero", api_key_file=str(path))) == ["zero", "first", "second"]
    path.write_text("\n")
    with pytest.raises(ConfigError, match="expected a key a line"):
        read_keys(ServerConfig(api_key_file=str(path)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_other_addresses_need_a_key(host):
    with pytest.raises(ConfigError, match="--allow-unauthenticated"):
        check_address(ServerConfig(host=host), Keys([]))
    check_address(ServerConfig(host=host), Keys(["key"]))
    check_address(ServerConfig(host=host, allow_unauthenticated=True), Keys([]))
    check_address(ServerConfig(), Keys([]))


def test_every_integer_of_the_document_has_a_maximum():
    made = document(all_endpoints())
    requests = {endpoint.body.__name__ for endpoint in all_endpoints() if endpoint.body is not None}
    seen, missing = set(), []

    def walk(schema: object, path: str) -> None:
        if isinstance(schema, list):
            for item in schema:
                walk(item, path)
        if not isinstance(schema, dict):
            return
        if "$ref" in schema and schema["$ref"] not in seen:
            seen.add(schema["$ref"])
            name = schema["$ref"].rpartition("/")[2]
            walk(made["components"]["schemas"][name], name)
        if schema.get("type") == "integer" and "maximum" not in schema:
            missing.append(path)
        for key, item in schema.items():
            walk(item, f"{path}.{key}" if key not in ("properties", "anyOf") else path)

    for name in requests:
        walk({"$ref": f"#/components/schemas/{name}"}, name)
    assert len(requests) == 6 and not missing


def test_the_page_of_documentation_asks_nobody_else():
    made = page(document(all_endpoints()))
    for endpoint in all_endpoints():
        assert re.sub(r":\w+}", "}", endpoint.path) in made
    for foreign in ("http://", "https://", "//", "<script", "@import", "url("):
        assert foreign not in made.replace("</", "")


def test_every_option_is_documented():
    text = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    for item in fields(ServerConfig):
        name = item.name.replace("_", "-")
        assert f"`--{name}`" in text or f"`--no-{name}`" in text, name
    for endpoint in all_endpoints():
        is_part_of_page = endpoint.path.startswith("/page/")
        assert is_part_of_page or endpoint.path.partition("/{")[0] in text
