"""Starting and stopping a server: addresses, queues, drains, and the engine's death."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from quire.cli.main import main
from tests.support.server_process import ROOT, events, read_all, read_until, request, serving, status_and_body

LONG = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "temperature": 0}


def begin(server, **fields):
    """Start a stream and wait for its first event; the socket is the caller's."""
    sock = server.connect(60)
    sock.sendall(request("POST", "/v1/completions", msgspec.json.encode({**LONG, "stream": True, **fields})))
    return sock, read_until(sock, b"data: ")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--host", "0.0.0.0"], "Set --api-key"),
        (["--host", "192.0.2.1", "--allow-unauthenticated"], "port: expected a free one"),
        (["--host", "a..b", "--allow-unauthenticated"], "host: expected an address"),
        (["--api-key", " , "], "api_key: expected at least one key"),
        (["--api-key", "schlüssel"], "api_key: expected printable ASCII"),
        (["--api-key-file", "/nowhere"], "api_key_file: expected a readable text file"),
        (["--chat-template", "/nowhere"], "chat_template: expected a readable text file"),
        (["--port", "70000"], "port: expected 0..65535"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(options, words, capsys):
    assert main(["serve", "quire-tiny", *options]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_a_port_in_use_is_told_before_anything_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "quire-tiny", "--port", str(taken.getsockname()[1])]) == 2
    assert "port: expected a free one" in capsys.readouterr().err


def test_a_drain_finishes_what_runs_and_takes_nothing_more():
    with serving() as server:
        sock, got = begin(server)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        status, body = server.ask("GET", "/health/ready")
        assert status == 503 and msgspec.json.decode(body)["reason"] == "shutting down"
        assert server.ask("GET", "/health/live")[0] == 200
        answer = server.send(request("POST", "/v1/completions", msgspec.json.encode(LONG)))
        assert status_and_body(answer)[0] == 503 and b"retry-after: " in answer and b"x-should-retry: true" in answer
        with closing(sock):
            found = events(status_and_body(got + read_all(sock))[1])
        assert found[-1] == "[DONE]" and found[-2]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(10) == 0


@pytest.mark.parametrize("is_second_signal", [True, False])
def test_what_outlives_the_drain_is_told_so(is_second_signal):
    timeout = "30" if is_second_signal else "0.2"
    with serving("--max-model-len", "2048", "--drain-timeout-s", timeout) as server:
        sock, got = begin(server, max_tokens=2000, n=8)
        whole = {}
        body = msgspec.json.encode({**LONG, "max_tokens": 2000, "n": 8})
        asking = threading.Thread(
            target=lambda: whole.update(answer=server.send(request("POST", "/v1/completions", body), 60))
        )
        asking.start()
        while server.metric("num_requests_running") < 16:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        if is_second_signal:
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        with closing(sock):
            found = events(status_and_body(got + read_all(sock))[1])
        asking.join()
        assert time.monotonic() - start < 5
        assert found[-1]["error"]["code"] == "shutting_down"
        status, answer = status_and_body(whole["answer"])
        assert status == 503 and msgspec.json.decode(answer)["error"]["code"] == "shutting_down"
        assert server.process.wait(10) == (1 if is_second_signal else 0)


def test_a_full_queue_is_told_at_once():
    with serving("--max-num-seqs", "1", "--max-num-waiting", "1") as server:
        with closing(begin(server)[0]), closing(server.connect()) as waiting:
            waiting.sendall(request("POST", "/v1/completions", msgspec.json.encode(LONG)))
            while not server.metric("num_requests_waiting"):
                time.sleep(0.01)
            start = time.monotonic()
            answer = server.send(request("POST", "/v1/completions", msgspec.json.encode({**LONG, "stream": True})))
            seconds = time.monotonic() - start
            status, body = status_and_body(answer)
            assert status == 429 and msgspec.json.decode(body)["error"]["code"] == "overloaded"
            assert int(re.search(rb"retry-after: (\d+)", answer)[1]) >= 1 and seconds < 0.5
        server.until_idle()


def test_streams_of_a_dead_engine_get_one_error_frame():
    with serving() as server:
        sock, got = begin(server)
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        with closing(sock):
            found = events(status_and_body(got + read_all(sock))[1])
        assert [event for event in found if "error" in event] == [found[-1]]
        assert found[-1]["error"]["code"] == "engine_unavailable"
        while server.ask("GET", "/health/ready")[0] != 200:
            time.sleep(0.05)
        assert server.post("/v1/completions", {"prompt": "Once", "max_tokens": 2})[0] == 200


def test_two_engines_behind_one_door():
    with serving("--replicas", "2") as server:
        sock, got = begin(server, prompt="Once upon a time", max_tokens=400)
        other, more = begin(server, prompt="The capital of France is", max_tokens=400)
        health = msgspec.json.decode(server.ask("GET", "/health")[1])
        assert [engine["status"] for engine in health["engines"]] == ["ready", "ready"]
        views = [msgspec.json.decode(server.ask("GET", f"/kv_cache/{i}")[1]) for i in range(2)]
        assert [(view["engine"], view["num_engines"], view["picture"]["num_running"]) for view in views] == [
            (0, 2, 1), (1, 2, 1),
        ]  # fmt: skip
        status, answer = server.ask("GET", "/kv_cache/2")
        assert status == 404 and msgspec.json.decode(answer)["error"]["code"] == "engine_not_found"
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        with closing(sock), closing(other):
            ends = [events(status_and_body(begun + read_all(stream))[1])[-1]
                    for begun, stream in ((got, sock), (more, other))]  # fmt: skip
        assert ends.count("[DONE]") == 1, "the other engine's stream is whole"
        assert server.ask("GET", "/health")[0] == 200, "one engine takes requests"
        while b"not ready" in server.ask("GET", "/health")[1]:
            time.sleep(0.05)
        server.until_idle()
        assert server.metric("engine_deaths_total") == 1


def test_without_restart_the_server_ends_with_its_engine():
    with serving("--no-restart") as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert server.process.wait(10) == 1


def test_a_unix_socket(tmp_path):
    path = tmp_path / "socket"
    path_of_dead = socket.socket(socket.AF_UNIX)
    path_of_dead.bind(str(path))
    path_of_dead.close()  # a server that was killed leaves its path behind
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen([sys.executable, "-m", "quire", "serve", "quire-tiny", "--uds", str(path)], env=env,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    try:
        assert any(line.startswith("serving") for line in process.stdout)
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(request("GET", "/health"))
            assert status_and_body(read_all(sock))[0] == 200
        process.terminate()
        assert process.wait(10) == 0 and not path.exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
