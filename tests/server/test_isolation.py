"""No request reaches another one: poison among running requests changes nothing but its own answer."""

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from tests.support.poison import poisons
from tests.support.serve_with_faults import FAULTS
from tests.support.server_process import events, serving, status_and_body

NUM_NEIGHBOURS = 31
POISONS = poisons()


def neighbours(server) -> list[list[int]]:
    """The ids of 31 streams that run at once."""

    def stream(index: int) -> list[int]:
        body = {"prompt": f"Story {index}: once", "max_tokens": 48, "temperature": 0.9, "seed": index, "stream": True,
                "ignore_eos": True, "return_token_ids": True}  # fmt: skip
        status, answer = server.ask("POST", "/v1/completions", msgspec.json.encode(body))
        found = events(answer)
        assert status == 200 and found[-1] == "[DONE]", answer[-500:]
        return [token for chunk in found[:-1] for choice in chunk["choices"] for token in choice["token_ids"]]

    with ThreadPoolExecutor(NUM_NEIGHBOURS) as pool:
        return list(pool.map(stream, range(NUM_NEIGHBOURS)))


def test_neighbours_of_poison_get_the_same_ids(server):
    clean = neighbours(server)
    assert all(len(ids) == 48 for ids in clean)
    stop, wrong = threading.Event(), []

    def poison() -> None:
        while True:
            for item in POISONS:
                if stop.is_set():
                    return
                status, _ = status_and_body(server.send(item.data))
                if status not in item.statuses:
                    wrong.append((item.name, status))

    thread = threading.Thread(target=poison)
    thread.start()
    try:
        assert neighbours(server) == clean
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_there_are_at_least_fifty_kinds():
    assert len(POISONS) >= 50 and len({item.name for item in POISONS}) == len(POISONS)


@pytest.mark.parametrize("item", POISONS, ids=[item.name for item in POISONS])
def test_poison_is_refused(server, item):
    status, body = status_and_body(server.send(item.data))
    assert status in item.statuses, body
    error = msgspec.json.decode(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    for foreign in ("msgspec", "Traceback", "$.", "`", "object at 0x"):
        assert foreign not in error["message"]


def test_the_engine_has_outlived_all_of_it(server):
    assert server.metric("engine_deaths_total") == 0
    server.until_idle()
    assert server.ask("GET", "/health/ready")[0] == 200


def test_what_the_engine_process_cannot_compute_ends_alone():
    with serving(module="tests.support.serve_with_faults") as faulty:
        clean, stop, found = neighbours(faulty), threading.Event(), []

        def poison() -> None:
            while not stop.is_set():
                for fault, token in FAULTS.items():
                    body = {"prompt": [token] * (3 + len(found) % 50), "max_tokens": 2}
                    found.append((fault, faulty.post("/v1/completions", body)[0]))

        thread = threading.Thread(target=poison)
        thread.start()
        try:
            assert neighbours(faulty) == clean
        finally:
            stop.set()
            thread.join()
        assert {fault for fault, _ in found} == set(FAULTS) and {status for _, status in found} == {500}
        assert faulty.metric("engine_deaths_total") == 0
        faulty.until_idle()
