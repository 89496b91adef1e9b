"""Bounds on connections, on the order of checks, and on what is allocated: each over a raw socket."""

import time
from contextlib import closing

import msgspec
import pytest

from tests.support.server_process import events, read_all, read_until, request, serving, status_and_body

KEY = "the-key"
PATHS = ["/v1/models", "/health", "/health/ready", "/metrics", "/docs", "/openapi.json", "/nothing", "/version",
         "/tokenizer_info"]  # fmt: skip
LIMITS = {"max_body_bytes": 20_000, "head_timeout_s": 1.0, "body_timeout_s": 1.0, "linger_s": 0.5}
RUN = msgspec.json.encode({"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True})


@pytest.fixture(scope="module")
def server():
    with serving("--api-key", f"{KEY},another-key", limits=LIMITS) as running:
        running.key = KEY
        yield running


def head_of(length: int, **headers: str) -> bytes:
    """The head of a request whose body does not follow."""
    made = request(
        "POST", "/v1/completions", b"", {"authorization": f"Bearer {KEY}", "content-length": str(length), **headers}
    )
    return made


@pytest.mark.parametrize(
    "value", [None, "Bearer wrong", "Basic " + KEY, KEY, "Bearer", "Bearer " + KEY + "x", "Bearer \xff"]
)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_needs_a_key(server, path, value):
    status, body = server.ask("GET", path, headers={"authorization": value})
    assert status == 401 and msgspec.json.decode(body)["error"]["code"] == "invalid_api_key"


def test_liveness_needs_none(server):
    assert server.ask("GET", "/health/live", headers={"authorization": None})[0] == 200


@pytest.mark.parametrize("key", [KEY, "another-key"])
def test_each_key_opens(server, key):
    assert server.ask("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})[0] == 200


def test_the_key_is_checked_before_the_body_is_read(server):
    """The answer comes though the body, which is too large and no JSON, never does."""
    start = time.monotonic()
    answer = server.send(head_of(10_000, authorization="Bearer wrong"))
    assert status_and_body(answer)[0] == 401 and time.monotonic() - start < 0.9 + LIMITS["linger_s"]
    status, _ = server.ask("POST", "/v1/completions", b"[" * 15_000, {"authorization": None})
    assert status == 401


def test_prefixes_are_shared_within_a_key_only(server):
    def cached(key: str) -> int:
        body = msgspec.json.encode({"prompt": "A prefix of one of the keys. " * 8, "max_tokens": 1})
        answer = server.ask("POST", "/v1/completions", body, {"authorization": f"Bearer {key}"})[1]
        return msgspec.json.decode(answer)["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert [cached(KEY), cached("another-key")] == [0, 0]
    assert cached(KEY) > 0 and cached("another-key") > 0


def test_a_long_body_is_refused_before_it_comes(server):
    status, body = status_and_body(server.send(head_of(20_001)))
    assert status == 413 and msgspec.json.decode(body)["error"]["code"] == "request_too_large"


def test_a_long_body_in_chunks_is_refused_while_it_comes(server):
    chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    data = head_of(0, **{"transfer-encoding": "chunked", "content-length": None}) + chunk * 40 + b"0\r\n\r\n"
    assert status_and_body(server.send(data))[0] == 413


def test_a_client_that_never_stops_sending_is_closed(server):
    chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    with closing(server.connect()) as sock:
        sock.sendall(head_of(0, **{"transfer-encoding": "chunked", "content-length": None, "connection": "keep-alive"}))
        start = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - start < 10:
                sock.sendall(chunk)
                time.sleep(0.001)


def test_a_slow_body_is_given_up(server):
    with closing(server.connect()) as sock:
        sock.sendall(head_of(100) + b'{"prompt": ')
        status, body = status_and_body(read_all(sock))
    assert status == 408 and msgspec.json.decode(body)["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("start", [b"", b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx-slow: "])
def test_slow_headers_are_given_up(server, start):
    with closing(server.connect()) as sock:
        sock.sendall(start)
        answer = read_all(sock)
    assert status_and_body(answer)[0] == 408


def test_dripping_headers_do_not_extend_the_time(server):
    with closing(server.connect()) as sock:
        sock.sendall(b"GET /v1/models HTTP/1.1\r\n")
        start = time.monotonic()
        with pytest.raises(OSError):
            for index in range(200):
                sock.sendall(b"x-%d: 1\r\n" % index)
                time.sleep(0.05)
        assert time.monotonic() - start < 4


def test_a_connection_serves_many_requests(server):
    ask = request("GET", "/version", headers={"authorization": f"Bearer {KEY}", "connection": "keep-alive"})
    with closing(server.connect()) as sock:
        for _ in range(3):
            sock.sendall(ask)
            answer = b""
            while not answer.endswith(b"}"):
                answer += sock.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")


def test_a_second_request_before_the_answer_is_dropped(server):
    ask = request("GET", "/version", headers={"authorization": f"Bearer {KEY}", "connection": "keep-alive"})
    answer = server.send(ask + ask + b"and something else")
    assert answer.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("prompt", ["Once", ["Once", "Twice", "Thrice"]])
def test_a_client_that_leaves_frees_its_blocks(server, is_streamed, prompt):
    body = msgspec.json.encode({"prompt": prompt, "max_tokens": 480, "ignore_eos": True, "stream": is_streamed, "n": 2})
    with closing(server.connect()) as sock:
        sock.sendall(request("POST", "/v1/completions", body, server.auth()))
        if is_streamed:
            read_until(sock, b"data: ")
        while not server.metric("num_requests_running"):
            time.sleep(0.01)
    assert server.until_idle() < 2.0


def test_a_client_that_leaves_with_a_second_request_behind_frees_its_blocks(server):
    ask = request("POST", "/v1/completions", RUN, {**server.auth(), "connection": "keep-alive"})
    with closing(server.connect()) as sock:
        sock.sendall(ask + ask)
        read_until(sock, b"data: ")
    assert server.until_idle() < 2.0


def test_ids_are_told_and_made(server):
    headers = {"x-request-id": "mine-1"}
    assert b"x-request-id: mine-1\r\n" in server.send(request("GET", "/version", b"", {**server.auth(), **headers}))
    bad = server.send(request("GET", "/version", b"", {**server.auth(), "x-request-id": "a b\tc"}))
    assert b"x-request-id: req-" in bad
    assert '"request_id":"mine-1","method":"GET","path":"/version","status":200' in server.log.read_text()
    assert KEY not in server.log.read_text()


def test_streams_end_as_the_reference_says(server):
    body = msgspec.json.encode({"prompt": "Once", "max_tokens": 4, "stream": True})
    answer = server.send(request("POST", "/v1/completions", body, server.auth()))
    assert b"content-type: text/event-stream" in answer
    assert events(status_and_body(answer)[1])[-1] == "[DONE]" and answer.count(b"data: [DONE]") == 1
