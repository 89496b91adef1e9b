"""The page and the picture that it draws: over HTTP, and in headless Chromium."""

import asyncio
import base64
import os
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from quire.core.config import EngineConfig, SchedulerConfig
from quire.core.request import ModelOutput, Request, RowOutput
from quire.core.sampling_params import SamplingParams
from quire.kv_cache.cache import KVCache
from quire.scheduler.picture import MAX_CELLS, MAX_SEQUENCES, draw_cache
from quire.scheduler.scheduler import Scheduler
from quire.server.engine.async_engine import AsyncEngine
from quire.server.engine_client import EngineDeadError
from quire.server.page.endpoints import FILES
from tests.support import chromium
from tests.support.server_process import read_until, request, serving

KEY = "the-key"
PATHS = [file.path for file in FILES]
FOLDER = Path(__file__).parents[2] / "src/quire/server/page"
LONG = {"prompt": "Once upon a time there was a girl who loved the sea. " * 4, "max_tokens": 400, "ignore_eos": True}
needs_browser = pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def server():
    with serving("--max-num-seqs", "8") as running:
        yield running


@pytest.fixture(scope="module")
def locked():
    with serving("--api-key", KEY) as running:
        yield running


def look(server, path: str = "/kv_cache") -> dict:
    """What `/kv_cache` says; bytes are decoded."""
    status, body = server.ask("GET", path)
    assert status == 200, body
    view = msgspec.json.decode(body)
    for name in ("holders", "findable", "owners"):
        view["picture"][name] = base64.b64decode(view["picture"][name])
    return view


def check(picture: dict) -> None:
    """What must hold of every picture that shows all blocks."""
    count = picture["num_blocks"]
    holders, findable, owners = (picture[name] for name in ("holders", "findable", "owners"))
    assert len(holders) == len(findable) == len(owners) == count and picture["stride"] == 1
    assert holders.count(0) == picture["num_free_blocks"]
    assert sum(findable) == picture["num_cached_blocks"]
    assert [holder > 0 for holder in holders] == [owner > 0 for owner in owners]
    assert sum(holders) == sum(sequence["num_blocks"] for sequence in picture["sequences"])
    assert picture["num_running"] + picture["num_waiting"] == len(picture["sequences"])
    for place, number in Counter(owners).items():
        assert place == 0 or number <= picture["sequences"][place - 1]["num_blocks"]


def test_the_picture_of_an_idle_server_holds_only_what_is_cached(server):
    server.post("/v1/completions", {**LONG, "max_tokens": 40})
    server.until_idle()
    picture = look(server)["picture"]
    check(picture)
    assert set(picture["holders"]) == {0} and not picture["sequences"]
    assert 0 < picture["num_cached_blocks"] < picture["num_blocks"] == picture["num_free_blocks"]


def test_the_picture_agrees_with_the_engine_while_it_runs(server):
    with server.connect() as sock:
        body = msgspec.json.encode({**LONG, "n": 3, "stream": True})
        sock.sendall(request("POST", "/v1/completions", body))
        read_until(sock, b'"index":2')
        pictures = [look(server)["picture"] for _ in range(5)]
        usage = server.metric("kv_cache_usage_perc")
    for picture in pictures:
        check(picture)
        assert picture["num_running"] == 3 and max(picture["holders"]) == 3  # of the prompt
        assert {sequence["index"] for sequence in picture["sequences"]} == {0, 1, 2}
    assert 0 < usage < 1
    server.until_idle()
    assert set(look(server)["picture"]["holders"]) == {0}


def test_all_who_look_get_a_picture_while_others_generate(server):
    views: list[dict] = []
    with server.connect() as sock:
        sock.sendall(request("POST", "/v1/completions", msgspec.json.encode({**LONG, "stream": True})))
        read_until(sock, b"data: ")
        threads = [threading.Thread(target=lambda: views.append(look(server))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(views) == 12 and all(view["metrics"]["num_steps"] > 0 for view in views)


def test_looking_is_not_logged_among_requests(server):
    look(server)
    assert '"path":"/kv_cache"' not in server.log.read_text()


@pytest.mark.parametrize("path", PATHS)
def test_files_need_no_key_and_allow_nothing_foreign(locked, path):
    answer = locked.send(request("GET", path))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and body
    policy = re.search(rb"content-security-policy: ([^\r]+)", head)[1].decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["form-action"] == rules["base-uri"] == "'none'"
    assert all(rule in ("'none'", "'self'", "'script'") for rule in rules.values())
    assert b"x-content-type-options: nosniff" in head and b"referrer-policy: no-referrer" in head
    assert KEY.encode() not in answer


def test_the_picture_needs_a_key(locked):
    assert locked.ask("GET", "/kv_cache", headers={"authorization": None})[0] == 401
    assert locked.ask("GET", "/kv_cache", headers={"authorization": f"Bearer {KEY}"})[0] == 200


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.[!p]*")), ids=lambda file: file.name)
def test_files_name_no_host_and_hold_no_inline_code(file):
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]+\.|\beval\(|innerHTML|localStorage|document\.cookie", text)
    assert not re.search(r"\son\w+=|\sstyle=|<script>|<style", text)


def test_every_file_of_the_page_is_served():
    served = {path.rpartition("/")[2] or "index.html" for path in PATHS}
    assert served == {file.name for file in FOLDER.iterdir() if file.suffix not in (".py", "") and file.is_file()}


def full_scheduler(num_rows: int, num_blocks: int) -> Scheduler:
    """A scheduler that has computed the first tokens of some rows."""
    made = Scheduler(SchedulerConfig(64, num_rows, num_rows * 40, 4, num_blocks))
    for row in range(num_rows):
        made.add(Request(f"r{row}", tuple(range(row, row + 9)), SamplingParams(max_tokens=8, seed=0)))
    scheduled = made.schedule()
    made.update(scheduled, ModelOutput(tuple(RowOutput(row.row_id, (7,)) for row in scheduled.rows)))
    return made


def test_large_caches_are_drawn_in_part():
    scheduler = full_scheduler(8, 3 * MAX_CELLS)
    picture = scheduler.picture()
    assert picture.stride == 3 and len(picture.holders) == len(picture.owners) <= MAX_CELLS
    tables = [row.table.block_ids for row in scheduler._running]
    expected = [next((place for place, ids in enumerate(tables, 1) if block in ids), 0)
                for block in range(1, picture.num_blocks + 1, 3)]  # fmt: skip
    assert list(picture.owners) == expected and any(expected)


def test_more_sequences_than_a_byte_can_number():
    picture = full_scheduler(MAX_SEQUENCES + 20, 2000).picture()
    assert len(picture.sequences) == MAX_SEQUENCES and picture.num_running == MAX_SEQUENCES + 20
    assert max(picture.owners) == 255 and picture.owners.count(255) == 20 * 3


def test_more_holders_than_a_byte_can_count():
    cache = KVCache(10, 4)
    cache._pool.take(1)
    cache._pool.share([1] * 299)
    assert draw_cache(cache, [], []).holders[0] == 255


def test_who_looks_is_told_when_the_engine_process_dies():
    async def run() -> None:
        engine = AsyncEngine("quire-tiny", engine=EngineConfig(max_num_seqs=4, max_model_len=128))
        await engine.start()
        assert (await engine.picture()).num_running == 0
        pid = engine.replicas[0]._child.pid
        os.kill(pid, signal.SIGSTOP)  # it will not answer any more
        looking = [asyncio.create_task(engine.picture()) for _ in range(3)]
        await asyncio.sleep(0.1)
        looking[0].cancel()  # who leaves takes nothing from the others
        os.kill(pid, signal.SIGKILL)
        _, *others = await asyncio.wait_for(asyncio.gather(*looking, return_exceptions=True), 10)
        assert all(isinstance(error, EngineDeadError) for error in others)
        async with asyncio.timeout(30):
            while not engine.readiness().is_ready:
                await asyncio.sleep(0.05)
        assert (await engine.picture()).num_free_blocks > 0
        await engine.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def page(server):
    with chromium.browsing() as made:
        yield made


@needs_browser
def test_a_chat_by_keyboard(server, page):
    page.resize(1280, 800)
    page.open(server.url + "/")
    page.until("document.querySelector('#model').textContent.startsWith('quire-tiny')")
    page.type("Tell me a story.")
    page.press("Enter")
    page.until("document.querySelector('.assistant .text')?.textContent.length > 20")
    page.until("[...document.querySelectorAll('#sequences td')].some(cell => cell.textContent === 'this chat')")
    page.press("Escape")
    assert page.until("document.querySelector('.assistant .note')?.textContent") == "stopped"
    assert server.until_idle() < 2.0
    page.evaluate("document.querySelector('#max_tokens').value = 3; document.querySelector('#seed').value = 3")
    page.type("And then?")
    page.press("Enter")
    note = page.until("document.querySelectorAll('.assistant .note')[1]?.textContent")
    assert note.startswith("3 tokens") and "ended at the limit" in note
    assert not page.errors and all(url.startswith(server.url) for url in page.urls), (page.errors, page.urls)


@needs_browser
def test_the_picture_is_drawn_and_follows(server, page):
    page.resize(1280, 800)
    page.open(server.url + "/")
    page.until("document.querySelector('#running').textContent === '0'")
    with server.connect() as sock:
        sock.sendall(request("POST", "/v1/completions", msgspec.json.encode({**LONG, "n": 2, "stream": True})))
        page.until("document.querySelector('#running').textContent === '2'")
        label = page.evaluate("document.querySelector('#blocks').getAttribute('aria-label')")
        assert "by 2 running sequences" in label
        colours = "new Set(document.querySelector('#blocks').getContext('2d').getImageData(0, 0, 400, 40).data).size"
        assert page.evaluate(colours) > 6
        box = "document.querySelector('#blocks').getBoundingClientRect()"
        left, top = page.evaluate(f"[{box}.left, {box}.top]")
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + 3, y=top + 3)
        page.until("document.querySelector('#pointed').textContent.startsWith('Block 1 · ')")
    page.until("document.querySelector('#running').textContent === '0'")


@needs_browser
def test_nobody_asks_while_nobody_looks(server, page):
    page.resize(390, 844, is_phone=True)
    page.open(server.url + "/")
    page.until("document.querySelector('#model').textContent.startsWith('quire-tiny')")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    asked = "performance.getEntriesByType('resource').filter(entry => entry.name.endsWith('kv_cache')).length"
    assert page.evaluate(asked) == 0
    page.evaluate("document.querySelector('#view-cache').click()")
    page.until(f"{asked} > 1")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.evaluate("document.querySelector('#view-chat').click()")
    time.sleep(0.5)
    before = page.evaluate(asked)
    time.sleep(1)
    assert page.evaluate(asked) == before


@needs_browser
def test_a_key_is_asked_for_and_kept_for_the_tab_only(locked, page):
    page.resize(1280, 800)
    page.open(locked.url + "/")
    page.until("document.querySelector('#settings').open && document.activeElement.id === 'key'")
    page.type(KEY)
    page.press("Tab")
    page.until("document.querySelector('#model').textContent.startsWith('quire-tiny')")
    page.until("document.querySelector('#running').textContent === '0'")
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie].join()") == "1,0,"
    assert KEY not in page.evaluate("document.documentElement.outerHTML")


@needs_browser
def test_everything_has_a_name_and_can_be_reached(server, page):
    page.open(server.url + "/")
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea, canvas[role], section, [role=log]')].filter("
        "item => !(item.textContent.trim() || item.labels?.length || item.ariaLabel)).map(item => item.outerHTML)"
    )
    assert nameless == []
    page.evaluate("document.querySelector('#settings').open = true; document.body.focus()")
    reached = set()
    for _ in range(25):
        page.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"prompt", "new", "system", "temperature", "top_p", "max_tokens", "seed", "key", "log"} <= reached


@needs_browser
@pytest.mark.slow
def test_one_of_several_engines_is_chosen(page):
    with serving("--replicas", "2", "--max-num-seqs", "8") as several:
        page.errors.clear()
        page.resize(1280, 800)
        page.open(several.url + "/")
        page.until("!document.querySelector('#engine').hidden")
        assert page.evaluate("document.querySelector('#engine').options.length") == 2
        several.post("/v1/completions", {**LONG, "max_tokens": 4})
        cached = [look(several, f"/kv_cache/{i}")["picture"]["num_cached_blocks"] for i in range(2)]
        assert sorted(map(bool, cached)) == [False, True]
        for number in (0, 1, 0):
            select = f"const s = document.querySelector('#engine'); s.value = {number};"
            page.evaluate(f"{{ {select} s.dispatchEvent(new Event('change')); }}")
            label = "document.querySelector('#blocks').getAttribute('aria-label')"
            page.until(f"{label}.includes('; {cached[number]} can be found again')")
        assert not page.errors
