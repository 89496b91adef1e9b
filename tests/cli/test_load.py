"""`quire bench serve`: what is planned, how answers are read however they are cut, and what is counted."""

import asyncio
import json
import math
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from itertools import pairwise

import pytest

from quire.cli.load.http_client import BrokenAnswer, Connection, HttpClient
from quire.cli.load.measure import Measured, RequestRecord, measure
from quire.cli.load.plot import draw
from quire.cli.load.settings import LoadConfig
from quire.cli.load.summary import is_good, percentiles, summarize
from quire.cli.load.workload import Texts
from quire.cli.main import main
from quire.core.errors import ConfigError
from quire.simulation.load import PlannedRequest, plan_load
from tests.support.server_process import serving

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODELS = b'{"data": [{"id": "stand-in", "max_model_len": 512}]}'


# ----------------------------------------------------------------------------------------------------------------- plan


def test_arrivals_are_poisson_at_the_rate_and_repeat_with_the_seed():
    config = LoadConfig(rate=50, num_requests=4000, seed=3)
    planned = plan_load(config, None)
    gaps = [after.due_s - before.due_s for before, after in pairwise(planned)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.06)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 50, rel=0.1)  # of an exponential, deviation and mean are one
    assert planned == plan_load(config, None) != plan_load(LoadConfig(rate=50, num_requests=4000, seed=4), None)


def test_bursts_come_together_at_the_same_rate():
    planned = plan_load(LoadConfig(rate=50, num_requests=4000, arrivals="burst", burst_size=8), None)
    times = [item.due_s for item in planned]
    assert all(times[i] == times[i - i % 8] for i in range(4000))
    assert 4000 / times[-1] == pytest.approx(50, rel=0.15)


def test_a_duration_bounds_arrivals_and_an_infinite_rate_is_all_at_once():
    times = [item.due_s for item in plan_load(LoadConfig(rate=100, duration_s=2.0), None)]
    assert 120 < len(times) < 280 and max(times) < 2
    assert {item.due_s for item in plan_load(LoadConfig(rate=math.inf, num_requests=5), None)} == {0.0}


def test_lengths_have_the_means_a_long_tail_and_fit_the_model():
    config = LoadConfig(num_requests=20_000, lengths="sharegpt", input_len=161, output_len=338)
    planned = plan_load(config, None)
    prompts = [item.num_prompt_tokens for item in planned]
    assert statistics.fmean(prompts) == pytest.approx(161, rel=0.06) and statistics.median(prompts) < 100
    assert statistics.fmean(item.num_output_tokens for item in planned) == pytest.approx(338, rel=0.04)
    fitted = plan_load(config, 512)
    assert all(1 <= item.num_prompt_tokens <= 512 - item.num_output_tokens for item in fitted)
    assert {item.num_prompt_tokens for item in plan_load(LoadConfig(input_len=7), 512)} == {7}


def test_texts_learn_how_many_tokens_a_word_has():
    texts = Texts(0)
    texts.learn((8, 8 * 2 + 11), (72, 72 * 2 + 11))
    assert len(texts.of_tokens(111).split()) == 50
    assert texts.of_tokens(50) != texts.of_tokens(50)


@pytest.mark.parametrize(
    "setting",
    [
        {"rate": 0.0}, {"rate": math.nan}, {"num_requests": 0}, {"arrivals": "never"}, {"lengths": "long"},
        {"api": "chats"}, {"rate": math.inf, "duration_s": 3.0}, {"slo_ttft_ms": -1.0}, {"max_concurrency": 0},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(setting):
    with pytest.raises(ConfigError, match=f"{list(setting)[-1]}: expected"):
        LoadConfig(**setting)


# ----------------------------------------------------------------------------------------------------------------- HTTP


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


class Wire:
    """A transport that remembers."""

    def __init__(self):
        self.is_aborted = False

    def write(self, data):
        pass

    def abort(self):
        self.is_aborted = True


async def read(answer: bytes, size: int, is_closed: bool = False):
    """What a connection makes of an answer that comes in pieces of a size."""
    connection, events = Connection(), []
    connection._transport, connection.is_reusable = Wire(), True
    done = connection.request(b"", events.append)
    for start in range(0, len(answer), size):
        connection.data_received(answer[start : start + size])
    if is_closed:
        connection.connection_lost(None)
    return await asyncio.wait_for(done, 1), events, connection.is_reusable


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_events_are_the_same_however_they_are_cut(size):
    body = chunked(b'data: {"a": 1}\n\ndata: {"b"', b": 2}\n\n: note\n\n", b"data: [DO", b"NE]\r\n\r\n")
    answer, events, is_reusable = asyncio.run(read(HEAD + body, size))
    assert answer == (200, b"") and events == [b'{"a": 1}', b'{"b": 2}', b"[DONE]"] and is_reusable


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_bodies_of_all_framings(size):
    sized = b"HTTP/1.1 429 Too Many\r\ncontent-length: 5\r\n\r\nhello"
    assert asyncio.run(read(sized, size))[0] == (429, b"hello")
    assert asyncio.run(read(b"HTTP/1.0 200 OK\r\n\r\nhello", size, is_closed=True))[::2] == ((200, b"hello"), False)
    assert asyncio.run(read(b"HTTP/1.1 204 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", size))[2] is False


@pytest.mark.parametrize("answer", [HEAD + b"zz\r\n", b"SSH-2.0-x\r\n\r\n", HEAD + b"5\r\nab", HEAD[:30], b""])
def test_answers_that_break_are_errors(answer):
    with pytest.raises(BrokenAnswer):
        asyncio.run(read(answer, 3, is_closed=True))


@pytest.mark.parametrize("url", ["ftp://a", "http://", "", "http:///v1"])
def test_urls_that_are_none(url):
    with pytest.raises(ConfigError, match="base_url: expected"):
        HttpClient(url)


def test_requests_are_composed_below_the_path():
    data = HttpClient("https://host:1234/prefix/v1/", "secret").compose("POST", "/v1/completions", b"{}")
    assert data.startswith(b"POST /prefix/v1/completions HTTP/1.1\r\nhost: host:1234\r\n")
    assert b"authorization: Bearer secret\r\n" in data and data.endswith(b"content-length: 2\r\n\r\n{}")


# ---------------------------------------------------------------------------------------------------------------- a run

Behaviour = Callable[[int], tuple[bytes, float]]
"""From the number of a completion to its answer's bytes, and seconds before them. Empty bytes close the connection."""


@asynccontextmanager
async def stand_in(behave: Behaviour) -> AsyncIterator[str]:
    """A server on this event loop; yields its URL."""
    count, handlers = iter(range(10_000)), set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                answer, delay_s = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(MODELS), MODELS), 0.0
                if b"/completions" in head:
                    answer, delay_s = behave(next(count))
                await asyncio.sleep(delay_s)
                writer.write(answer)
                if not answer:
                    return

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


def load(behave: Behaviour, config: LoadConfig) -> Measured:
    """Run a load against a server that behaves so."""

    async def run() -> Measured:
        async with stand_in(behave) as url:
            return await measure(url, config)

    return asyncio.run(run())


def tokens(count: int) -> bytes:
    events = [b'data: {"choices": [{"text": "a"}]}\n\n'] * count
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": %d}}\n\n' % count
    return HEAD + chunked(*events, usage, b"data: [DONE]\n\n")


def sized(status: bytes) -> bytes:
    return b"HTTP/1.1 " + status + b" x\r\ncontent-length: 2\r\n\r\n{}"


def test_each_kind_of_failure_is_counted_apart():
    failures = {
        0: sized(b"429"), 1: sized(b"503"), 2: b"", 3: HEAD + chunked(b'data: {"error": {"message": "x"}}\n\n'),
        4: HEAD + chunked(b'data: {"choices": [{"text": "a"}]}\n\n'), 5: HEAD + chunked(b"data: [DONE]\n\n"),
        6: HEAD + chunked(b"data: {not json\n\n"), 7: sized(b"429"),
    }  # fmt: skip

    def behave(number: int) -> tuple[bytes, float]:
        number -= 2  # two probes come first
        return (failures.get(number, tokens(4)), 30.0 if number == 8 else 0.0)

    config = LoadConfig(rate=200, num_requests=20, timeout_s=1.0, max_concurrency=1)
    result = summarize(load(behave, config), config, "")
    assert result["num_rejected"] == 2 and result["num_ok"] == 11
    assert result["errors"] == {"503": 1, "cut": 3, "error_frame": 1, "no_tokens": 1, "timeout": 1}
    assert result["mean_output_tokens"] == 4 and result["mean_prompt_tokens"] == 30


def test_a_slow_answer_does_not_hold_the_next_request_back():
    """The loop is open: forty requests that take 0.3 s each end together."""
    config = LoadConfig(rate=400, num_requests=40)
    measured = load(lambda number: (tokens(3), 0.3), config)
    assert max(record.end_s for record in measured.records) < 1.5
    assert all(record.error is None for record in measured.records)


def test_what_waits_for_the_limit_of_concurrency_counts():
    config = LoadConfig(rate=math.inf, num_requests=6, max_concurrency=2)
    measured = load(lambda number: (tokens(2), 0.1), config)
    result = summarize(measured, config, "")
    assert result["ttft_ms"]["p99"] > 280 and result["ttft_ms"]["p50"] > 150


def test_goodput_asks_for_every_limit():
    record = RequestRecord(PlannedRequest(1.0, 8, 11), 1.0, 1.2, 2.2, 2.2, [0.1] * 10, 8, 11)
    assert is_good(record, LoadConfig())
    assert is_good(record, LoadConfig(slo_ttft_ms=210, slo_itl_ms=101, slo_e2e_ms=1201))
    for limit in ({"slo_ttft_ms": 190}, {"slo_itl_ms": 99}, {"slo_e2e_ms": 1199}):
        assert not is_good(record, LoadConfig(slo_ttft_ms=limit.pop("slo_ttft_ms", 210), **limit))
    record.error = "cut"
    assert not is_good(record, LoadConfig())


def test_percentiles():
    assert percentiles([]) is None
    assert percentiles([3.0]) == {"p50": 3, "p90": 3, "p99": 3, "mean": 3}
    made = percentiles([float(value) for value in range(101)])
    assert (made["p50"], made["p90"], made["p99"], made["mean"]) == (50, 90, 99, 50)


def test_a_server_that_is_none_is_told_in_a_line(capsys):
    assert main(["bench", "serve", "http://127.0.0.1:9", "--num-requests", "1"]) == 2
    assert capsys.readouterr().err.startswith("quire: base_url: expected a server at http://127.0.0.1:9, got: ")
    with pytest.raises(ConfigError, match="model: expected one of stand-in, got 'another'"):
        load(lambda number: (tokens(1), 0.0), LoadConfig(model="another"))
    with pytest.raises(ConfigError, match="expected an answer to a first request, got: 503"):
        load(lambda number: (sized(b"503"), 0.0), LoadConfig())


def test_against_the_real_server(capsys, tmp_path):
    plot = tmp_path / "run.png"
    with serving() as server:
        code = main(
            ["bench", "serve", server.url, "--rate", "30", "--num-requests", "12", "--input-len", "40", "--output-len",
             "12", "--json", "--plot", str(plot)]
        )  # fmt: skip
        result = json.loads(capsys.readouterr().out)
        assert code == 0 and result["num_ok"] == 12 and not result["errors"] and "api_key" not in result["settings"]
        assert result["mean_output_tokens"] == 12 and 25 < result["mean_prompt_tokens"] < 55
        assert 0 < result["ttft_ms"]["p50"] <= result["e2e_ms"]["p50"]
        assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 20_000
        assert main(["bench", "serve", server.url, "--api", "chat", "--rate", "inf", "--num-requests", "6",
                     "--input-len", "20", "--output-len", "4", "--slo-ttft-ms", "0.001"]) == 0  # fmt: skip
        shown = capsys.readouterr().out
    assert "6 of 6" in shown and "first token (ttft)" in shown and "0.0%" in shown


def test_a_plot_of_nothing_and_one_that_cannot_be_written(tmp_path):
    config = LoadConfig(num_requests=2, rate=100)
    answers = iter([tokens(1)] * 2)
    measured = load(lambda number: (next(answers, sized(b"429")), 0.0), config)
    result = summarize(measured, config, "")
    assert result["num_rejected"] == 2 and result["ttft_ms"] is None
    draw(tmp_path / "none.png", measured, config, result)
    with pytest.raises(ConfigError, match="plot: expected a file that can be written"):
        draw(tmp_path / "no" / "such.png", measured, config, result)
